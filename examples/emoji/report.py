"""The demo's pictures and its page, from what `demo.py` measured. Knows no model.

Colours are those of Okabe and Ito, told apart by colour-blind people too.
"""

import base64
import html
import io
import math

import lmsd
import numpy as np
from lmsd import gain
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


def pictures(rows, goal, prompts):
    """A line for each prompt: the teacher's picture; for each NFE the published sampler's, the distilled."""
    columns = [(f"{goal['calls']} calls", TEACHER, goal["pictures"], 0.0)]
    for row in rows:
        columns.append((f"{row.nfe} calls\npublished", COLORS["published"], row.pictures["published"], 0.3))
        columns.append((f"{row.nfe} calls\ndistilled", DISTILLED, row.pictures["distilled"], 0.0))
    size, left, top = 0.95, 1.15, 0.5  # inches
    width = left + sum(size + gap for *_, gap in columns)
    height = top + size * len(prompts)
    figure = Figure(figsize=(width, height))
    x = left
    for text, color, shown, gap in columns:
        x += gap
        middle = (x + size / 2) / width
        figure.text(
            middle,
            1 - 0.45 * top / height,
            text,
            ha="center",
            va="center",
            color=color,
            weight="bold",
            size=9,
        )
        for i in range(len(prompts)):
            box = [
                x / width,
                1 - (top + (i + 0.98) * size) / height,
                0.96 * size / width,
                0.96 * size / height,
            ]
            ax = figure.add_axes(box)
            ax.imshow((shown[i].transpose(1, 2, 0).clip(-1, 1) + 1) / 2, interpolation="nearest")
            ax.set_axis_off()
        x += size
    for i, prompt in enumerate(prompts):
        y = 1 - (top + (i + 0.5) * size) / height
        figure.text((left - 0.1) / width, y, prompt.replace(" ", "\n"), ha="right", va="center", size=10)
    return figure


