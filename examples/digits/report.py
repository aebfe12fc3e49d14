"""The demo's pictures and its page, from what `demo.py` measured. Knows no model.

Colours are those of Okabe and Ito, told apart by colour-blind people too.
"""

import base64
import html
import io
import math

import lmsd
import numpy as np
from common import FIELDS
from matplotlib import rc_context
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

DISTILLED, TEACHER, OTHERS = "#0072B2", "#000000", "#999999"
COLORS = {"published": "#E69F00", "strongest": "#D55E00"}
SIGNED = LinearSegmentedColormap.from_list("signed", ["#3B1F6E", "#8073AC", "#FFFFFF", "#E08214", "#7F3B08"])
STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


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


def draw_arrows(ax, rows):
    """From each distilled schedule to the calls with which the strongest field is as good."""
    for row in rows:
        level, calls = row["distance"], row["fields"]["strongest"]["calls"]
        if not calls or calls <= row["nfe"]:
            continue
        ax.annotate(
            "",
            (calls, level),
            (row["nfe"], level),
            arrowprops={"arrowstyle": "->", "color": DISTILLED, "lw": 1, "ls": (0, (4, 3)), "shrinkA": 6},
            zorder=2,
        )
        place = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center"}
        times = f"{calls / row['nfe']:.1f}\N{MULTIPLICATION SIGN}"
        ax.annotate(times, ((row["nfe"] + calls) / 2, level), color=DISTILLED, size=10.5, **place)


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
        ax.plot(line.keys(), line.values(), "s-", color=COLORS[name], lw=2.5, ms=5, zorder=3)
    own = {row["nfe"]: row["distance"] for row in rows}
    ax.plot(own.keys(), own.values(), "o-", color=DISTILLED, lw=2.5, ms=6, zorder=4)

    everything = [*own.values(), *(value for line in best.values() for value in line.values())]
    everything += [line[last] for line in lines.values()] + [max(line.values()) for line in lines.values()]
    low, high = 0.65 * min(everything), 1.2 * max(everything)
    places = spread([math.log(line[last]) for line in lines.values()], 0.027 * math.log(high / low))
    places += max(0.0, math.log(low) - places.min())
    for (name, line), place in zip(lines.items(), places, strict=True):
        name_line(
            ax, name, (last, line[last]), (last + 0.055 * max(1, last - min(measured)), math.exp(place))
        )
    draw_arrows(ax, rows)
    nfe = max(own)
    place = {"textcoords": "offset points", "va": "top", "weight": "bold", "size": 12}
    ax.annotate("distilled", (nfe, own[nfe]), (-4, -9), color=DISTILLED, ha="left", **place)
    for name, line in best.items():
        place |= {"va": "bottom"} if name == "published" else {"va": "top"}
        at = (0, 7 if name == "published" else -9)
        ax.annotate(FIELDS[name], (last, line[last]), at, color=COLORS[name], ha="right", **place)
    ax.set(yscale="log", ylim=(low, high), xlim=(min(measured) - 0.3, last + 0.2))
    ax.set_xlabel("model calls a sample (NFE)")
    ax.set_ylabel("mean distance to the teacher, in pixels of [-1, 1]")
    title = "Lower and further left is better. Arrows: how many times\nfewer calls than the strongest field"
    ax.set_title(f"{title}, at the same distance")
    ticks = [tick for tick in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if low <= tick <= high]
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.xaxis.set_major_locator(FixedLocator(list(measured)))
    ax.grid(axis="y", color="#eeeeee", zorder=0)
    return figure


