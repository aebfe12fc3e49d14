"""What the pages of the demos have in common: their look, what was learned, how to use a schedule.

Colours are those of Okabe and Ito, told apart by colour-blind people too.
"""

import base64
import html
import io
import math

import lmsd
import numpy as np
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


def draw_arrows(ax, found):
    """From each distilled schedule to the calls with which the strongest field is as good.

    `found`: (NFE, these calls or None, distance) of each; none where the field needs no more calls.
    """
    for nfe, calls, level in found:
        if not calls or calls <= nfe:
            continue
        style = {"arrowstyle": "->", "color": DISTILLED, "lw": 1, "ls": (0, (4, 3)), "shrinkA": 6}
        ax.annotate("", (calls, level), (nfe, level), arrowprops=style, zorder=2)
        place = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center"}
        times = f"{calls / nfe:.1f}\N{MULTIPLICATION SIGN}"
        ax.annotate(times, ((nfe + calls) / 2, level), color=DISTILLED, size=10.5, **place)


def of_distances(ax, nfes):
    """Title and axes of a figure of distances against NFE."""
    ax.set(yscale="log", xlabel="model calls a sample (NFE)", ylabel="mean distance to the teacher")
    title = "Lower and further left is better. Arrows: how many times\nfewer calls than the strongest field"
    ax.set_title(f"{title}, at the same distance")
    ax.yaxis.set_major_locator(FixedLocator([a * 10.0**b for b in range(-3, 3) for a in (1, 2, 5)]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.xaxis.set_major_locator(FixedLocator(nfes))
    ax.grid(axis="y", color="#eeeeee", zorder=0)


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


def table(head, rows, own):
    """Rows of texts as HTML; `own(row, column)`: whether a cell is about the distilled schedules."""
    lines = ["<tr>" + "".join(f"<th>{html.escape(text)}</th>" for text in head) + "</tr>"]
    for row in rows:
        classes = [" class='own'" if own(row, at) else "" for at in range(len(row))]
        cells = [f"<td{kind}>{html.escape(text)}</td>" for kind, text in zip(classes, row, strict=True)]
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return "\n".join(lines)


def intro(nfes, summary):
    """What a stranger needs to know, and what was gained."""
    return (
        "<p>A diffusion model turns noise into a picture by calling its network once for each step. Fewer "
        "calls are faster, but a handcrafted solver then strays from the picture that many calls would give. "
        f"Here <b>{len(nfes)} schedules of {nfes[0]} to {nfes[-1]} calls</b> were distilled for one network "
        f"by forward calls only: {summary}</p>"
    )


def saved(out, figures, dpi):
    """Writes NAME.png to the folder `out` for each figure; name -> the picture as a link. `dpi` by name."""
    links = {}
    for name, figure in figures.items():
        data = io.BytesIO()
        figure.savefig(data, dpi=dpi.get(name, 150), format="png")
        (out / f"{name}.png").write_bytes(data.getvalue())
        links[name] = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    return links


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light">
<title>{title}</title>
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
.own {{ font-weight: bold; color: #0072B2; }}
pre {{ overflow-x: auto; padding: .8rem; background: #f4f4f4; font-size: .82rem; line-height: 1.4; }}
summary {{ cursor: pointer; }}
.note {{ padding: .6rem .8rem; background: #fff3e0; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}

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
# x_T: noise of standard deviation {start:g}; model(x, sigma) returns the denoised states
x = lmsd.sample(schedule, x_T, model)"""

C = """lmsd_schedule *schedule = NULL;
if (lmsd_schedule_load("nfe{nfe:02d}.json", &schedule) != LMSD_STATUS_OK ||
    /* x: a lmsd_tensor of noise of standard deviation {start:g}, overwritten with the result */
    lmsd_sample(schedule, NULL, &x, model, NULL, user_data, &x) != LMSD_STATUS_OK)
    fprintf(stderr, "%s\\n", lmsd_last_error());
lmsd_schedule_free(schedule);"""

INTERRUPTED = "<p class='note'>This run was interrupted: the page shows what was ready.</p>"


def whole(title, body, schedule, guidance, report):
    """The page: `body`, then how to use `schedule` and how it was made, by the distillation's report."""
    fill = {"nfe": schedule.nfe, "guidance": guidance, "start": schedule.sigma_start}
    fill["model"] = schedule.made_for["model"]
    return PAGE.format(
        title=title,
        body=body,
        python=html.escape(PYTHON.format(**fill)),
        c=html.escape(C.format(**fill)),
        example=schedule.nfe,
        json=html.escape(schedule.to_json()),
        made=html.escape(made(guidance, report)),
    )


def made(guidance, report):
    """How the schedules came to be, in words."""
    options = report["config"]
    return (
        f"{report['image_calls']:,} image-calls at guidance {guidance:g}, all included (teacher of up to "
        f"{report['teacher_nfe']} calls), in {report['seconds']:.0f} seconds. {options['trajectories']} "
        f"trajectories to fit to, {options['held_out']} held-out ones to decide what is kept; lmsd "
        f"{report['library_version']}."
    )
