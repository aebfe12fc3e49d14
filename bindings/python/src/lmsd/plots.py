"""Pictures of schedules and distances. Needs matplotlib, which is loaded at the first of them.

Both functions return a `matplotlib.figure.Figure`; `figure.savefig("file.png")` writes it.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ._core import Schedule


def plot_schedule(schedules: Schedule | Sequence[Schedule]):
    """Noise levels, time scaling factors and weights of one schedule or of several, side by side."""
    from matplotlib.figure import Figure

    schedules = [schedules] if isinstance(schedules, Schedule) else list(schedules)
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    sigmas, scales, weights = figure.subplots(1, 3)
    for number, schedule in enumerate(schedules):
        color, nodes = f"C{number % 10}", np.arange(schedule.nfe)
        label = schedule.name or f"{schedule.made_by.get('method', 'schedule')}, {schedule.nfe} NFE"
        levels = schedule.sigmas
        shown = levels[levels > 0]  # log axis: an end at 0 is not on it
        sigmas.plot(np.arange(len(shown)), shown, "o-", color=color, ms=4, label=label)
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
    return figure


def plot_distances(table: Mapping[str, Mapping[int, float]]):
    """Distance to the teacher against NFE: `table[name][nfe] = distance`, one line for each name."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, distances) in enumerate(table.items()):
        nfes = sorted(distances)
        style = ("o-", "s--", "^:")[number // 10 % 3]
        axes.plot(nfes, [distances[nfe] for nfe in nfes], style, ms=4, label=name)
    axes.set(xlabel="NFE (model calls)", ylabel="mean distance to the teacher", yscale="log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25, which="both")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    figure.legend(fontsize=8, loc="outside right upper")
    return figure
