"""Two processes share a distillation, over gloo."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import lmsd
import pytest

HERE = Path(__file__).parent
PATHS = os.pathsep.join([str(Path(lmsd.__file__).parents[1]), str(HERE)])
ENVIRONMENT = {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}
HANGS = 600  # seconds after which a process never ends


def start(folder, kind, fault, ranks=2, timeout=HANGS):
    """Processes of rank.py; of one that died nobody tells the other, as torchrun would."""
    common = [kind, fault, timeout, folder / "meeting"]
    return [
        subprocess.Popen(
            [sys.executable, HERE / "rank.py", *map(str, [*common, rank, ranks])],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


def said(process):
    out, _ = process.communicate(timeout=HANGS)
    return json.loads(out) if out else None


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_two_ranks_find_what_one_does_with_a_share_of_the_calls_each(kind, tmp_path):
    """To the last bit: a fit that is a bit apart at first is far apart in the end."""
    alone = said(start(tmp_path, kind, "alone", ranks=1)[0])
    ranks = [said(process) for process in start(tmp_path, kind, "none")]
    for rank in ranks:
        assert rank["ranks"] == 2
        assert rank["nodes"] == alone["nodes"] and rank["distances"] == alone["distances"]
        assert rank["calls"] < alone["calls"]
        assert (rank["model_calls"], rank["teacher_calls"]) == (alone["model_calls"], alone["teacher_calls"])
    assert sum(rank["calls"] for rank in ranks) == alone["calls"]


@pytest.mark.parametrize("fault", ["SIGKILL", "SIGSTOP"])
def test_a_lost_rank_ends_the_other_within_the_time_out(fault, tmp_path):
    timeout = 10  # ranks that are there meet in milliseconds; more on a busy machine
    first, second = start(tmp_path, "numpy", fault, timeout=timeout)
    out = said(first)
    assert first.returncode == 3 and "another rank was lost" in out["error"], out
    assert f"longer than {timeout} s" in out["error"] and "rank 0 of 2" in out["error"]
    second.kill()
    second.wait()


def test_a_rank_that_raises_ends_both_with_its_error(tmp_path):
    first, second = map(said, start(tmp_path, "numpy", "raise"))
    assert second["error"] == "ValueError: the lamp of the model went out"
    assert "rank 1" in first["error"] and "ValueError: the lamp of the model went out" in first["error"]


def test_torchrun_and_control_c(tmp_path):
    common = [
        "distill",
        "--problem",
        HERE / "mixture.py",
        "--set",
        "size=16",
        "--set",
        "seeds=1",
        "--nfe",
        "3",
        "--teacher-nfe",
        "40",
    ]
    common += ["--trajectories", "64", "--held-out", "64", "--weight-sums", "free"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    def launch(*arguments, **options):
        command = [sys.executable, *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": ENVIRONMENT}
        return subprocess.Popen(command, **{**pipes, **options})

    whole = launch("-m", "lmsd", *common, "--out", tmp_path / "whole", "--quiet")
    out, err = whole.communicate(timeout=HANGS)
    assert whole.returncode == 0, err

    # As soon as it fits, with hundreds of calls to come.
    shared = launch(*torchrun, "-m", "lmsd", *common, "--out", tmp_path / "shared", "--set", "delay=0.005")
    seen = ""
    while "fit" not in seen and shared.poll() is None:
        seen += os.read(shared.stderr.fileno(), 1 << 16).decode(errors="replace")
    shared.send_signal(signal.SIGINT)
    out, err = shared.communicate(timeout=HANGS)
    assert "the same command goes on from" in seen + err, seen + err
    assert out.count("best handcrafted") == 1  # rank 0 alone prints
    checkpoint = tmp_path / "shared" / "checkpoint.jsonl"
    assert checkpoint.exists() and (tmp_path / "shared" / "nfe03.json").exists()

    # The rest alone, from the checkpoint of two.
    rest = launch("-m", "lmsd", *common, "--out", tmp_path / "shared", "--quiet")
    out, err = rest.communicate(timeout=HANGS)
    assert rest.returncode == 0 and "going on from" in out, err
    one, two = (lmsd.Schedule.load(tmp_path / name / "nfe03.json") for name in ("whole", "shared"))
    assert (one.sigmas == two.sigmas).all() and (one.scales == two.scales).all()
    assert all((a == b).all() for a, b in zip(one.weights, two.weights, strict=True))
