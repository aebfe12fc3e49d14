"""A fixed part of benches/diffusers_pipelines.py, and the page that it makes."""

import sys
from pathlib import Path

import pytest
import torch
from diffusers_models import SIZE, digits_pipeline, quiet, stock

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # theirs, for numpy 2
ROOT = Path(__file__).parents[3]
WORKS = {
    "stable_diffusion",
    "stable_diffusion_3",
    "flux",
    "cogview4",
    "flux2",
    "dit",
    "image_to_image",
    "inpainting",
}
REFUSED = {"inpainting_by_blending"}  # to distill; it samples


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benches")
    import diffusers_pipelines

    yield diffusers_pipelines
    sys.modules.pop("diffusers_pipelines")


@pytest.mark.parametrize("name", sorted(WORKS | REFUSED))
def test_stock_pipelines_sample_and_are_distilled_or_say_why_not(bench, name):
    pipe, one, _ = stock(name)
    inputs = {key: value[None] for key, value in one.items()} | {"guidance_scale": 4.0}
    if name == "dit":
        inputs["class_labels"] = inputs["class_labels"].tolist()
    elif name in SIZE or "flux" in name or name.endswith("_3"):
        inputs |= {"height": SIZE.get(name, 8), "width": SIZE.get(name, 8)}
    row = bench.trials(pipe, inputs)
    assert row["sampled"] == ["works", ""]
    state, reason = row["distilled"]
    if name in WORKS:
        assert (state, reason) == ("works", "")
    else:
        assert state == "refused" and "puts the known part" in reason


def test_a_pipeline_that_crashes_is_told_from_one_that_is_refused(bench):
    class Broken(type(digits_pipeline())):
        def __call__(self, class_labels=None, num_inference_steps=3, generator=None, latents=None):
            raise ValueError("of its own")

    pipe = quiet(digits_pipeline())
    pipe.__class__ = Broken
    row = bench.trials(pipe, {"class_labels": [1]})
    assert row["sampled"] == row["distilled"] == ["crashed", "of its own"]


def test_the_page_counts_the_rows(bench):
    rows = [
        {
            "pipeline": "A",
            "built": True,
            "scheduler": "S",
            "sampled": ["works", ""],
            "distilled": ["refused", "a | b"],
        },
        {"pipeline": "B", "built": False, "why": "no hub"},
    ]
    page = bench.page(rows, "1.2.3")
    assert "Of 2 pipeline classes 1 were built" in page
    assert "| sampled | 1 | 0 | 0 |" in page and "| distilled | 0 | 1 | 0 |" in page
    assert "| A | S | yes | refused: a / b |" in page and "- no hub: B." in page


def test_their_tests_are_found_by_the_pipeline_that_they_name(bench, tmp_path):
    folder = tmp_path / "tests" / "pipelines" / "one"
    folder.mkdir(parents=True)
    for place in (folder, folder.parent, folder.parent.parent):
        (place / "__init__.py").touch()
    (folder / "test_one.py").write_text(
        "class APipeline:\n    pass\n\n\nclass Tests:\n    pipeline_class = APipeline\n\n"
        "    def get_dummy_components(self):\n        raise OSError('on the hub')\n\n"
        "    def get_dummy_inputs(self):\n        return {}\n"
    )
    theirs = tmp_path / "tests"
    files = bench.files_of_tests(theirs)
    assert list(files) == ["APipeline"]
    try:
        row = bench.examine("APipeline", files["APipeline"], theirs)
    finally:
        sys.path.remove(str(tmp_path))
        for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
            del sys.modules[name]
    assert row == {
        "pipeline": "APipeline",
        "built": False,
        "why": "its dummy components need files of the hub",
    }
    assert not bench.examine("BPipeline", [], theirs)["built"]


def test_the_page_in_the_docs_has_no_crash():
    page = (ROOT / "docs" / "diffusers-pipelines.md").read_text()
    counts = [
        line.split("|")[2:5]
        for line in page.splitlines()
        if line.startswith(("| sampled |", "| distilled |"))
    ]
    assert len(counts) == 2 and all(int(row[2]) == 0 and int(row[0]) > 50 for row in counts)
