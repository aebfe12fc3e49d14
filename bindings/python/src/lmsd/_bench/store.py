"""What a run leaves in its folder, and what a second run finds there.

bench.json       settings, rows of the table, image-calls spent
schedules/       nfe<NN>.json; nfe<NN>-checkpoint.jsonl of a fit that was stopped
teacher/         NNNN.png of every test prompt; rank-NNNN.png of those to choose by
pictures/        those of each row that go onto the sheet
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

import lmsd

from .. import _files
from ..cli.files import writing


class Store:
    """`facts`: what bench.json has beside the settings; `put` writes it."""

    def __init__(self, folder: str, settings: dict):
        self.folder, self.settings = Path(folder), json.loads(json.dumps(settings))
        self.file = self.folder / "bench.json"
        self.facts = {"rows": [], "image_calls": {}}
        if self.file.exists():
            self._read()
        with writing(self.folder):
            for name in ("schedules", "teacher", "pictures"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)

    def _read(self) -> None:
        try:
            found = json.loads(self.file.read_text())
            old = found.pop("settings")
        except (ValueError, KeyError) as error:
            raise lmsd.Error(f"{self.file} is damaged: {error}") from None
        for name, value in self.settings.items():
            if old.get(name) != value:
                raise lmsd.Error(
                    f"{self.folder} holds a run with another {name} ({old.get(name)}; this one has {value}):"
                    " give another --out, or remove it"
                )
        self.facts |= found

    def put(self) -> None:
        with writing(self.file):
            _files.write(self.file, json.dumps({"settings": self.settings, **self.facts}, indent=1) + "\n")

    def spend(self, what: str, image_calls: int) -> None:
        """Adds image-calls to an account of bench.json: teacher, fits, choice, test."""
        self.facts["image_calls"][what] = self.facts["image_calls"].get(what, 0) + int(image_calls)

    def row(self, nfe: int, family: str) -> dict | None:
        return next((r for r in self.facts["rows"] if (r["nfe"], r["family"]) == (nfe, family)), None)

    def add(self, row: dict) -> None:
        self.facts["rows"].append(row)
        self.put()

    def schedule(self, nfe: int) -> Path:
        return self.folder / "schedules" / f"nfe{nfe:02d}.json"

    def checkpoint(self, nfe: int) -> Path:
        return self.folder / "schedules" / f"nfe{nfe:02d}-checkpoint.jsonl"

    def picture(self, part: str, number: int) -> Path:
        return self.folder / "teacher" / f"{'rank-' if part == 'rank' else ''}{number:04d}.png"

    def of_row(self, nfe: int, family: str) -> list[Path]:
        """The pictures of a row that were kept, in the order of the prompts."""
        return sorted((self.folder / "pictures").glob(f"{slug(nfe, family)}-[0-9][0-9].png"))

    def keep(self, nfe: int, family: str, pictures: np.ndarray) -> None:
        for k, picture in enumerate(pictures):
            write(self.folder / "pictures" / f"{slug(nfe, family)}-{k:02d}.png", picture)


def slug(nfe: int, family: str) -> str:
    return f"nfe{nfe:02d}-" + "".join(c if c.isalnum() else "-" for c in family.lower())


def write(path: Path, picture: np.ndarray) -> None:
    """float32 [H, W, 3] in 0..1 as PNG, whole or not at all."""
    with writing(path), _files.replacing(path) as stream:
        Image.fromarray(np.rint(picture * 255).clip(0, 255).astype(np.uint8)).save(stream, "PNG")


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.float32) / 255
