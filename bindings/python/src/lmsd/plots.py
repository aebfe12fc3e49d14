"""Pictures of schedules and distances. Needs matplotlib, which is loaded at the first of them.

The functions return a `matplotlib.figure.Figure`; `figure.savefig("file.png")` writes it.
"""

from collections.abc import Mapping, Sequence
from textwrap import wrap

import numpy as np

from ._core import Schedule
from .guidance import words


def plot_schedule(schedules: Schedule | Sequence[Schedule]):
    """Noise levels, time scaling factors and weights of one schedule or of several, side by side."""
    from matplotlib.figure import Figure

    schedules = [schedules] if isinstance(schedules, Schedule) else list(schedules)
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    _draw_schedules(figure.subplots(1, 3), schedules)
    return figure


def _plain(text: str) -> str:
    """Words as they are: matplotlib takes $...$ for a formula and hides labels that begin with _."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def _draw_schedules(panels, schedules):
    sigmas, scales, weights = panels
    for number, schedule in enumerate(schedules):
        color, nodes = f"C{number % 10}", np.arange(schedule.nfe)
        label = schedule.name or f"{schedule.made_by.get('method', 'schedule')}, {schedule.nfe} NFE"
        levels = schedule.sigmas
        shown = levels[levels > 0]  # log axis: an end at 0 is not on it
        sigmas.plot(np.arange(len(shown)), shown, "o-", color=color, ms=4, label=_plain(label))
        scales.plot(nodes, schedule.scales, "o-", color=color, ms=4)
        rows = schedule.weights
        for age in range(max(map(len, rows))):
            at = [n for n in nodes if len(rows[n]) > age]
            style = {"ls": "-" if age == 0 else ":", "alpha": 1 / (1 + 0.5 * age), "marker": "o", "ms": 4}
            weights.plot(at, [rows[n][age] for n in at], color=color, **style)
    sigmas.set(title="noise levels", xlabel="node", ylabel="sigma", yscale="log")
    scales.set(title="time scaling factors", xlabel="node", ylabel="scale")
    weights.set(title="weights (dotted: of older predictions)", xlabel="node", ylabel="weight")
    sigmas.legend(fontsize=8)
    scales.axhline(1, color="0.7", lw=0.8, zorder=0)
    for axes in (sigmas, scales, weights):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)


def plot_distances(table: Mapping[str, Mapping[int, float]]):
    """Distance to the teacher against NFE: `table[name][nfe] = distance`, one line for each name."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, distances) in enumerate(table.items()):
        nfes = sorted(distances)
        style = ("o-", "s--", "^:")[number // 10 % 3]
        axes.plot(nfes, [distances[nfe] for nfe in nfes], style, ms=4, label=_plain(name))
    axes.set(xlabel="NFE (model calls)", ylabel="mean distance to the teacher", yscale="log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25, which="both")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    figure.legend(fontsize=8, loc="outside right upper")
    return figure


def plot_report(schedule: Schedule):
    """What a schedule gains and what it is made of: its record of comparisons (`lmsd.gain`), and its numbers.

    Distance to the teacher against NFE, for it and its family and for the best of each field of published
    solvers at as many and at twice as many calls, with the factors between them and which solvers those are;
    below, noise levels, time scaling factors, weights.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    made = schedule.made_by
    table, which = {}, {}
    for row in made.get("compared", []):
        table.setdefault(row["solver"], {})[row["nfe"]] = row["distance"]
        which[row["solver"], row["nfe"]] = row["grid"]
    if not table:  # a file from elsewhere may know no more than its own distance and its rivals'
        for row in made.get("handcrafted", []):
            table.setdefault(row["solver"], {}).setdefault(schedule.nfe, row["distance"])  # best first
            which.setdefault((row["solver"], schedule.nfe), row["grid"])
        if made.get("distance") is not None:
            table[made["method"]] = {schedule.nfe: made["distance"]}
    own = table.pop(made.get("method"), {})

    figure = Figure(figsize=(12, 7.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    distance, text = above.subplots(1, 2, width_ratios=(1.25, 1))
    for number, (name, line) in enumerate(table.items()):
        nfes, color = sorted(line), f"C{number + 1}"
        distance.plot(nfes, [line[n] for n in nfes], "s--", color=color, ms=4, label=_plain(name))
    if own:
        nfes = sorted(own)
        label = _plain(made["method"] or "this schedule")
        distance.plot(nfes, [own[n] for n in nfes], "o-", color="C0", lw=2.5, ms=6, label=label)
    distance.set(xlabel="model calls (NFE)", ylabel="mean distance to the teacher", yscale="log")
    if own or table:
        distance.legend(fontsize=9)
        distance.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        distance.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        distance.yaxis.set_minor_formatter(NullFormatter())
    else:
        distance.text(0.5, 0.5, "no distances in this file", ha="center", transform=distance.transAxes)
    distance.xaxis.get_major_locator().set_params(integer=True)
    distance.grid(alpha=0.25)
    text.set_axis_off()
    facts = _plain("\n".join(_facts(schedule, own, table, which)))
    text.text(0, 1, facts, va="top", family="monospace", size=10)
    title = schedule.name or f"{made.get('method', 'schedule')}, {schedule.nfe} NFE"
    figure.suptitle(_plain(title), weight="bold")
    _draw_schedules(below.subplots(1, 3), [schedule])
    return figure


def _facts(schedule: Schedule, own, table, which) -> list[str]:
    """Lines: what the schedule is for, how it was made, and how many times nearer to the teacher it ends."""
    made_for, made = schedule.made_for, schedule.made_by
    lines = [
        f"{schedule.nfe} calls, sigma {schedule.sigma_start:g} to {schedule.sigma_end:g} ({schedule.process})"
    ]
    about = {
        "model": made_for.get("model"),
        "guidance scale": words(made_for),
        "shift": made_for.get("shift"),
    }
    lines += [f"{word} {value}" for word, value in about.items() if value not in (None, "")]
    if made_for.get("latent_shape"):
        lines.append("latent " + " x ".join(map(str, made_for["latent_shape"])))
    if made.get("teacher"):
        lines.append(f"teacher {made['teacher']}")
    if made.get("trajectories"):
        lines.append(f"{made['trajectories']} trajectories, {made.get('model_calls', 0)} batch calls")
    distance = own.get(schedule.nfe, made.get("distance"))
    if distance is None:
        return lines
    lines += ["", f"distance {distance:.4g} at {schedule.nfe} calls"]
    if made.get("improved") is False:
        lines += [
            "NOT an improvement: the best handcrafted solver",
            "was not beaten, and this is that solver",
        ]
    twice = 2 * schedule.nfe
    lines += ["", "its distance / this one", f"{'':<18}{schedule.nfe:>6} calls {twice:>6} calls"]
    for name, line in table.items():
        cells = [
            f"{line[n] / distance:.2f}x" if n in line and distance > 0 else "" for n in (schedule.nfe, twice)
        ]
        lines.append(f"{name:<18}" + " ".join(f"{cell:>12}" for cell in cells))
    lines.append("")
    for (name, nfe), grid in which.items():
        if name in table and nfe in (schedule.nfe, twice) and grid:
            lines += wrap(f"{name}, {nfe} calls: {grid}", 60, subsequent_indent="  ")
    return lines
