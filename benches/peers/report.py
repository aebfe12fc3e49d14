"""docs/results.md and its pictures, made from the figures of the cells alone: no sentence knows a result."""

import json
import math
import statistics
from collections import defaultdict
from pathlib import Path

from .metrics import METRICS
from .table import GRADIENTS, PEERS

OURS, FIELDS = "ours", ("published", "strongest")
TWICE, FEWER, ABOVE, TENTH, DECIBELS = 2, 1.5, 1.03, 0.1, 2.0  # the bars of issue 13
HEAD = """# Every peer in one table

Made by `make bench-peers` from the figures in `benches/peers/cells/`; no line is written by hand. All peers
run on the same test trajectories, which no fit has seen, and all are sampled by `lmsd.sample`. The files of
`benches/peers/` say what each peer does and cite its source. A network without cells there has the section of
an earlier run, whose cells were lost.

- **Evaluations** are those of the network for one image, divided by 2 where guidance makes two of a call: the
  NFE of the tables. Caches are brought to a mean of that many.
- **Figures** are means over seeds of the noise that the fits see, with half of the range after the sign ±. A
  figure without ± has one seed, or depends on none.
- **Fields.** The best of the published solvers and of the strongest that tuning makes of them (`lmsd.rivals`:
  low first noise levels, analytical first step, several grids) is chosen on the test trajectories themselves,
  which favours it.
- **Cost of a fit** counts everything: teacher, starts, selection. An image-call is one trajectory through the
  model once, guidance included. A call through which gradients flow counts as 3. (The network's own weights
  need no gradient, so that 2 would be nearer to the arithmetic; it takes the memory of all calls besides.)
- **Seconds** are CPU seconds of one thread, given as ratios to lmsd.distill within the same run.
- **PSNR** is that of each picture to the teacher's from the same noise. **LPIPS-like** distances and
  **Frechet** distances are in features of a classifier that no fit sees; Frechet distances of so few pictures
  are too large, all by about as much: compare them with the teacher's own.
"""


def load(folder):
    """network -> all its cells."""
    found = defaultdict(list)
    for file in sorted(Path(folder).glob("*/*.json")):
        cell = json.loads(file.read_text())
        found[cell["network"]].append(cell)
    return dict(found)


class Figures:
    """The figures of one network by peer and NFE."""

    def __init__(self, cells):
        self.cells = defaultdict(dict)  # peer -> NFE -> cells
        for cell in cells:
            self.cells[cell["peer"]].setdefault(cell["nfe"], []).append(cell)
        self.nfes = sorted(self.cells.get(OURS, {}))
        self.peers = [peer for peer in PEERS if self.cells.get(peer)]
        self.teacher = next(iter(self.cells["teacher"].values()), [None])[0]
        self.test = cells[0]["settings"]["test"]

    def values(self, peer, nfe, metric, part="metrics"):
        found = [cell[part].get(metric) for cell in self.cells[peer].get(nfe, [])]
        return [value for value in found if value is not None]

    def mean(self, peer, nfe, metric, part="metrics"):
        found = self.values(peer, nfe, metric, part)
        return statistics.fmean(found) if found else None

    def line(self, peer, metric):
        """NFE -> mean."""
        found = {nfe: self.mean(peer, nfe, metric) for nfe in sorted(self.cells[peer])}
        return {nfe: value for nfe, value in found.items() if value is not None}


def shown(values, form):
    """Mean and half of the range."""
    if not values:
        return ""
    text = form.format(statistics.fmean(values))
    return text + (f" ±{form.format((max(values) - min(values)) / 2)}" if max(values) > min(values) else "")


