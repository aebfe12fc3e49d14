"""Every peer in one run on the same test trajectories: `python -m benches.peers`, or `make bench-peers`.

Each peer is one file with a function `fit(network, nfe, seed, settings)`; `table.py` lists them and
`networks.py` lists the networks. What a fit leaves is an `lmsd.Schedule` (a cache: one and a threshold), and
all of them are sampled by `lmsd.sample` with the same model.
"""

import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]
# unknowns.py and adam.py, and the Frechet distance in examples/digits/classifier.py
sys.path[:0] = [str(_ROOT / "benches"), str(_ROOT / "examples" / "digits")]
