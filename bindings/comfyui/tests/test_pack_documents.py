"""What the documents say of the tests."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SITUATIONS = ROOT / "docs" / "comfyui-situations.md"
TESTS = ROOT / "tests" / "comfyui"


def test_every_situation_names_tests_that_are_there():
    """A row without a test, or with one that is gone, is a promise that nobody checks."""
    rows = [line.strip("|").split(" | ") for line in SITUATIONS.read_text().splitlines() if line[:2] == "| "]
    there = {
        name
        for path in TESTS.glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert len(rows) > 15 and all(len(row) == 3 for row in rows)
    named = [re.findall(r"`(\w+)`", row[2]) for row in rows[1:]]
    assert all(named)
    assert {name for names in named for name in names} <= there
    new = re.findall(r"^def (test_\w+)", (TESTS / "test_situations_host.py").read_text(), re.M)
    assert set(new) <= {name for names in named for name in names}
