"""What a run found, as a table, sentences and a sheet of pictures."""

import math

import numpy as np
from PIL import Image, ImageDraw

from .measures import interval
from .protocol import DISTILLED, FIELD
from .store import Store, read

HEAD = ["calls", "sampler", "options", "PSNR, dB", "+-", "features", "evaluations", "time"]
MARGIN = 150  # pixels for the names of a sheet's rows
TILE = 96  # pixels that small pictures are enlarged to


def table(store: Store) -> list[list[str]]:
    """Texts of the rows: nearest first, at each number of calls. Time: a picture's, over the teacher's."""
    teacher = store.facts.get("teacher_seconds") or math.nan
    rows = [HEAD]
    for row in sorted(store.facts["rows"], key=lambda r: (r["nfe"], -r["psnr"])):
        cells = [f"{row['calls']:g}", row["family"], row["which"], f"{row['psnr']:.2f}"]
        cells += [f"{row['psnr_interval']:.2f}", f"{row['features']:.3f}", f"{row['evaluations']:g}"]
        rows.append([*cells, f"{row['seconds'] / teacher:.2f}"])
    return rows


def sentences(store: Store, features: str) -> list[str]:
    """The distilled schedule against the best other at each number of calls, paired; what was spent."""
    found = []
    for nfe in sorted({row["nfe"] for row in store.facts["rows"]}):
        own = store.row(nfe, DISTILLED)
        others = [r for r in store.facts["rows"] if r["nfe"] == nfe and r["family"] != DISTILLED]
        if own and others:
            best = max(others, key=lambda r: r["psnr"])
            gain = np.subtract(own["psnr_each"], best["psnr_each"])
            text = f"{nfe} calls: distilled {gain.mean():+.2f} dB +- {interval(gain):.2f} against "
            text += best["family"]
            found.append(
                text + f" ({best['which']}), the best other; nearer in {(gain > 0).mean():.0%} of pictures"
            )
    spent = ", ".join(f"{what} {count}" for what, count in store.facts["image_calls"].items())
    found.append(f"image-calls (guided predictions of one picture): {spent}")
    found.append(f"features: distance to the teacher's over that between two of its pictures, of {features}")
    found.append("evaluations: rows that the network was given for a picture; +-: 95 % intervals of means")
    return found


def sheet(store: Store, count: int, nfes: list[int]) -> np.ndarray | None:
    """uint8 [H, W, 3]: the teacher's; at each number of calls the distilled, the best other, the field's."""
    rows = [("teacher", [store.picture("test", k) for k in range(count)])]
    for nfe in nfes:
        measured = [r for r in store.facts["rows"] if r["nfe"] == nfe]
        others = [r for r in measured if r["family"] not in (DISTILLED, FIELD)]
        families = [DISTILLED] if store.row(nfe, DISTILLED) else []
        families += [max(others, key=lambda r: r["psnr"])["family"]] if others else []
        families += [FIELD] if store.row(nfe, FIELD) else []
        rows += [(f"{nfe}: {family}", store.of_row(nfe, family)[:count]) for family in families]
    rows = [(name, paths) for name, paths in rows if paths and all(path.exists() for path in paths)]
    if not rows:
        return None
    pictures = [(name, [read(path) for path in paths]) for name, paths in rows]
    height, width = pictures[0][1][0].shape[:2]
    factor = max(1, TILE // height)
    height, width = height * factor, width * factor
    page = Image.new("RGB", (MARGIN + count * width, len(pictures) * height), "white")
    pen = ImageDraw.Draw(page)
    for top, (name, tiles) in enumerate(pictures):
        pen.multiline_text((4, top * height + 4), "\n".join(wrapped(name)), fill="black")
        for left, tile in enumerate(tiles):
            image = Image.fromarray(np.rint(tile * 255).astype(np.uint8)).resize(
                (width, height), Image.NEAREST
            )
            page.paste(image, (MARGIN + left * width, top * height))
    return np.asarray(page)


def wrapped(name: str, width: int = 22) -> list[str]:
    """Lines of at most about `width` letters."""
    lines = [""]
    for word in name.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
