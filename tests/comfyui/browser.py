"""The frontend of a running host in a headless Chromium: what it says of a workflow.

Needs chromium, node and npm; playwright-core is fetched once into build/comfyui/browser.
"""

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from host import CACHE, Host

HERE = Path(__file__).resolve().parent
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.ShowMissingModelsWarning": True,
    "Comfy.Minimap.Visible": False,  # it and the menu lie above the graph
    "Comfy.Graph.CanvasMenu": False,
}


def missing() -> str | None:
    """Why there is no browser here, else None."""
    if not chromium():
        return "chromium is not installed"
    lacking = [name for name in ("node", "npm") if not shutil.which(name)]
    return f"{' and '.join(lacking)} not installed" if lacking else None


def chromium() -> str | None:
    """The browser: CHROMIUM, or what the system calls so."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def playwright() -> Path:
    """A folder with playwright-core in its node_modules."""
    place = CACHE / "browser"
    if not (place / "node_modules" / "playwright-core").is_dir():
        place.mkdir(parents=True, exist_ok=True)
        (place / "package.json").write_text('{"private": true}\n')
        command = [
            "npm",
            "install",
            "--no-audit",
            "--no-fund",
            "--no-save",
            "--loglevel=error",
            "playwright-core",
        ]
        subprocess.run(command, cwd=place, check=True, capture_output=True, text=True, timeout=300)
    return place


@dataclass
class Seen:
    """What browser.mjs reports, in its words, and what of it is a fault."""

    report: dict = field(repr=False)

    @property
    def nodes(self) -> list[dict]:
        return self.report["nodes"]

    @property
    def run(self) -> dict | None:
        return self.report.get("run")

    @property
    def faults(self) -> list[str]:
        """Missing types, marked nodes, values that a combo does not have, dialogs, errors of the page.

        Of the errors at its start only those of extensions: some frontends have one of their own.
        """
        found = []
        for node in self.report["nodes"]:
            name = f"node {node['id']} ({node['type']})"
            if node["missing"]:
                found.append(f"{name}: its type is missing")
            found += [
                f"{name}: {key} = {value!r} is not in the list" for key, value in node["outside"].items()
            ]
        for node in self.report["after"]:
            name = f"node {node['id']} ({node['type']})"
            if node["error"]:
                found.append(f"{name}: marked as in error")
            found += [f"{name}: input {key} is red" for key in node["red"]]
            found += [f"{name}: {error.get('message')} {error.get('details')}" for error in node["told"]]
        found += [f"dialog: {text}" for text in self.report["dialogs"] + self.report["dialogs_after"]]
        found += [f"page: {text}" for text in self.report["page_errors"]]
        found += [f"start: {text}" for text in self.report["start_errors"] if "/extensions/" in text]
        return list(dict.fromkeys(found))


def look(
    host: Host,
    workflow,
    queue=False,
    screenshot: Path | None = None,
    save: Path | None = None,
    scale: float = 1,
    templates: str | None = None,
) -> Seen:
    """Opens the host's page with a workflow: a path, or the workflow or API prompt itself, or None.

    `scale`: pixels of the screenshot for one of the page. `templates`: a pack's name; opens the template
    browser there at the end.
    """
    host.request("/settings", SETTINGS)
    with tempfile.TemporaryDirectory(prefix="lmsd-browser-") as folder:
        folder = Path(folder)
        if workflow is not None and not isinstance(workflow, str | os.PathLike):
            text, workflow = json.dumps(workflow), folder / "workflow.json"
            workflow.write_text(text)
        options = {"url": host.url, "playwright": str(playwright()), "chromium": chromium(), "queue": queue}
        options |= {"workflow": workflow and str(workflow), "profile": str(folder / "profile")}
        options |= {"scale": scale, "templates": templates}
        options |= {name: str(path) for name, path in (("screenshot", screenshot), ("save", save)) if path}
        command = ["node", str(HERE / "browser.mjs"), json.dumps(options)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert "failure" not in report, report["failure"]
    return Seen(report)
