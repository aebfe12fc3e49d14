"""The digits model in the running host, without anything of ours: what the other tests may rely on."""

import io
import sys
import time

import numpy as np
import pytest
import workflows
from host import ROOT, Rejected

STEPS = 8


def opened(image: bytes):
    from PIL import Image

    return Image.open(io.BytesIO(image))


def pixels(image: bytes):
    return np.asarray(opened(image).convert("L"), float)


@pytest.mark.parametrize("workflow", [workflows.custom, workflows.ksampler])
@pytest.mark.parametrize("video", [False, True], ids=["4-D", "5-D"])
@pytest.mark.parametrize("prediction", ["edm", "eps", "v_prediction", "flow"])
def test_digits(host, workflow, prediction, video):
    """Ten pictures that are mostly black and white, with progress and previews on the way."""
    scheduler = "simple" if prediction == "flow" else "karras"
    run = host.run(workflow(prediction, steps=STEPS, scheduler=scheduler, video=video, seed=3))
    assert run.status == "success", run.error
    assert [p["value"] for p in run.progress if p["node"] == "sample"] == list(range(1, STEPS + 1))
    assert {p["max"] for p in run.progress} == {STEPS}
    assert len(run.previews) >= STEPS - 1
    assert opened(run.previews[0].data).format == "JPEG"
    images = [pixels(image) for image in host.images(run)]
    assert len(images) == 10 and {image.shape for image in images} == {(128, 128)}
    assert all(image.min() < 40 and image.max() > 200 for image in images)
    assert "save" in run.executed


def test_the_image_follows_the_label(host):
    """The repository's classifier sees the digits that were asked for."""
    sys.path.insert(0, str(ROOT / "examples" / "digits"))
    from classifier import Classifier

    run = host.run(workflows.custom(batch=50, steps=20, seed=5))
    images = np.stack([pixels(image)[8::16, 8::16] for image in host.images(run)])
    found = Classifier().predict(images[:, None] / 127.5 - 1)
    assert np.mean(found == np.arange(50) % 10) > 0.9


def test_both_samplers_agree(host):
    first, second = (host.run(make(seed=11, steps=6)) for make in (workflows.custom, workflows.ksampler))
    for a, b in zip(host.images(first), host.images(second), strict=True):
        assert np.array_equal(pixels(a), pixels(b))


def test_interrupt(host):
    """Stops within a step or two, and the host goes on afterwards."""
    slow = workflows.custom(steps=40, delay_ms=100, seed=17)
    prompt_id = host.queue(slow)
    host.until(lambda event: event.kind == "progress" and event.data["value"] >= 2)
    asked = time.perf_counter()
    host.interrupt()
    run = host.wait(prompt_id)
    assert run.status == "interrupted"
    assert time.perf_counter() - asked < 2
    assert 2 <= len(run.progress) < 15
    assert host.run(workflows.custom(seed=18)).status == "success"


def test_errors_are_seen(host):
    run = host.run(workflows.custom(text="11"))
    assert run.status == "error"
    assert run.error["node_id"] == "positive" and "labels are 0 to 9" in run.error["exception_message"]


def test_what_validation_refuses_is_seen(host):
    with pytest.raises(Rejected) as refused:
        host.run(workflows.custom(prediction="nothing"))
    assert "model" in refused.value.node_errors


def test_object_info(host):
    info = host.object_info("DigitsModel")
    assert info["output"] == ["MODEL"] and info["python_module"].endswith("digits_pack")