def table(head, rows):
    """Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def metric_table(figures, metric):
    words, _, form = METRICS[metric]
    rows = []
    for peer in figures.peers:
        cells = [shown(figures.values(peer, nfe, metric), form) for nfe in figures.nfes]
        if any(cells):
            title = PEERS[peer][0]
            rows.append([f"**{title}**" if peer == OURS else title, *cells])
    own = figures.teacher and figures.teacher["metrics"].get(metric)
    note = f" (the teacher's own: {form.format(own)})" if metric == "frechet_real" and own else ""
    head = ["evaluations", *map(str, figures.nfes)]
    return f"{words[0].upper()}{words[1:]}{note}:\n\n{table(head, rows)}" if rows else ""


def needed(line, goal):
    """Evaluations at which `line` (NFE -> distance) comes to `goal`, by logarithms between; or None."""
    nfes = sorted(line)
    if not nfes:
        return None
    if line[nfes[0]] <= goal:
        return float(nfes[0])
    for low, high in zip(nfes, nfes[1:], strict=False):
        if line[high] <= goal < line[low]:
            part = math.log(line[low] / goal) / math.log(line[low] / line[high])
            return low + part * (high - low)
    return None


def needed_table(figures):
    """With how many evaluations each peer comes as near as lmsd.distill does with n."""
    rows = []
    for peer in figures.peers:
        line, cells = figures.line(peer, "distance"), []
        for nfe in figures.nfes:
            count = needed(line, figures.mean(OURS, nfe, "distance"))
            least = count is not None and count == min(line)
            cells.append(f"more than {max(line)}" if count is None else f"{'at most ' * least}{count:.1f}")
        if peer != OURS:
            rows.append([PEERS[peer][0], *cells])
    head = ["as near as lmsd.distill at", *map(str, figures.nfes)]
    return "Evaluations that a peer needs, between measured ones by interpolation:\n\n" + table(head, rows)


def cost_table(figures):
    rows = []
    for peer in figures.peers:
        if peer in FIELDS:
            continue  # what choosing on the test costs is no fit
        calls = [figures.values(peer, nfe, "image_calls", "cost") for nfe in figures.nfes]
        thousands = [shown([value / 1000 for value in some], "{:.0f}") for some in calls]
        rows.append(
            [PEERS[peer][0], *thousands, ratios(figures, peer, "cost"), ratios(figures, peer, "metrics")]
        )
    head = [
        "thousands of image-calls at",
        *map(str, figures.nfes),
        "seconds of the fit",
        "seconds of sampling",
    ]
    return "Cost of a fit; seconds in units of lmsd.distill's, median over what was run:\n\n" + table(
        head, rows
    )


def ratios(figures, peer, part):
    """Median ratio of seconds to those of lmsd.distill, in words."""
    found = []
    for nfe in figures.nfes:
        own, others = (figures.mean(who, nfe, "seconds", part) for who in (OURS, peer))
        if own and others:
            found.append(others / own)
    return f"{statistics.median(found):.2g}" if found else ""


def better(metric, one, other):
    """By which part `one` is better than `other`; decibels for the PSNR."""
    return one - other if METRICS[metric][1] else 1 - one / other


def losses(figures):
    """Lines that say where a peer's mean is better than lmsd.distill's."""
    lines = []
    for metric, (words, more, form) in METRICS.items():
        for peer in figures.peers:
            parts = []
            for nfe in figures.nfes:
                own, others = figures.mean(OURS, nfe, metric), figures.mean(peer, nfe, metric)
                if peer == OURS or own is None or others is None or better(metric, others, own) <= 0:
                    continue
                gain = better(metric, others, own)
                by = f"{gain:.2f} dB" if more else f"{100 * gain:.1f} %"
                parts.append(f"{nfe}: {form.format(others)} against {form.format(own)} ({by})")
            if parts:
                lines.append(f"- {words}, **{PEERS[peer][0]}** at {'; '.join(parts)}.")
    return lines or ["Nowhere among what was run."]


def target(name, good, text):
    return f"- {'Met' if good else '**Missed**'}: {name}: {text}."


def field_targets(figures, nfe, own):
    """Against the fields."""
    double = figures.mean("published", TWICE * nfe, "distance")
    if nfe >= 4 and double:
        text = f"{own:.4f}, as published {double:.4f}"
        yield target(f"{nfe} evaluations at most the best as published at {TWICE * nfe}", own <= double, text)
    line = figures.line("strongest", "distance")
    if nfe >= 4 and line:
        count = needed(line, own)
        good = count is None and max(line) >= FEWER * nfe or count is not None and count >= FEWER * nfe
        text = f"it needs {f'{count:.1f}' if count else f'more than {max(line)}'}"
        name = f"{nfe} evaluations, {FEWER} times fewer than the strongest"
        open_yet = count is None and max(line) < FEWER * nfe
        yield f"- Open, not measured far enough: {name}: {text}." if open_yet else target(name, good, text)
    psnr, others = (figures.mean(who, nfe, "psnr") for who in (OURS, "published"))
    if 4 <= nfe <= 6 and others:
        gain = psnr - others
        name = f"{nfe} evaluations, PSNR {DECIBELS:g} dB above the best as published"
        yield target(name, gain >= DECIBELS, f"{gain:+.1f} dB")


def gradient_targets(figures, nfe, own):
    """Against the best peer that takes gradients."""
    peers = {peer: figures.mean(peer, nfe, "distance") for peer in GRADIENTS}
    peers = {peer: distance for peer, distance in peers.items() if distance}
    if peers:
        best = min(peers, key=peers.get)
        cost, others = (figures.mean(who, nfe, "image_calls", "cost") for who in (OURS, best))
        far, part = own / peers[best], cost / others
        name = f"{nfe} evaluations, at most {100 * ABOVE - 100:.0f} % above the best peer by gradients"
        name += f" ({PEERS[best][0]}) at a tenth of its cost"
        text = f"{100 * far - 100:+.1f} %, {part:.2f} of the image-calls"
        yield target(name, far <= ABOVE and part <= TENTH, text)


def targets(figures):
    for nfe in figures.nfes:
        own = figures.mean(OURS, nfe, "distance")
        yield from field_targets(figures, nfe, own)
        yield from gradient_targets(figures, nfe, own)


def choices(figures):
    """What the peers chose, at each NFE with the first seed."""
    rows = []
    for peer in figures.peers:
        if peer != OURS:
            for nfe in figures.nfes:
                for cell in figures.cells[peer].get(nfe, [])[:1]:
                    rows.append([PEERS[peer][0], str(nfe), cell["words"]])
    return table(["peer", "evaluations", "what it came to"], rows)


def picture(figures, name, file):
    """Distance against evaluations, and against what the fit costs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    middle = min(figures.nfes, key=lambda nfe: abs(nfe - 5))
    for i, peer in enumerate(figures.peers):
        line = figures.line(peer, "distance")
        style = {"color": f"C{i}", "marker": "o", "lw": 2.5 if peer == OURS else 1.2}
        left.plot(list(line), list(line.values()), label=PEERS[peer][0], **style)
        cost, far = figures.mean(peer, middle, "image_calls", "cost"), line.get(middle)
        if cost and far and peer not in FIELDS:
            right.plot(cost / 1000, far, "o", color=f"C{i}", ms=9 if peer == OURS else 6)
    for axes, words in (
        (left, "evaluations"),
        (right, f"thousands of image-calls of the fit, {middle} evaluations"),
    ):
        axes.set(xlabel=words, yscale="log")
        axes.grid(alpha=0.3, which="both")
    right.set(xscale="log")
    for axis in (left.yaxis, right.yaxis, right.xaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(lambda value, _: f"{value:,g}")
        axis.set_minor_formatter(NullFormatter())
    left.xaxis.set_major_locator(FixedLocator(list(figures.nfes)))
    left.set(ylabel="mean distance to the teacher", title=name)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    figure.savefig(file, dpi=90)
    plt.close(figure)


def section(name, figures, image):
    """All about one network."""
    parts = [
        f"## {name}\n",
        f"{figures.test} test trajectories. {figures.words}\n",
        f"![Distances]({image})\n",
    ]
    parts += [text for metric in METRICS if (text := metric_table(figures, metric))]
    parts += [needed_table(figures), cost_table(figures)]
    parts += ["### Targets\n", "\n".join(targets(figures)) + "\n"]
    parts += ["### Where we lose\n", "\n".join(losses(figures)) + "\n"]
    parts += ["### What was chosen, first seed\n", choices(figures)]
    return "\n".join(parts)


def sections_of(page):
    """name of a network -> its section in the page as it is."""
    _, *parts = page.read_text().split("\n## ") if page.exists() else [""]
    return {part.split("\n")[0]: f"## {part}" for part in parts}


def write(folder, page):
    """The page and its pictures, from the cells in `folder`; networks without one keep their section."""
    from .networks import NETWORKS

    page, cells, sections = Path(page), load(folder), []
    page.parent.mkdir(parents=True, exist_ok=True)
    kept = sections_of(page)
    for name, (kind, guidance) in NETWORKS.items():
        if any(cell["peer"] == OURS for cell in cells.get(name, [])):
            figures = Figures(cells[name])
            seeds = max(len(some) for some in figures.cells[OURS].values())
            figures.words = f"Seeds: {seeds}. Guidance {guidance:g}. Features: {kind.words}."
            image = f"results_{name.replace(' ', '_')}.png"
            picture(figures, name, page.parent / image)
            sections.append(section(name, figures, image))
        elif name in kept:
            sections.append(kept[name].rstrip("\n") + "\n")
    page.write_text("\n".join([HEAD, *sections]))
