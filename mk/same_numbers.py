"""Whether two texts are the same, but for the rounding of their numbers: same_numbers.py ONE OTHER."""

import math
import sys
from pathlib import Path

TOLERANCE = 1e-12  # relative, and of 1 for smaller numbers


def same(one: str, other: str) -> bool:
    try:
        return math.isclose(float(one), float(other), rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    except ValueError:
        return one == other


def main() -> int:
    texts = [Path(path).read_text().replace(":", " : ").split() for path in sys.argv[1:3]]
    wrong = [(one, other) for one, other in zip(*texts, strict=False) if not same(one, other)]
    if len(texts[0]) != len(texts[1]) or not texts[0] or wrong:
        print(f"{sys.argv[1]} and {sys.argv[2]}: {list(map(len, texts))} words, not the same: {wrong[:5]}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
