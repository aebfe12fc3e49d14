"""The demo's pictures and its page, from what `demo.py` measured. Knows no model."""

import page
from lmsd import gain
from matplotlib import rc_context
from matplotlib.figure import Figure
from page import COLORS, DISTILLED, TEACHER


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
    page.draw_arrows(ax, [(row.nfe, row.calls["strongest"], row.distance["distilled"]) for row in rows])
    page.of_distances(ax, sorted(fields["published"]))
    ax.legend(frameon=False)
    return figure


BODY = """{intro}
{note}
<h2>From the same noise and the same words</h2>
<p>On the left what {teacher} calls give. Beside it, at each number of calls, the best solver as published and
the distilled schedule. The noise is new to the distillation.</p>
<div class="wide"><img class="large" src="{pictures}" alt="Emoji by all of them"></div>

<h2>The numbers</h2>
<div class="wide"><table>
{table}
</table></div>
<p>Measured on {test} trajectories: {seen}.
<b>Distance</b>: mean Euclidean distance to the teacher's end point; lower is better. <b>PSNR</b>: of the
picture to the teacher's; higher is better. <b>Seen</b>: the difference that people see, in the manner of
LPIPS, in the layers of a classifier of emoji; lower is better. <b>Fr&eacute;chet</b>: distance to the
teacher's pictures in the features of that classifier, which no fit sees; lower is better, and it compares
only within this page.
<b>Recognised</b>: of the pictures above, those whose kind the classifier names; the teacher has {recognised}.
<b>Best as published</b>: of all published solvers as hosts have them, on their usual grids.
<b>Strongest</b>: {strongest}: other grids, full order to the end, first calls far below the largest noise
level, the analytical first step. The choice is made on the trajectories that are measured on, which favours
both.</p>

<h2>Distance against calls</h2>
<img src="{distance}" alt="Distance to the teacher against NFE, logarithmic">

<h2>What was learned</h2>
<img src="{learned}" alt="Noise levels, time scaling factors and weights of the distilled schedules">"""


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


def write(out, rows, fields, goal, cells, how):
    """Writes pictures.png, few.png, distance.png, schedules.png and report.html to the folder `out`."""
    prompts = how["prompts"]
    few = [row for row in rows if 4 <= row.nfe <= 6] or rows
    with rc_context(page.STYLE):
        figures = {
            "pictures": pictures(rows, goal, prompts),
            "few": pictures(few, goal, prompts[:5]),
            "distance": distance(rows, fields),
            "schedules": page.learned({row.nfe: row.schedule["distilled"] for row in rows}),
        }
        links = page.saved(out, figures, {"pictures": 100, "few": 100})
    middle = rows[len(rows) // 2]
    body = BODY.format(
        intro=page.intro([row.nfe for row in rows], summary(middle)),
        note=page.INTERRUPTED if how["interrupted"] else "",
        teacher=goal["calls"],
        pictures=links["pictures"],
        distance=links["distance"],
        learned=links["schedules"],
        table=page.table(cells[0], cells[1:], lambda row, _at: row[1] == "distilled"),
        recognised=f"{goal['recognised']} of {len(prompts)}",
        test=how["args"].test,
        seen=how["seen"],
        strongest=how["strongest"],
    )
    title, schedule = "Distilled samplers for an emoji model", middle.schedule["distilled"]
    text = page.whole(title, body, schedule, how["args"].guidance, how["report"])
    (out / "report.html").write_text(text, encoding="utf-8")
