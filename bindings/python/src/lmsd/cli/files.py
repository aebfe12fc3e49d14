"""Files that the command line writes, and what is said where it cannot."""

import contextlib
import json
from pathlib import Path

import lmsd
from lmsd._files import write


@contextlib.contextmanager
def writing(path):
    """What the system refuses, as an Error that names the file."""
    try:
        yield
    except OSError as error:
        raise lmsd.Error(f"{path} cannot be written: {error.strerror or error}", lmsd.Status.IO) from error


class Results:
    """Where the results of a distillation go: `--out`, a folder or a file `NAME.json`.

    In a folder nfe<NN>.json, report.json and checkpoint.jsonl. A file is the schedule itself or, for a
    family, stands for NAME-nfe<NN>.json; beside it are NAME-report.json and NAME-checkpoint.jsonl.
    """

    def __init__(self, out: str, family: bool):
        path = Path(out)
        is_file = path.suffix == ".json"
        self.folder = path.parent if is_file else path
        self.prefix = f"{path.stem}-" if is_file else ""
        self.single = path if is_file and not family else None

    def make_folder(self) -> None:
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{self.prefix}checkpoint.jsonl"

    def save(self, distilled: lmsd.Distilled) -> list[Path]:
        """Writes all of it; the files of the schedules, in the order of their NFE."""
        if not self.prefix:
            with writing(self.folder):
                return distilled.save(self.folder)
        report = self.folder / f"{self.prefix}report.json"
        with writing(report):
            write(report, json.dumps(distilled.report, indent=2) + "\n")
        paths = [self.single or self.folder / f"{self.prefix}nfe{n:02d}.json" for n in distilled.schedules]
        for path, schedule in zip(paths, distilled.schedules.values(), strict=True):
            schedule.save(path)
        return paths
