"""Lays out what the site is made of, for mkdocs: every .md of the repository under its own path with the
files that it links to, a manual of C made of include/lmsd.h, and the pages of Python.

Run by `make docs`, which adds the pages of Rust and builds the site of it all (site.yml).
"""

import argparse
import importlib
import re
import shutil
import subprocess
from pathlib import Path

import pdoc

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)[^)#]+")
# A comment at the left margin, and what it is about: to the next blank line outside braces.
ITEM = re.compile(
    r"^/\*\*\n(?P<text>.*?)\n \*/\n(?P<code>(?:[^\n]*\{\n.*?^\}[^\n]*\n|[^\n]+\n)+)", re.M | re.S
)
NAME = re.compile(r"#define (\w+)|^(?:enum|typedef struct) (\w+)|\(\*(\w+)\)|(\w+)\(")


def without_stars(comment: str) -> str:
    """A comment's text as Markdown, in which a list needs an empty line before it."""
    plain = re.sub(r"^ \* ?", "", comment, flags=re.M)
    return re.sub(r"^([^-\s].*)\n- ", r"\1\n\n- ", plain, flags=re.M)


def c_manual(header: str) -> str:
    """The conventions at the top of the header, then each declaration under its name, with its comment."""
    conventions = without_stars(header[header.index("/*\n") + 3 : header.index("\n */")])
    parts = ["# lmsd.h", conventions.replace("Conventions\n", "## Conventions\n"), "## Declarations"]
    for item in ITEM.finditer(header):
        name = next(filter(None, NAME.search(item["code"]).groups()))
        prose = without_stars(item["text"]).replace("# Safety\n", "**Must hold:** ")
        parts.append(f"### {name}\n\n```c\n{item['code'].strip()}\n```\n\n{prose}")
    return "\n\n".join(parts) + "\n"


def guides(out: Path) -> None:
    """Texts with what they link to; a folder is linked by its README.md."""
    names = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in names.stdout.split():
        if "/web/" in name or name.startswith("fuzz/"):  # the nodes' own help; not for readers
            continue
        page = ROOT / name

        def placed(link, page=page):
            target = (page.parent / link[0]).resolve()
            readme = target / "README.md"
            if target.is_file() and target.suffix != ".md":
                copy = out / target.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(target, copy)
            return f"{link[0].rstrip('/')}/README.md" if readme.is_file() else link[0]

        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(LINK.sub(placed, page.read_text()))


def python_manual(out: Path) -> None:
    """Pages of the package; of those modules that need torch or diffusers, where these are installed."""
    modules = ["lmsd"]
    for name in ("gain", "plots", "k_diffusion", "diffusers", "distributed"):
        try:
            modules.append(importlib.import_module(f"lmsd.{name}").__name__)
        except ImportError as error:
            print(f"no page for lmsd.{name}: {error}")
    pdoc.pdoc(*modules, output_directory=out / "python")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    out = parser.parse_args().out
    python_manual(out)
    guides(out)
    (out / "lmsd.h.md").write_text(c_manual((ROOT / "include/lmsd.h").read_text()))


if __name__ == "__main__":
    main()
