"""Two processes share a distillation, over gloo."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import lmsd
import numpy as np
import pytest

HERE = Path(__file__).parent
PATHS = os.pathsep.join([str(Path(lmsd.__file__).parents[1]), str(HERE)])
ENVIRONMENT = {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}
TIMEOUT = 4


def start(kind, fault, ranks=2):
    """Processes of rank.py; of one that died nobody tells the other, as torchrun would."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, HERE / "rank.py", kind, fault, str(TIMEOUT)],
            env={**ENVIRONMENT, **group, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


def said(process):
    out, _ = process.communicate(timeout=120)
    return json.loads(out) if out else None


@pytest.fixture(scope="module")
def alone():
    return said(start("numpy", "alone", ranks=1)[0])


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_two_ranks_find_what_one_does_with_half_the_calls_each(kind, alone):
    ranks = [said(process) for process in start(kind, "none")]
    for rank in ranks:
        assert rank["ranks"] == 2
        for want, got in zip(alone["nodes"], rank["nodes"], strict=True):
            for n in (0, 1):
                np.testing.assert_allclose(got[n], want[n], rtol=1e-9)
            for w, g in zip(want[2], got[2], strict=True):
                np.testing.assert_allclose(g, w, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(rank["distances"], alone["distances"], rtol=1e-9)
        assert rank["calls"] == alone["calls"] / 2
        assert (rank["model_calls"], rank["teacher_calls"]) == (alone["model_calls"], alone["teacher_calls"])
    assert ranks[0]["nodes"] == ranks[1]["nodes"]  # to the last bit
    if kind == "numpy":
        assert ranks[0]["nodes"] == alone["nodes"]


@pytest.mark.parametrize("fault", ["SIGKILL", "SIGSTOP"])
def test_a_lost_rank_ends_the_other_within_the_time_out(fault):
    first, second = start("numpy", fault)
    out = said(first)
    assert first.returncode == 3 and "another rank was lost" in out["error"], out
    assert f"longer than {TIMEOUT} s" in out["error"] and "rank 0 of 2" in out["error"]
    second.kill()
    second.wait()


def test_a_rank_that_raises_ends_both_with_its_error():
    first, second = map(said, start("numpy", "raise"))
    assert second["error"] == "ValueError: the lamp of the model went out"
    assert "rank 1" in first["error"] and "ValueError: the lamp of the model went out" in first["error"]


def test_torchrun_and_control_c(tmp_path):
    common = [
        "distill",
        "--problem",
        HERE / "mixture.py",
        "--set",
        "size=16",
        "--nfe",
        "3",
        "--teacher-nfe",
        "40",
    ]
    common += ["--trajectories", "64", "--held-out", "64", "--sums", "free"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    def launch(*arguments, **options):
        command = [sys.executable, *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": ENVIRONMENT}
        return subprocess.Popen(command, **{**pipes, **options})

    whole = launch("-m", "lmsd", *common, "--out", tmp_path / "whole", "--quiet")
    out, err = whole.communicate(timeout=120)
    assert whole.returncode == 0, err

    shared = launch(*torchrun, "-m", "lmsd", *common, "--out", tmp_path / "shared", "--set", "delay=0.002")
    seen = ""
    while "fit" not in seen and shared.poll() is None:
        seen += os.read(shared.stderr.fileno(), 1 << 16).decode(errors="replace")
    time.sleep(1)
    shared.send_signal(signal.SIGINT)
    out, err = shared.communicate(timeout=60)
    assert "the same command goes on from" in seen + err, seen + err
    assert out.count("best handcrafted") == 1  # rank 0 alone prints
    checkpoint = tmp_path / "shared" / "checkpoint.jsonl"
    assert checkpoint.exists() and (tmp_path / "shared" / "nfe03.json").exists()

    # The rest alone, from the checkpoint of two.
    rest = launch("-m", "lmsd", *common, "--out", tmp_path / "shared", "--set", "delay=0.002", "--quiet")
    out, err = rest.communicate(timeout=120)
    assert rest.returncode == 0 and "going on from" in out, err
    one, two = (lmsd.Schedule.load(tmp_path / name / "nfe03.json") for name in ("whole", "shared"))
    assert (one.sigmas == two.sigmas).all() and (one.scales == two.scales).all()
    assert all((a == b).all() for a, b in zip(one.weights, two.weights, strict=True))
