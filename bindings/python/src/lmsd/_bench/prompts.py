"""Prompts from a file, and which of them are fitted to, chosen by, and measured on."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

import lmsd

FITTED = 2  # prompts to fit to at least


class Split(NamedTuple):
    """Three lists that have no prompt in common."""

    test: list[str]
    rank: list[str]
    fit: list[str]


def read(path: str) -> list[str]:
    """The lines of a file, without empty ones and repeated ones. Raises Error where there are none."""
    file = Path(path)
    if not file.is_file():
        raise lmsd.Error(f"there is no file of prompts {path}", lmsd.Status.IO)
    lines = (" ".join(line.split()) for line in file.read_text(encoding="utf-8").splitlines())
    prompts = list(dict.fromkeys(line for line in lines if line))
    if not prompts:
        raise lmsd.Error(f"{path} has no prompts; it must have one on each line")
    return prompts


def split(prompts: list[str], test: int, rank: int, seed: int) -> Split:
    """`test` prompts to measure on, `rank` to choose options of published solvers by, the others to fit to.

    In an order of the seed's own. Raises Error where too few are left to fit to.
    """
    needed = test + rank + FITTED
    if len(prompts) < needed:
        raise lmsd.Error(
            f"there are {len(prompts)} different prompts, and {needed} are needed: {test} to measure on,"
            f" {rank} to choose by, {FITTED} or more to fit to; take a longer file, or a smaller --test"
        )
    order = np.random.default_rng([seed, 0]).permutation(len(prompts))
    mixed = [prompts[i] for i in order]
    return Split(mixed[:test], mixed[test : test + rank], mixed[test + rank :])
