"""Guidance scales that a schedule is for: one, or several, of which batches take one each in turn.

And the share of it that a call has, where guidance was fitted.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence

SAME = 1e-3  # relative: scales that differ by less are one


def spread(low: float, high: float, count: int = 5) -> list[float]:
    """`count` scales from `low` to `high`, both included, evenly spaced in their logarithm.

    Their order is such that the first few span the range: the ends, then the middles of what is left.
    0 < low < high, count >= 2.
    """
    if not (0 < low < high < math.inf and count >= 2):
        raise ValueError(f"guidance scales from {low:g} to {high:g}; the first must be above 0 and smaller")
    order, between = [0, count - 1], [(0, count - 1)]
    for first, last in between:  # which grows
        if last - first > 1:
            middle = (first + last) // 2
            order.append(middle)
            between += [(first, middle), (middle, last)]
    return [float(f"{low * (high / low) ** (at / (count - 1)):.4g}") for at in order]


def of_call(scale: float, share: float) -> float:
    """The guidance scale of a call that has this share of the user's; 1, which is none, at a share of 0."""
    return 1.0 + share * (scale - 1.0)


def takes(model: Callable) -> bool:
    """Whether `model(x, sigma, guidance)` can be called, as far as its signature tells."""
    try:
        inspect.signature(model).bind(None, 1.0, 1.0)
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return True
    return True


def scales(guidance: float | Sequence[float]) -> list[float]:
    """One number, or several, as a list: batch b has scale `found[b % len(found)]`."""
    found = [float(scale) for scale in ([guidance] if isinstance(guidance, int | float) else guidance)]
    if not found or not all(map(math.isfinite, found)):
        raise ValueError(f"guidance is {guidance!r}; a number is needed, or several")
    return found


def made_for(guidance: float | Sequence[float]) -> dict:
    """What a schedule's `made_for` says of them: `guidance_scale`, or `guidance_range`, its ends."""
    found = scales(guidance)
    if min(found) == max(found):
        return {"guidance_scale": found[0]}
    return {"guidance_range": [min(found), max(found)]}


def stated(made_for: Mapping) -> tuple[float, float] | None:
    """The lowest and the highest scale that a `made_for` states, which may be one; None where it has none."""
    low, high = made_for.get("guidance_range") or [made_for.get("guidance_scale")] * 2
    return None if low is None else (low, high)


def suits(made_for: Mapping, scale: float | None) -> bool:
    """Whether a scale is among those of a `made_for`, or either of them is unknown."""
    ends = stated(made_for)
    if ends is None or scale is None:
        return True
    return ends[0] * (1 - SAME) <= scale <= ends[1] * (1 + SAME)


def words(made_for: Mapping) -> str:
    """ "3" or "2 to 7"; empty where none is stated."""
    return " to ".join(f"{end:g}" for end in sorted(set(stated(made_for) or ())))
