"""The pack's example workflows in the host's page: they load whole, survive a save, run, and have thumbnails.

They run with the digits model in the place of a checkpoint.
"""

import io
import json

import browser
import lmsd
import pytest
from host import PACKS, Host

WORKFLOWS = sorted((PACKS["comfyui-lmsd"] / "example_workflows").glob("*.json"))
CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
SCHEDULE = "my model nfe05.json"
NOTES = {"MarkdownNote"}
DIGITS = {  # node type -> that of the digits pack, its values, its inputs
    "CheckpointLoaderSimple": ("DigitsModel", ["edm", False, 0], []),
    "CLIPTextEncode": ("DigitsPrompt", None, []),
    "LmsdPrompts": ("DigitsPrompt", ["0,1,2,3,4,5,6,7,8,9"], []),
    "EmptyLatentImage": ("DigitsLatent", [10, False], []),
    "VAEDecode": ("DigitsDecode", [], ["samples"]),
}
pytestmark = pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing()))


@pytest.fixture(scope="module")
def host(comfyui):
    """One with the files that the workflows name: a checkpoint, which is empty, and a schedule."""
    with Host(comfyui) as running:
        models = running.base / "models"
        for folder in ("checkpoints", "lmsd_schedules"):
            (models / folder).mkdir(exist_ok=True)
        (models / "checkpoints" / CHECKPOINT).touch()
        lmsd.solve("dpmpp_2m", nfe=5, sigma_end=0.0).save(models / "lmsd_schedules" / SCHEDULE)
        yield running


def each(function):
    return pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)(function)


def named_links(workflow):
    """Every link as (node, its output, node, name of its input)."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    return sorted(
        (start, output, end, nodes[end]["inputs"][place]["name"])
        for _, start, output, end, place, _ in workflow["links"]
    )


def with_digits(workflow):
    """The same with the digits model: nodes of other types, without the links that they do not have."""
    workflow = json.loads(json.dumps(workflow))
    gone, nodes = set(), {node["id"]: node for node in workflow["nodes"]}
    for node in workflow["nodes"]:
        if node["type"] == "SamplerCustom":
            node["widgets_values"][3] = 3.0
        if node["type"] == "CFGGuider":
            node["widgets_values"] = [3.0]
        if node["type"] == "LmsdDistill":
            node["widgets_values"] = [3.0, 0, "digits", 5, 0, 10, 10, 1.0, True]
        if node["type"] not in DIGITS:
            continue
        kind, values, inputs = DIGITS[node["type"]]
        if values is None:  # a prompt
            values = ["" if "Negative" in node["title"] else "0,1,2,3,4,5,6,7,8,9"]
        node |= {"type": kind, "widgets_values": values, "properties": {"Node name for S&R": kind}}
        gone |= {i["link"] for i in node["inputs"] if i["name"] not in inputs}
        node["inputs"] = [i for i in node["inputs"] if i["name"] in inputs]
        for output in node["outputs"][1:]:
            gone |= set(output["links"])
        node["outputs"] = node["outputs"][:1]
    workflow["links"] = [link for link in workflow["links"] if link[0] not in gone]
    for number, _, _, end, place, _ in workflow["links"]:
        assert nodes[end]["inputs"][place]["link"] == number
    return workflow


def overlapping(nodes):
    """Pairs of nodes, with their titles, that lie on one another."""
    boxes = [(n["type"], *n["pos"], n["pos"][0] + n["size"][0], n["pos"][1] + n["size"][1]) for n in nodes]
    return [
        (a[0], b[0])
        for i, a in enumerate(boxes)
        for b in boxes[:i]
        if a[1] < b[3] and b[1] < a[3] and a[2] - 30 < b[4] and b[2] - 30 < a[4]
    ]


# ---- as they are


@each
def test_a_workflow_loads_whole(host, path, tmp_path):
    """No fault, every link and value in its place, nothing on top of something else, and so after a save."""
    workflow = json.loads(path.read_text())
    seen = browser.look(host, path, save=tmp_path / "saved.json", screenshot=tmp_path / "page.png")
    assert not seen.faults
    assert not [n for n in seen.nodes if n["unconnected"]]
    for node in workflow["nodes"]:
        (shown,) = [n for n in seen.nodes if n["id"] == str(node["id"])]
        values = node.get("widgets_values", [])
        assert shown["type"] == node["type"] and list(shown["widgets"].values())[: len(values)] == values
        assert shown["size"] == node["size"], f"{node['type']} is made larger by the page"
    assert not overlapping(seen.nodes)
    prompt = seen.report["prompt"]
    assert {prompt[i]["class_type"] for i in prompt} == {n["type"] for n in workflow["nodes"]} - NOTES
    linked = [
        (int(value[0]), value[1], int(i), name)
        for i in prompt
        for name, value in prompt[i]["inputs"].items()
        if isinstance(value, list)
    ]
    assert sorted(linked) == named_links(workflow)
    saved = json.loads((tmp_path / "saved.json").read_text())
    assert len(saved["nodes"]) == len(workflow["nodes"]) and named_links(saved) == named_links(workflow)
    assert [g["title"] for g in saved["groups"]] == [g["title"] for g in workflow["groups"]]
    assert seen.report["saved_prompt"] == prompt


def test_the_workflows_name_what_a_user_has_or_makes():
    """One checkpoint, which the host's own templates use too, and the file that distilling makes."""
    assert [path.stem for path in WORKFLOWS] == ["compare side by side", "distill then sample", "sample"]
    for path in WORKFLOWS:
        nodes = {node["type"]: node for node in json.loads(path.read_text())["nodes"]}
        assert nodes["CheckpointLoaderSimple"]["widgets_values"] == [CHECKPOINT]
        if "LmsdDistill" in nodes:
            name, nfe = nodes["LmsdDistill"]["widgets_values"][2:4]
            assert f"{name} nfe{nfe:02d}.json" == SCHEDULE
        else:
            assert nodes["LmsdLoadSchedule"]["widgets_values"] == [SCHEDULE]


