"""The networks of the benchmark of cost, as problems of lmsd.distill; without lmsd itself, of which the
benchmark also runs an old version."""

import functools
import os
import sys
from pathlib import Path

# the matrices are small: BLAS threads cost more than they save, above all on a busy machine
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "digits"))
sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "photos"))
sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "emoji"))

from mixture import mixture
from problem import problem as digits

EMOJI = Path(__file__).parents[1] / "examples" / "emoji"
TEST_SEED, TEST_SIZE = 1000, 64  # of the noise of the test trajectories


def photos(guidance, size, seed):
    import torch
    from photos_problem import problem

    torch.set_num_threads(1)
    return problem(guidance, size=size, seed=seed)


def emoji(model, guidance, size, seed):
    """With the prompts of prompts_test.txt where the noise is that of the tests."""
    from emoji_problem import problem

    return problem(model, guidance, size=size, seed=seed, test=seed == TEST_SEED)


# name -> problem of (trajectories in a batch, seed of the noise)
NETWORKS = {
    "digits, guidance 1": lambda size, seed: digits(1.0, size=size, seed=seed),
    "digits, guidance 3": lambda size, seed: digits(3.0, size=size, seed=seed),
    "mixture": lambda size, seed: mixture(size=size, seed=seed),
    "photos": functools.partial(photos, 2.0),
}
for _model in ("pixel", "flow", "latent"):  # those that have been trained
    if (EMOJI / f"{_model}.onnx").exists():
        NETWORKS[f"emoji, {_model}"] = functools.partial(emoji, _model, 3.0)
DEAR = {"photos": 3, "emoji, pixel": 2, "emoji, flow": 2, "emoji, latent": 2}  # name -> seeds


def test_problem(name):
    return NETWORKS[name](TEST_SIZE, TEST_SEED)


def test_count(name):
    """Test trajectories."""
    return 128 if name in DEAR else 512
