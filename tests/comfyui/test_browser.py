"""The host's page in a real browser: the digits workflow loads, runs and shows its pictures."""

import copy
import json
from pathlib import Path

import browser
import pytest

WORKFLOW = Path(__file__).with_name("digits.json")
pytestmark = pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing()))


def test_digits_workflow(host, tmp_path):
    seen = browser.look(host, WORKFLOW, queue=True, screenshot=tmp_path / "digits.png")
    assert not seen.faults
    assert {node["type"] for node in seen.nodes} >= {"DigitsModel", "SamplerCustomAdvanced"}
    assert not any(node["unconnected"] for node in seen.nodes)
    assert seen.run["status"] == "success"
    assert seen.run["progress"] == 8 and seen.run["previews"] > 0
    assert (tmp_path / "digits.png").stat().st_size > 50_000


def test_faults_are_seen(host, tmp_path):
    """A node type that does not exist, and a value that its list does not have."""
    workflow = json.loads(WORKFLOW.read_text())
    types = {node["type"]: node for node in workflow["nodes"]}
    types["KSamplerSelect"]["widgets_values"] = ["no_such_sampler"]
    seen = browser.look(host, workflow, queue=True)
    assert any("no_such_sampler" in fault and "is not in the list" in fault for fault in seen.faults)
    assert seen.run["status"] == "rejected"
    workflow = copy.deepcopy(json.loads(WORKFLOW.read_text()))
    types = {node["type"]: node for node in workflow["nodes"]}
    types["DigitsDecode"]["type"] = "NoSuchNode"
    seen = browser.look(host, workflow)
    assert any("NoSuchNode" in fault and "missing" in fault for fault in seen.faults)
