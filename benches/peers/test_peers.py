"""Tests of the peers on tiny settings: that each does what it says, not how well."""

import itertools
import subprocess
import sys
from dataclasses import replace

import lmsd
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from unknowns import Table  # noqa: E402

from . import cache, dlms, gits, gradients, ld3, report, run  # noqa: E402
from .__main__ import PAGE  # noqa: E402
from .networks import ROOT, Counted, network  # noqa: E402
from .settings import QUICK  # noqa: E402
from .table import PEERS  # noqa: E402
from .trajectories import distance, levels, mean_distance, pool, recorded, teacher  # noqa: E402
from .trajectories import test_pool as on_test  # noqa: E402

NFE = 4


@pytest.fixture(scope="module")
def net():
    return network("digits")


@pytest.fixture(scope="module")
def trajectories(net):
    return pool(net, 16, 0, 24, states=True)


@pytest.mark.parametrize("peer", PEERS)
def test_what_is_reported_is_what_sampling_gives(net, tmp_path, peer):
    found = run.cell("digits", peer, NFE, 0, True, tmp_path)
    file, on = found["sampler"], on_test(net, QUICK.test)
    if peer == "cache":
        sampler = cache.Cached(
            lmsd.Schedule.from_json(file["schedule"]), file["kind"], file["reused"], file["threshold"]
        )
        sampler.curve = file["curve"]
    else:
        sampler = lmsd.Schedule.from_json(file)
        assert sampler.nfe == NFE and found["metrics"]["calls"] == NFE
    assert found["metrics"]["distance"] == pytest.approx(mean_distance(net, sampler, on), rel=1e-4)
    assert found["cost"]["image_calls"] == found["cost"]["forward"] + 3 * found["cost"]["with_gradients"] > 0
    assert run.cell("digits", peer, NFE, 0, True, tmp_path) == found  # from the file, seconds too


def test_a_cell_is_made_again_where_a_setting_that_it_read_has_changed(tmp_path, monkeypatch):
    first = run.cell("digits", "gits", NFE, 0, True, tmp_path)
    monkeypatch.setattr(run, "QUICK", replace(QUICK, ours_calls=100, steps=7))  # which others read
    assert run.cell("digits", "gits", NFE, 0, True, tmp_path) == first
    monkeypatch.setattr(run, "QUICK", replace(QUICK, validation=4))
    again = run.cell("digits", "gits", NFE, 0, True, tmp_path)
    assert again["settings"]["validation"] == 4 and again["settings"] != first["settings"]


def test_the_page_is_that_of_the_cells(tmp_path):
    page = tmp_path / "results.md"
    page.write_text(PAGE.read_text())
    report.write(run.CELLS, page)
    assert page.read_text() == PAGE.read_text(), "python -m benches.peers --report"


def test_the_program_finds_the_cheapest_path(trajectories):
    matrix = gits.costs(trajectories)
    last = len(matrix) - 1
    uniform = np.linspace(0, last, NFE + 1).round().astype(int).tolist()
    for coefficient in (0.9, 1.0, 1.2):
        found = gits.path(matrix, NFE, coefficient)
        assert found[0] == 0 and found[-1] == last and len(found) == NFE + 1
        cost = gits.path_cost(matrix, found, coefficient)
        assert cost < 0.9 * gits.path_cost(matrix, uniform, coefficient)
    few = matrix[:9, :9]
    every = ((0, *middle, 8) for middle in itertools.combinations(range(1, 8), 3))
    assert gits.path_cost(few, gits.path(few, 4, 1.1), 1.1) == min(gits.path_cost(few, p, 1.1) for p in every)


@pytest.mark.parametrize(("kind", "reused"), list(itertools.product(cache.KINDS, cache.REUSED)))
def test_a_cache_at_threshold_0_is_the_full_run(net, trajectories, kind, reused):
    schedule = lmsd.solve("dpmpp_2m", nfe=6, **levels(net))
    cached = cache.Cached(schedule, kind, reused, 0.0)
    ends = cached.run(net, trajectories.x, trajectories.conditions)
    full = lmsd.sample(schedule, trajectories.x, lambda x, s: net.denoise(x, s, trajectories.conditions))
    torch.testing.assert_close(ends, full, rtol=0, atol=1e-4)
    assert cached.evaluations == 6
    cached.threshold = 1e9
    skipped = cached.run(net, trajectories.x, trajectories.conditions)
    assert cached.evaluations == (3 if kind == "easycache" else 2)  # the first ones and the last
    assert distance(skipped, full).mean() > 0.1