def learned(schedules):
    """Where the noise levels lie, what the model is told, and the weights as tables of colour."""
    rows = math.ceil(len(schedules) / 2)
    figure = Figure(figsize=(7, 6.2 + 2.7 * rows), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[6.2, 2.7 * rows])
    levels, scales = top.subplots(2, 1, sharex=True)
    for i, (nfe, schedule) in enumerate(schedules.items()):
        about = schedule.made_for
        usual = lmsd.solve(
            nfe=nfe, sigma_min=about["sigma_min"], sigma_max=about["sigma_max"], sigma_end=schedule.sigma_end
        ).sigmas
        levels.plot(usual[:-1], [nfe + 0.22] * nfe, "|", color=COLORS["published"], ms=9, mew=1.6,
                    label="Karras grid, rho 7" if i == 0 else None)  # fmt: skip
        levels.plot(schedule.sigmas[:-1], [nfe] * nfe, "o", color=DISTILLED, ms=7,
                    label="learned" if i == 0 else None)  # fmt: skip
        shade = 0.3 + 0.7 * (i + 1) / len(schedules)
        scales.plot(schedule.sigmas[:-1], schedule.scales, "o-", color=DISTILLED, alpha=shade, ms=4, lw=1.4)
        scales.annotate(
            f" {nfe}", (schedule.sigmas[nfe - 1], schedule.scales[-1]), color=DISTILLED, size=10, va="center"
        )
    levels.set(xscale="log", ylabel="model calls (NFE)", title="Noise levels at which the model is called")
    levels.invert_xaxis()
    levels.yaxis.set_major_locator(FixedLocator(list(schedules)))
    levels.set_ylim(max(schedules) + 0.6, min(schedules) - 1.3)
    levels.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    levels.tick_params(labelbottom=True)
    levels.legend(loc="upper right", ncols=2, frameon=False, fontsize=10)
    scales.axhline(1, color=OTHERS, lw=0.8, zorder=0)
    scales.set(
        xlabel="noise level sigma of the state (sampling runs from left to right)",
        ylabel="scale (numbers: NFE)",
    )
    scales.set_title("Time scaling factors: the model is told scale \N{MULTIPLICATION SIGN} sigma")

    bottom.suptitle("Weights: how much of each prediction goes into a step", x=0.01, ha="left", weight="bold",
                    size=12)  # fmt: skip
    largest = max(np.abs(row).max() for schedule in schedules.values() for row in schedule.weights)
    axes = bottom.subplots(rows, 2, squeeze=False).ravel()
    for ax in axes[len(schedules) :]:
        ax.set_axis_off()
    for ax, (nfe, schedule) in zip(axes, schedules.items(), strict=False):
        table = np.full((nfe, nfe), np.nan)
        for n, row in enumerate(schedule.weights):
            for age, weight in enumerate(row):
                table[n, n - age] = weight
        limit = min(largest, 2.5)
        ax.imshow(table, cmap=SIGNED, vmin=-limit, vmax=limit, aspect="auto")
        for (n, m), weight in np.ndenumerate(table):
            if not np.isnan(weight):
                dark = abs(weight) > 0.6 * limit
                text = f"{round(weight, 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")
                size, color = 7.5 if nfe > 6 else 9, "white" if dark else "black"
                ax.text(m, n, text, ha="center", va="center", size=size, color=color)
        ax.set_title(f"{nfe} NFE", size=10.5)
        ax.set(xticks=range(nfe), yticks=range(nfe), xticklabels=range(1, nfe + 1),
               yticklabels=range(1, nfe + 1))  # fmt: skip
        ax.set(xlabel="prediction of call", ylabel="step after call")
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    return figure


def cell(text, tag="td"):
    return f"<{tag}>{html.escape(text)}</{tag}>"


def table(rows):
    """The table as HTML."""
    frechet = "Fr\N{LATIN SMALL LETTER E WITH ACUTE}chet"
    head = ["NFE", "field", "its best", "distilled", "ratio", "as good as", f"{frechet}, field", "distilled"]
    head += ["best solver of the field"]
    lines = ["<tr>" + "".join(cell(text, "th") for text in head) + "</tr>"]
    for row in rows:
        for name, best in row["fields"].items():
            cells = [
                str(row["nfe"]),
                FIELDS[name],
                f"{best['distance']:.4f}",
                f"{row['distance']:.4f}",
                f"{best['ratio']:.1f}\N{MULTIPLICATION SIGN}",
                "more" if best["calls"] is None else f"{best['calls']:.1f}\N{NO-BREAK SPACE}calls",
                f"{best['frechet']:.3f}",
                f"{row['frechet']:.3f}",
                best["which"],
            ]
            lines.append("<tr>" + "".join(map(cell, cells)) + "</tr>")
    return "\n".join(lines)


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light">
<title>Distilled samplers for the digits network</title>
<style>
body {{ margin: 0 auto; max-width: 46rem; padding: 1rem; background: #fff; color: #222;
  font: 17px/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.7rem; line-height: 1.2; }}
