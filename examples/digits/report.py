"""The demo's pictures and its page, from what `demo.py` measured. Knows no model."""

import math

import numpy as np
import page
from common import FIELDS
from matplotlib import rc_context
from matplotlib.figure import Figure
from page import COLORS, DISTILLED, OTHERS, SIGNED, TEACHER


def strip(images):
    """Ten images [10, 8, 8] side by side, a pixel apart."""
    wide = np.full((8, 10 * 9 - 1), np.nan)
    for i, image in enumerate(images):
        wide[:, 9 * i : 9 * i + 8] = image
    return wide


def images(rows, goal):
    """Ten digits by the teacher, then for each NFE by the distilled schedule and the best of each field."""
    chosen = [int(np.argmax(goal["labels"] == digit)) for digit in range(10)]
    wanted = goal["images"][chosen, 0]
    grey = {"cmap": "gray_r", "vmin": -1, "vmax": 1}
    signed = {"cmap": SIGNED, "vmin": -1, "vmax": 1}
    strips = [("The teacher", None), (wanted, f"{goal['calls']} calls", TEACHER, grey)]
    for row in rows:
        strips.append((f"{row['nfe']} calls", None))
        shown = [("distilled", DISTILLED, row)]
        shown += [(FIELDS[name], COLORS[name], best) for name, best in row["fields"].items()]
        for name, color, which in shown:
            pixels = which["images"][chosen, 0]
            strips.append((pixels, f"{name}\ndistance {which['distance']:.2f}", color, grey))
            strips.append((pixels - wanted, "its error", color, signed))
    left, tall, title = 1.6, 0.58, 0.42  # inches
    height = sum(title if text is None else tall for _, text, *_ in strips) + 0.05
    figure = Figure(figsize=(7, height))
    top = height
    for what, text, *look in strips:
        if text is None:
            figure.text(0.01, (top - 0.12) / height, what, weight="bold", size=13, va="top")
            top -= title
            continue
        color, colors = look
        ax = figure.add_axes([left / 7, (top - 0.95 * tall) / height, 5.3 / 7, 0.9 * tall / height])
        ax.imshow(strip(what), interpolation="nearest", **colors)
        ax.set_axis_off()
        figure.text((left - 0.1) / 7, (top - tall / 2) / height, text, ha="right", va="center", color=color)
        top -= tall
    return figure


def spread(values, gap):
    """Values moved apart to at least `gap` between neighbours, as little as need be."""
    order = np.argsort(values)
    placed = np.array(values, float)[order]
    for _ in range(1000):
        close = np.flatnonzero(np.diff(placed) < gap * 0.999)
        if not len(close):
            break
        for i in close:
            push = (gap - (placed[i + 1] - placed[i])) / 2
            placed[i] -= push
            placed[i + 1] += push
    result = np.empty(len(placed))
    result[order] = placed
    return result


def name_line(ax, name, end, place):
    """A published solver's name at `place`, with a line to the end of its curve."""
    ax.annotate(
        name,
        end,
        place,
        color="#555555",
        size=8.5,
        va="center",
        arrowprops={"arrowstyle": "-", "color": "#bbbbbb", "lw": 0.6, "shrinkA": 1, "relpos": (0, 0.5)},
        annotation_clip=False,
    )


def distance(measured, rows):
    """Distance against NFE: each solver as published, the best of each field, the distilled."""
    figure = Figure(figsize=(7, 6.4), layout="constrained")
    ax = figure.subplots()
    lines = {}
    for nfe, at in measured.items():
        for schedule, value in at.fields["published"]:
            lines.setdefault(schedule.made_by["solver"], {})[nfe] = value
    last = max(measured)
    lines = {name: line for name, line in lines.items() if last in line}
    for line in lines.values():
        ax.plot(line.keys(), line.values(), color=OTHERS, lw=0.8, zorder=1)
    best = {name: {nfe: at.fields[name][0][1] for nfe, at in measured.items()} for name in FIELDS}
    for name, line in best.items():
        ax.plot(
            line.keys(), line.values(), "s-", color=COLORS[name], lw=2.5, ms=5, zorder=3, label=FIELDS[name]
        )
    own = {row["nfe"]: row["distance"] for row in rows}
    ax.plot(own.keys(), own.values(), "o-", color=DISTILLED, lw=2.5, ms=6, zorder=4, label="distilled")

    everything = [*own.values(), *(value for line in best.values() for value in line.values())]
    everything += [line[last] for line in lines.values()] + [max(line.values()) for line in lines.values()]
    low, high = 0.65 * min(everything), 1.2 * max(everything)
    places = spread([math.log(line[last]) for line in lines.values()], 0.027 * math.log(high / low))
    places += max(0.0, math.log(low) - places.min())
    for (name, line), place in zip(lines.items(), places, strict=True):
        name_line(
            ax, name, (last, line[last]), (last + 0.055 * max(1, last - min(measured)), math.exp(place))
        )
    page.draw_arrows(ax, [(row["nfe"], row["fields"]["strongest"]["calls"], row["distance"]) for row in rows])
    page.of_distances(ax, list(measured))
    ax.set(ylim=(low, high), xlim=(min(measured) - 0.3, last + 0.2))
    ax.legend(loc="lower left", frameon=False)
    return figure