def distance(rows, fields):
    """Distance against NFE: the best of each field, the distilled."""
    figure = Figure(figsize=(7, 4.8), layout="constrained")
    ax = figure.subplots()
    curves = {name: {nfe: ranked[0][1] for nfe, ranked in found.items()} for name, found in fields.items()}
    curves["distilled"] = {row.nfe: row.distance["distilled"] for row in rows}
    for name, line in curves.items():
        color = COLORS.get(name, DISTILLED)
        ax.plot(line.keys(), line.values(), "o-", color=color, lw=2.5, ms=5, label=gain.NAMES.get(name, name))
    for row in rows:
        calls = row.calls["strongest"]
        if not calls or calls <= row.nfe:
            continue
        level = row.distance["distilled"]
        style = {"arrowstyle": "->", "color": DISTILLED, "lw": 1, "ls": (0, (4, 3)), "shrinkA": 6}
        ax.annotate("", (calls, level), (row.nfe, level), arrowprops=style)
        times = f"{calls / row.nfe:.1f}\N{MULTIPLICATION SIGN}"
        place = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center"}
        ax.annotate(times, ((row.nfe + calls) / 2, level), color=DISTILLED, **place)
    ax.set(yscale="log", xlabel="model calls a sample (NFE)", ylabel="mean distance to the teacher")
    ax.set_title(
        "Lower and further left is better. Arrows: how many times\nfewer calls than the strongest field"
    )
    ax.yaxis.set_major_locator(FixedLocator([a * 10**b for b in range(-3, 3) for a in (1, 2, 5)]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.xaxis.set_major_locator(FixedLocator(sorted(fields["published"])))
    ax.grid(axis="y", color="#eeeeee", zorder=0)
    ax.legend(frameon=False)
    return figure


def learned(schedules):
    """Where the noise levels lie, what the model is told, and the weights as tables of colour."""
    rows = math.ceil(len(schedules) / 2)
    figure = Figure(figsize=(7, 6.2 + 2.7 * rows), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[6.2, 2.7 * rows])
    levels, scales = top.subplots(2, 1, sharex=True)
    for i, (nfe, schedule) in enumerate(schedules.items()):
        about = schedule.made_for
        levels_of = {"sigma_min": about["sigma_min"], "sigma_max": about["sigma_max"]}
        levels_of |= {"sigma_end": schedule.sigma_end, "process": schedule.process}
        usual = lmsd.solve(nfe=nfe, **levels_of).sigmas
        levels.plot(usual[:-1], [nfe + 0.22] * nfe, "|", color=COLORS["published"], ms=9, mew=1.6,
                    label="the usual grid" if i == 0 else None)  # fmt: skip
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


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light">
<title>Distilled samplers for an emoji model</title>
<style>
body {{ margin: 0 auto; max-width: 46rem; padding: 1rem; background: #fff; color: #222;
  font: 17px/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.7rem; line-height: 1.2; }}
h2 {{ margin-top: 2.4rem; font-size: 1.3rem; border-bottom: 2px solid #0072B2; }}
img {{ width: 100%; height: auto; }}
img.large {{ width: auto; max-width: none; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .35rem .45rem; border-bottom: 1px solid #ccc; text-align: right; vertical-align: bottom; }}
th:last-child, td:last-child {{ text-align: left; min-width: 9rem; }}
.own td {{ font-weight: bold; color: #0072B2; }}
pre {{ overflow-x: auto; padding: .8rem; background: #f4f4f4; font-size: .82rem; line-height: 1.4; }}
summary {{ cursor: pointer; }}
.note {{ padding: .6rem .8rem; background: #fff3e0; }}
</style>
</head>
<body>
<h1>Distilled samplers for an emoji model</h1>
<p>A diffusion model turns noise into a picture by calling its network once for each step. Fewer calls are
faster, but a handcrafted solver then strays from the picture that many calls would give. Here <b>{count}
schedules of {first} to {last} calls</b> were distilled for one network by forward calls only: {summary}</p>
{note}
<h2>From the same noise and the same words</h2>
<p>On the left what {teacher} calls give. Beside it, at each number of calls, the best solver as published and
the distilled schedule. The noise is new to the distillation.</p>
<div class="wide"><img class="large" src="{pictures}" alt="Emoji by all of them"></div>

<h2>The numbers</h2>
<div class="wide"><table>
{table}
</table></div>
<p>Measured on {test} trajectories from prompts that neither the network nor the distillation has seen.
<b>Distance</b>: mean Euclidean distance to the teacher's end point; lower is better. <b>PSNR</b>: of the
picture to the teacher's; higher is better. <b>Seen</b>: the difference that people see, in the manner of
LPIPS, in the layers of a classifier of emoji; lower is better. <b>Fr&eacute;chet</b>: distance to the
teacher's pictures in the features of that classifier, which no fit sees; lower is better, and it compares
only within this page.
<b>Recognised</b>: of the pictures above, those whose kind the classifier names; the teacher has {recognised}.
<b>Best as published</b>: of all published solvers as hosts have them, on their usual grids.
<b>Strongest</b>: the best of these and of what the distillation found strongest of everything that tuning
makes of them: other grids, full order to the end, first calls far below the largest noise level, the
analytical first step. The choice is made on the trajectories that are measured on, which favours both.</p>

<h2>Distance against calls</h2>
<img src="{distance}" alt="Distance to the teacher against NFE, logarithmic">

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
schedule.check(model="{model}", guidance_scale={guidance:g})  # refuses what it was not made for
# x_T: noise of standard deviation {start:g}; model(x, sigma) returns the denoised pictures
x = lmsd.sample(schedule, x_T, model)"""

C = """lmsd_schedule *schedule = NULL;
if (lmsd_schedule_load("nfe{nfe:02d}.json", &schedule) != LMSD_STATUS_OK ||
    /* x: a lmsd_tensor of noise of standard deviation {start:g}, overwritten with the pictures */
    lmsd_sample(schedule, NULL, &x, model, NULL, user_data, &x) != LMSD_STATUS_OK)
    fprintf(stderr, "%s\\n", lmsd_last_error());
lmsd_schedule_free(schedule);"""


def made(how):
    """How the schedules came to be, in words."""
    about = how["report"]
    options = about["config"]
    return (
        f"{about['image_calls']:,} image-calls at guidance {how['args'].guidance:g}, all included (teacher "
        f"of up to {about['teacher_nfe']} calls), in {about['seconds']:.0f} seconds. "
        f"{options['trajectories']} trajectories to fit to, {options['held_out']} held-out ones to decide "
        f"what is kept; lmsd {about['library_version']}."
    )


def summary(row):
    """What the middle one of the schedules gains, in words."""
    ratio = row.distance["published"] / row.distance["distilled"]
    calls = row.calls["published"]
    more = f", which would need {calls:.1f} to come as close" if calls else ""
    return (
        f"the one of {row.nfe} calls comes {ratio:.1f} times closer to the teacher than the best solver "
        f"as published with as many calls{more}. Its pictures have {row.psnr['distilled']:.1f} dB, those of "
        f"that solver {row.psnr['published']:.1f}."
    )


def table(cells):
    """Rows of texts as HTML; the first is the head."""
    lines = ["<tr>" + "".join(cell(text, "th") for text in cells[0]) + "</tr>"]
    for row in cells[1:]:
        own = ' class="own"' if row[1] == "distilled" else ""
        lines.append(f"<tr{own}>" + "".join(map(cell, row)) + "</tr>")
    return "\n".join(lines)


def write(out, rows, fields, goal, cells, how):
    """Writes pictures.png, few.png, distance.png, schedules.png and report.html to the folder `out`."""
    links, prompts = {}, how["prompts"]
    schedules = {row.nfe: row.schedule["distilled"] for row in rows}
    few = [row for row in rows if 4 <= row.nfe <= 6] or rows
    with rc_context(STYLE):
        figures = {
            "pictures": pictures(rows, goal, prompts),
            "few": pictures(few, goal, prompts[:5]),
            "distance": distance(rows, fields),
            "schedules": learned(schedules),
        }
        for name, figure in figures.items():
            data = io.BytesIO()
            figure.savefig(data, dpi=100 if name in ("pictures", "few") else 150, format="png")
            (out / f"{name}.png").write_bytes(data.getvalue())
            links[name] = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    middle = rows[len(rows) // 2]
    schedule = middle.schedule["distilled"]
    note = "<p class='note'>This run was interrupted: the page shows what was ready.</p>"
    fill = {"nfe": middle.nfe, "guidance": how["args"].guidance, "start": schedule.sigma_start}
    fill["model"] = schedule.made_for["model"]
    text = PAGE.format(
        count=len(rows),
        first=rows[0].nfe,
        last=rows[-1].nfe,
        summary=summary(middle),
        note=note if how["interrupted"] else "",
        teacher=goal["calls"],
        pictures=links["pictures"],
        distance=links["distance"],
        learned=links["schedules"],
        table=table(cells),
        recognised=f"{goal['recognised']} of {len(prompts)}",
        test=how["args"].test,
        python=html.escape(PYTHON.format(**fill)),
        c=html.escape(C.format(**fill)),
        example=middle.nfe,
        json=html.escape(schedule.to_json()),
        made=html.escape(made(how)),
    )
    (out / "report.html").write_text(text, encoding="utf-8")