h2 {{ margin-top: 2.4rem; font-size: 1.3rem; border-bottom: 2px solid #0072B2; }}
img {{ width: 100%; height: auto; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .35rem .45rem; border-bottom: 1px solid #ccc; text-align: right; vertical-align: bottom; }}
th:last-child, td:last-child {{ text-align: left; min-width: 9rem; }}
td:nth-child(4), td:nth-child(5) {{ font-weight: bold; color: #0072B2; }}
pre {{ overflow-x: auto; padding: .8rem; background: #f4f4f4; font-size: .82rem; line-height: 1.4; }}
summary {{ cursor: pointer; }}
.note {{ padding: .6rem .8rem; background: #fff3e0; }}
</style>
</head>
<body>
<h1>Distilled samplers for the digits network</h1>
<p>A diffusion model turns noise into an image by calling its network once for each step. Fewer calls are
faster, but a handcrafted solver then strays from the image that many calls would give. Here <b>{count}
schedules of {first} to {last} calls</b> were distilled for one network by forward calls only: {summary}</p>
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
<img src="{learned}" alt="Noise levels, time scaling factors and weights of the distilled schedules">

<h2>How to use a schedule</h2>
<p>Python:</p>
<pre>{python}</pre>
<p>C:</p>
<pre>{c}</pre>
<p>A schedule is a small JSON file, here one with {example} calls:</p>
<details><summary>nfe{example:02d}.json</summary><pre>{json}</pre></details>

<h2>How it was made</h2>
<p>{made}</p>
</body>
</html>
"""

PYTHON = """import lmsd

schedule = lmsd.Schedule.load("nfe{nfe:02d}.json")
schedule.check(model="digits", guidance_scale={guidance:g})  # refuses what it was not made for
# x_T: noise of standard deviation {start:g}; model(x, sigma) returns the denoised images
x = lmsd.sample(schedule, x_T, model)"""

C = """lmsd_schedule *schedule = NULL;
if (lmsd_schedule_load("nfe{nfe:02d}.json", &schedule) != LMSD_STATUS_OK ||
    /* x: a lmsd_tensor of noise of standard deviation {start:g}, overwritten with the images */
    lmsd_sample(schedule, NULL, &x, model, NULL, user_data, &x) != LMSD_STATUS_OK)
    fprintf(stderr, "%s\\n", lmsd_last_error());
lmsd_schedule_free(schedule);"""


def made(how):
    """How the schedules came to be, in words."""
    about = how["report"]
    options = about["config"]
    return (
        f"{about['image_calls']:,} image-calls at guidance {how['guidance']:g}, all included (teacher of up "
        f"to {about['teacher_nfe']} calls), in {about['seconds']:.0f} seconds. "
        f"{options['trajectories']} trajectories to fit to, "
        f"{options['held_out']} held-out ones to decide what is kept; {max(how['ranking'])} others ranked "
        f"the published solvers; lmsd {about['library_version']}."
    )


WORDS = {"published": "best solver as published", "strongest": "strongest that tuning makes of them"}


def spans(counts):
    """The least and the most, or the one that there is."""
    return sorted({min(counts), max(counts)})


def write(out, schedules, measured, rows, goal, how):
    """Writes images.png, distance.png, schedules.png and report.html to the folder `out`."""
    links = {}
    with rc_context(STYLE):
        figures = {
            "images": images(rows, goal),
            "distance": distance(measured, rows),
            "schedules": learned(schedules),
        }
        for name, figure in figures.items():
            data = io.BytesIO()
            figure.savefig(data, dpi=150, format="png")
            (out / f"{name}.png").write_bytes(data.getvalue())
            links[name] = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    middle = rows[len(rows) // 2]
    schedule = schedules[middle["nfe"]]
    summary = f"the one of {middle['nfe']} calls comes "
    summary += " and ".join(
        f"{best['ratio']:.1f} times closer to the teacher than the {WORDS[name]} with as many calls"
        + (f", which would need {best['calls']:.1f} to come as close" if best["calls"] else "")
        for name, best in middle["fields"].items()
    )
    counts = {f"{name}_count": " to ".join(map(str, spans(how["counts"][name]))) for name in FIELDS}
    note = "<p class='note'>This run was interrupted: the page shows what was ready.</p>"
    fill = {"nfe": middle["nfe"], "guidance": how["guidance"], "start": schedule.sigma_start}
    text = PAGE.format(
        count=len(rows),
        first=rows[0]["nfe"],
        last=rows[-1]["nfe"],
        summary=summary + ".",
        note=note if how["interrupted"] else "",
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
        python=html.escape(PYTHON.format(**fill)),
        c=html.escape(C.format(**fill)),
        example=middle["nfe"],
        json=html.escape(schedule.to_json()),
        made=html.escape(made(how)),
    )
    (out / "report.html").write_text(text, encoding="utf-8")