def cells(rows):
    """The table as rows of texts; the first is the head."""
    head = ["NFE", "field", "its best", "distilled", "ratio", "as good as", "Frechet, field", "distilled"]
    found = [[*head, "best solver of the field"]]
    for row in rows:
        for name, best in row["fields"].items():
            found.append(
                [
                    str(row["nfe"]),
                    FIELDS[name],
                    f"{best['distance']:.4f}",
                    f"{row['distance']:.4f}",
                    f"{best['ratio']:.1f}x",
                    "more" if best["calls"] is None else f"{best['calls']:.1f} calls",
                    f"{best['frechet']:.3f}",
                    f"{row['frechet']:.3f}",
                    best["which"],
                ]
            )
    return found


def table(rows):
    """The table as HTML."""
    head, *lines = cells(rows)
    return page.table(head, lines, lambda _row, at: at in (3, 4))


BODY = """{intro}
{note}
<h2>From the same noise and the same label</h2>
<p>The first test trajectory of each digit, none of them seen by the distillation. Errors are differences from
the teacher's pixels: white is none, and the paler the better.</p>
<img src="{images}" alt="Digits by the teacher, the distilled schedule and the best of each field">

<h2>The numbers</h2>
<div class="wide"><table>
{table}
</table></div>
<p><b>Distance</b> (third and fourth column): mean over {test} test trajectories of the Euclidean distance to
the teacher's image, with pixels in [-1, 1]; lower is better. <b>Fields</b>: "{published}" is the best of
{solvers} published solvers as hosts have them, on the grids Karras rho 7 and logarithmic ({published_count}
tables at a number of calls); "{strongest}" is the best of these and of everything that tuning makes of them:
Karras rho 3, 5 and 10, full order to the end, first calls far below the largest noise level, the analytical
first step ({strongest_count} tables). Which tables are measured on the test trajectories is decided on
{ranking} others. <b>As good as</b>: the calls that the field needs to reach the distilled distance, between
measured NFEs by interpolation. <b>Fr&eacute;chet</b>: distance to the training images in the features of a
digit classifier, {frechet} for the teacher; lower is better, and with so few images it compares only within
this page.</p>

<h2>Distance against calls</h2>
<img src="{distance}" alt="Distance to the teacher against NFE, logarithmic">
<p>Thin lines are the solvers as published, each on its better grid (those that do not take every number of
calls are not drawn). Follow an arrow from a distilled schedule to the right: where it ends the strongest
field is as good.</p>

<h2>What was learned</h2>
<img src="{learned}" alt="Noise levels, time scaling factors and weights of the distilled schedules">"""

WORDS = {"published": "best solver as published", "strongest": "strongest that tuning makes of them"}


def spans(counts):
    """The least and the most, or the one that there is."""
    return sorted({min(counts), max(counts)})


def write(out, schedules, measured, rows, goal, how):
    """Writes images.png, distance.png, schedules.png and report.html to the folder `out`."""
    with rc_context(page.STYLE):
        figures = {
            "images": images(rows, goal),
            "distance": distance(measured, rows),
            "schedules": page.learned(schedules),
        }
        links = page.saved(out, figures, {})
    middle = rows[len(rows) // 2]
    summary = f"the one of {middle['nfe']} calls comes "
    summary += " and ".join(
        f"{best['ratio']:.1f} times closer to the teacher than the {WORDS[name]} with as many calls"
        + (f", which would need {best['calls']:.1f} to come as close" if best["calls"] else "")
        for name, best in middle["fields"].items()
    )
    counts = {f"{name}_count": " to ".join(map(str, spans(how["counts"][name]))) for name in FIELDS}
    body = BODY.format(
        intro=page.intro([row["nfe"] for row in rows], summary + "."),
        note=page.INTERRUPTED if how["interrupted"] else "",
        images=links["images"],
        distance=links["distance"],
        learned=links["schedules"],
        table=table(rows),
        frechet=f"{goal['frechet']:.3f}",
        test=how["test"],
        solvers=how["solvers"],
        ranking=max(how["ranking"]),
        **{name: FIELDS[name] for name in FIELDS},
        **counts,
    )
    schedule = schedules[middle["nfe"]]
    text = page.whole(
        "Distilled samplers for the digits network", body, schedule, how["guidance"], how["report"]
    )
    (out / "report.html").write_text(text, encoding="utf-8")
