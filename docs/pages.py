"""The manuals as pages: include/lmsd.h, whose comments are the manual of C, the docstrings of Python, and the
guides of this folder.

Run by `make docs`, which has put the pages of Rust into the same folder.
"""

import argparse
import importlib
import re
import shutil
from pathlib import Path

import markdown
import pdoc
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import CLexer

ROOT = Path(__file__).resolve().parents[1]
STYLE = """body { max-width: 56rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 sans-serif }
pre { padding: .6rem; overflow-x: auto; background: #f6f6f6 } code { font-size: 90% } img { max-width: 100% }
h3 { margin-top: 2.5rem; border-top: 1px solid #ddd; padding-top: 1rem }
table { border-collapse: collapse } td, th { border: 1px solid #ddd; padding: .2rem .5rem }
"""
# A comment at the left margin, and what it is about: to the next blank line outside braces.
ITEM = re.compile(
    r"^/\*\*\n(?P<text>.*?)\n \*/\n(?P<code>(?:[^\n]*\{\n.*?^\}[^\n]*\n|[^\n]+\n)+)", re.M | re.S
)
NAME = re.compile(r"#define (\w+)|^(?:enum|typedef struct) (\w+)|\(\*(\w+)\)|(\w+)\(")


def page(title: str, body: str) -> str:
    style = STYLE + HtmlFormatter().get_style_defs("pre")
    head = f'<!doctype html><meta charset="utf-8"><title>{title}</title><style>{style}</style>'
    return f'{head}<p><a href="index.html">lmsd</a></p>{body}'


def text(source: str) -> str:
    return markdown.markdown(source, extensions=["tables", "fenced_code"])


def without_stars(comment: str) -> str:
    """A comment's text as Markdown, in which a list needs an empty line before it."""
    plain = re.sub(r"^ \* ?", "", comment, flags=re.M)
    return re.sub(r"^([^-\s].*)\n- ", r"\1\n\n- ", plain, flags=re.M)


def c_manual(header: str) -> str:
    """The conventions at the top of the header, then each declaration under its name, with its comment."""
    conventions = without_stars(header[header.index("/*\n") + 3 : header.index("\n */")])
    conventions = conventions.replace("Conventions\n", "## Conventions\n")
    contents, items = [], []
    for item in ITEM.finditer(header):
        name = next(filter(None, NAME.search(item["code"]).groups()))
        contents.append(f'<a href="#{name}">{name}</a>')
        code = highlight(item["code"].strip(), CLexer(), HtmlFormatter(nowrap=True))
        prose = text(without_stars(item["text"]).replace("# Safety\n", "**Must hold:** "))
        items.append(f'<h3 id="{name}">{name}</h3><pre>{code}</pre>{prose}')
    return page("lmsd.h", f"<h1>lmsd.h</h1>{text(conventions)}<p>{', '.join(contents)}</p>{''.join(items)}")


def guides(out: Path) -> list[str]:
    """One page for each .md of this folder; returns the list items that link them."""
    links = []
    for guide in sorted(ROOT.glob("docs/*.md")):
        source = guide.read_text()
        title = source.split("\n", 1)[0].removeprefix("# ")
        body = re.sub(r'href="([\w-]+)\.md', r'href="\1.html', text(source))
        body = body.replace('href="../', 'href="../../')  # files of the repository: one folder deeper here
        (out / guide.with_suffix(".html").name).write_text(page(title, body))
        links.append(f'<li><a href="{guide.stem}.html">{title}</a>')
    return links


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
    (out / "lmsd.h.html").write_text(c_manual((ROOT / "include/lmsd.h").read_text()))
    for picture in (*ROOT.glob("docs/*.jpg"), *ROOT.glob("docs/*.png")):
        shutil.copy(picture, out)
    reference = [
        '<li><a href="lmsd.h.html">C: lmsd.h</a>',
        '<li><a href="python/lmsd.html">Python: lmsd</a>',
        '<li><a href="rust/lmsd/index.html">Rust: lmsd</a>',
    ]
    lists = f"<h2>Reference</h2><ul>{''.join(reference)}</ul><h2>Guides</h2><ul>{''.join(guides(out))}</ul>"
    (out / "index.html").write_text(page("lmsd", f"<h1>lmsd</h1>{lists}"))


if __name__ == "__main__":
    main()