def test_a_cache_skips_image_by_image(net, trajectories):
    """What an image becomes does not depend on those beside it, though they are evaluated at other steps."""
    cached = cache.Cached(lmsd.solve("euler", nfe=10, **levels(net)), "easycache", "noise", 0.0)
    assert cache.tune(net, cached, 6, trajectories)
    together = cached.run(net, trajectories.x, trajectories.conditions)
    assert cached.evaluations == pytest.approx(6, abs=0.25)
    alone = [cached.run(net, part.x, part.conditions) for part in trajectories.batches(1)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-3)


@pytest.mark.parametrize("solver", ld3.SOLVERS)
@pytest.mark.parametrize("process", ["ve", "flow"])
def test_the_solvers_of_ld3_are_those_of_lmsd(net, solver, process):
    grid, end = (
        ([20.0, 5.0, 1.0, 0.3, 0.002], 0.002) if process == "ve" else ([0.97, 0.8, 0.5, 0.2, 0.0], 0.0)
    )
    options = {"process": process, "sigma_max": grid[0], "sigma_start": 80.0 if process == "ve" else 1.0}
    schedule = lmsd.solve(solver, nfe=4, grid=grid, sigma_end=end, **options)
    for found, wanted in zip(ld3.Steps(net, schedule).weights(), schedule.weights, strict=True):
        wanted = np.pad(wanted, (0, len(found) - len(wanted)))
        np.testing.assert_allclose(found.detach().numpy(), wanted, atol=1e-9)


@pytest.mark.parametrize("affine", [False, True])
def test_gradients_see_what_sampling_gives(net, trajectories, affine):
    """Adam differentiates what lmsd.sample gives, and its gradient is that of the distance."""
    unknowns = Table(net, gradients.starts(net, NFE)[0], affine)
    with torch.no_grad():
        unknowns.table += 0.02 * torch.randn(NFE, NFE, generator=torch.Generator().manual_seed(0))
    schedule = unknowns.schedule()
    assert not affine or [sum(row) for row in schedule.weights] == pytest.approx([1.0] * NFE)
    loss = gradients.end_loss(unknowns, net, trajectories)
    assert loss.item() == pytest.approx(mean_distance(net, schedule, trajectories), rel=1e-4)
    loss.backward()
    along, step = unknowns.log_sigma.grad.clone(), 0.01
    along /= along.norm()
    with torch.no_grad():
        unknowns.log_sigma += step * along
        above = gradients.end_loss(unknowns, net, trajectories)
        unknowns.log_sigma -= 2 * step * along
        below = gradients.end_loss(unknowns, net, trajectories)
    slope = (above - below).item() / (2 * step)
    assert slope == pytest.approx(unknowns.log_sigma.grad.norm().item(), rel=0.1)


def test_the_teacher_between_its_nodes(net, trajectories):
    """Interpolated states are those of a teacher that has a node there."""
    sigmas = trajectories.sigmas
    at = torch.sqrt(sigmas[9] * sigmas[10])
    grid = sorted([*sigmas.tolist(), at.item()], reverse=True)
    schedule = lmsd.solve("deis_3", nfe=len(grid) - 1, grid=grid, **levels(net))
    _, seen, _ = recorded(net, schedule, trajectories.x, trajectories.conditions)
    wanted, other = seen[10], trajectories.states[9]
    error = distance(dlms.between(trajectories, at), wanted).mean()
    assert error < 0.02 * distance(other, wanted).mean()
    torch.testing.assert_close(dlms.between(trajectories, sigmas[5]), trajectories.states[5])


def test_calls_are_counted(net, trajectories):
    counted = Counted(net)
    few = trajectories.part(slice(8))
    mean_distance(counted, teacher(net, 5), few)
    assert (counted.forward, counted.gradient) == (40, 0)
    gradients.end_loss(Table(net, teacher(net, 5)), counted, few)
    assert (counted.forward, counted.gradient) == (40, 40)


def test_the_whole_run_and_its_page(tmp_path):
    command = [sys.executable, "-m", "benches.peers", "--quick", "--networks", "digits", "--jobs", "1"]
    command += ["--peers", "published,gits,cache,end_to_end,ours", "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    page = (tmp_path / "results.md").read_text()
    assert (tmp_path / "results_digits.png").stat().st_size < 150_000
    for peer in ("published", "gits", "cache", "end_to_end", "ours"):
        assert PEERS[peer][0] in page
    assert "### Where we lose" in page and "### Targets" in page
