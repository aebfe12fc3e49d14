"""The demo, in whole but small: what its page says is what was measured."""

import re
import sys

import demo
import lmsd
import numpy as np
import pytest
from common import config, teacher
from judge import psnr


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys, "argv", ["demo.py", "--quick", "--nfe", "3", "--fit-guidance", "--out", str(folder)]
        )
        patch.setattr(demo, "BEYOND", (6,))
        assert demo.main() == 0
    return folder


def test_the_page_shows_pictures_and_figures(out):
    page = (out / "report.html").read_text()
    rows = re.findall(r"<tr>(<td.*?)</tr>", page)
    names = [re.findall(r"<td.*?>(.*?)</td>", row)[1] for row in rows]
    assert names == ["distilled", "best as published", "strongest"]
    assert page.count("data:image/png;base64,") == 3 and "interrupted" not in page
    for name in ("pictures", "few", "distance", "schedules"):
        assert (out / f"{name}.png").stat().st_size > 5000


def test_its_distance_is_that_of_the_schedule(out):
    """Measured anew on the same trajectories; and these have prompts that no fit has."""
    page = (out / "report.html").read_text()
    said = float(re.search(r">distilled</td><td.*?>([\d.]+)</td>", page)[1])
    own = demo.problem("pixel", 3.0, demo.BATCH, 1, test=True)
    schedule = lmsd.Schedule.load(out / "nfe03.json")

    def begin(index):
        return own.begin(index - (1 << 21))  # the first that lmsd.compare asks for

    (distance,) = lmsd.compare([schedule], own.model, begin, own.like, **config(own) | {"held_out": 8})
    assert distance == pytest.approx(said, abs=2e-3)
    assert not set(own.prompts) & set(demo.problem("pixel").prompts)


def test_its_psnr_is_that_of_the_schedules_pictures(out):
    page = (out / "report.html").read_text()
    said = float(re.search(r">distilled</td><td.*?>[\d.]+</td><td.*?>([\d.]+)</td>", page)[1])
    own = demo.problem("pixel", 3.0, demo.BATCH, 1, test=True)

    def pictures(schedule):
        ends = [lmsd.sample(schedule, own.begin(index), own.model) for index in range(2)]
        return own.emoji.pictures(np.concatenate(ends))

    found, wanted = pictures(lmsd.Schedule.load(out / "nfe03.json")), pictures(teacher(own))
    assert psnr(found, wanted).mean() == pytest.approx(said, abs=0.06)