# ---- with a model


@each
def test_a_workflow_runs(host, path, tmp_path):
    """With the digits model, queued in the page: its pictures arrive and are shown."""
    workflow = with_digits(json.loads(path.read_text()))
    seen = browser.look(host, workflow, queue=True, screenshot=tmp_path / "page.png")
    assert not seen.faults
    assert seen.run["status"] == "success", seen.run
    sizes = {node["id"]: node["size"] for node in seen.nodes}
    for node in seen.report["after"]:
        assert node["size"] == sizes[node["id"]], f"{node['type']} grows by its previews"
    for node in seen.report["after"]:
        if node["type"] not in ("PreviewImage", "SaveImage"):
            continue
        assert node["id"] in seen.run["executed"]
        if node["title"] == "What it gains":
            assert [width > 1000 for width, _ in node["pictures"]] == [True]
        else:
            assert node["pictures"] == [[128, 128]] * 10
    if path.stem == "distill then sample":
        file = json.loads((host.base / "models" / "lmsd_schedules" / "digits nfe05.json").read_text())
        assert file["made_by"]["improved"] and file["made_by"]["compared"]


# ---- in the list of templates


@each
def test_a_workflow_has_a_thumbnail(host, path):
    from PIL import Image

    data = host.request(f"/api/workflow_templates/comfyui-lmsd/{path.stem.replace(' ', '%20')}.jpg")
    image = Image.open(io.BytesIO(data))
    assert image.format == "JPEG" and image.size == (400, 400) and len(data) < 60_000


def test_the_page_lists_them_with_thumbnails(host, tmp_path):
    seen = browser.look(host, None, templates="comfyui-lmsd", screenshot=tmp_path / "templates.png")
    found = {card["title"]: card["width"] for card in seen.report["templates"]}
    assert found == {path.stem: 400 for path in WORKFLOWS}
