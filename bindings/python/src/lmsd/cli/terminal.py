"""What is written to a terminal: tables, numbers, notes."""

import re
import sys
from collections.abc import Sequence

# a number, with whatever comes after it; or nothing
NUMBER = re.compile(r"\s*([-+]?(\d|\.\d|inf|nan)|$)")


def number(value: float | None) -> str:
    """Five digits; nothing for None."""
    return "" if value is None else f"{value:.5g}"


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Rows of texts; the first is the head. Columns of numbers are flush right, the others left."""
    columns = []
    for head, *cells in zip(*rows, strict=True):
        width = max(map(len, [head, *cells]))
        align = str.rjust if all(map(NUMBER.match, cells)) else str.ljust
        columns.append([align(cell, width) for cell in [head, *cells]])
    for row in zip(*columns, strict=True):
        print("  ".join(row).rstrip())


def note(text: str) -> None:
    """A line beside the results, on stderr."""
    print(text, file=sys.stderr, flush=True)
