"""What is written to a terminal: tables, numbers, notes."""

import sys
from collections.abc import Sequence


def number(value: float | None) -> str:
    """Five digits; nothing for None."""
    return "" if value is None else f"{value:.5g}"


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Rows of texts; the first is the head. The first column is flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())


def note(text: str) -> None:
    """A line beside the results, on stderr."""
    print(text, file=sys.stderr, flush=True)
