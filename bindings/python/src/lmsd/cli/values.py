"""Texts of the command line as values. Each function refuses a wrong one with a sentence, for argparse."""

import argparse
import json
from typing import Any, NamedTuple

from lmsd.guidance import scales, spread

UNITS = {"GiB": 30, "GB": 30, "G": 30, "MiB": 20, "MB": 20, "M": 20}  # powers of two


class Device(NamedTuple):
    """Where a network file runs. `kind`: "cpu", "cuda" or "directml"; `index`: which one, None for any."""

    kind: str
    index: int | None = None


def nfe_range(text: str) -> tuple[int, int]:
    """ "5" or "3-8": the numbers of model calls of a family, first and last."""
    first, dash, last = text.partition("-")
    if first.isdecimal() and (last.isdecimal() if dash else True):
        found = (int(first), int(last) if dash else int(first))
        if 1 <= found[0] <= found[1]:
            return found
    raise argparse.ArgumentTypeError(
        f"{text!r} is no number of model calls; one is needed, such as 5, or the smallest and the largest of "
        "a family, such as 3-8"
    )


def guidance(text: str) -> float | list[float]:
    """ "3": a guidance scale; "2-7": several that span a range; "1.5,3,5": these."""
    try:
        low, dash, high = text.partition("-")
        if low and dash:
            return spread(float(low), float(high))
        found = scales([float(part) for part in text.split(",")])
        return found[0] if len(found) == 1 else found
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no guidance scale; one is needed, such as 3, or the smallest and the largest of a "
            "range, such as 2-7, or several with commas"
        ) from None


def nfe_list(text: str) -> list[int]:
    """ "5,8,10,12": numbers of model calls."""
    parts = [part.strip() for part in text.split(",")]
    if all(part.isdecimal() and 1 <= int(part) <= 50 for part in parts):
        return list(map(int, parts))
    raise argparse.ArgumentTypeError(
        f"{text!r} is no list of numbers of model calls; such as 5,8,10,12 is needed, each 1 to 50"
    )


def assignment(text: str) -> tuple[str, Any]:
    """ "key=value"; the value is JSON, or else the text as it is."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form KEY=VALUE, such as seed=3")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def json_value(text: str) -> Any:
    """Any JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from None


def json_object(text: str) -> dict:
    """A JSON object."""
    value = json_value(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is no JSON object, such as {{"model": "digits"}}')
    return value


def grid(text: str) -> Any:
    """The kind of a grid, such as karras, or JSON: {"kind": "karras", "rho": 5}."""
    if text.isidentifier():
        return {"kind": text}
    return json_object(text)


def shape(text: str) -> tuple[int, ...]:
    """ "4,64,64"."""
    parts = [part.strip() for part in text.split(",")]
    if all(part.isdecimal() and int(part) > 0 for part in parts):
        return tuple(map(int, parts))
    raise argparse.ArgumentTypeError(f"{text!r} is no shape; numbers with commas are needed, such as 4,64,64")


def device(text: str) -> Device:
    """ "cpu", "cuda", "cuda:1", "directml" or "directml:1"."""
    kind, colon, index = text.partition(":")
    if kind in ("cpu", "cuda", "directml") and (index.isdecimal() and kind != "cpu" if colon else True):
        return Device(kind, int(index) if colon else None)
    raise argparse.ArgumentTypeError(f"{text!r} is no device; cpu, cuda, cuda:N or directml is needed")


def memory(text: str) -> int:
    """ "8GiB" or "500MiB" in bytes."""
    unit = next((unit for unit in UNITS if text.endswith(unit)), "")
    try:
        size = float(text.removesuffix(unit)) * 2 ** UNITS.get(unit, 0)
        if size >= 1:
            return int(size)
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no size of memory; one is needed, such as 8GiB or 500MiB")


def at_least(least: int):
    """A whole number, `least` or more."""

    def number(text: str) -> int:
        if text.isdecimal() and int(text) >= least:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of {least} or more")

    return number
