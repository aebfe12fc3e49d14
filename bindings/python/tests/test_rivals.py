"""`lmsd.rivals`: the field of published solvers, as schedules. What is in it is tested in Rust."""

import lmsd
import numpy as np
import pytest


def kinds(schedules):
    return [(schedule.made_by["solver"], schedule.made_by["grid"]) for schedule in schedules]


@pytest.mark.parametrize("process", ["ve", "flow"])
def test_fields(process):
    published = lmsd.rivals(4, "published", process=process)
    strongest = lmsd.rivals(4, process=process)
    assert strongest[: len(published)] == published and len(strongest) > 5 * len(published) > 50
    assert len(set(kinds(strongest))) == len(strongest)
    competing = {solver["name"] for solver in lmsd.solvers() if solver["competes"]}
    assert {solver for solver, _ in kinds(strongest)} <= competing
    for schedule in strongest:
        assert (schedule.nfe, schedule.process) == (4, process)
        assert (schedule.sigma_start, schedule.sigma_end) == (80.0 if process == "ve" else 1.0, 0.0)
        assert schedule.made_by["method"] == "handcrafted"


def test_levels_are_the_models():
    levels = {"sigma_min": 0.03, "sigma_max": 14.6, "sigma_end": 0.01}
    found = lmsd.rivals(3, "published", **levels)
    assert all((s.sigma_start, s.sigma_end) == (14.6, 0.01) for s in found)
    found = lmsd.rivals(3, "published", process="flow", shift=1.15)
    assert {grid for _, grid in kinds(found)} == {"flow shift=1", "flow shift=1.15"}


def test_those_that_start_below_say_so():
    field = lmsd.rivals(5)
    found = dict(zip(kinds(field), field, strict=True))
    below = found["dpmpp_2m", "karras rho=5, straight to 0, from sigma 4"]
    assert (below.sigmas[0], below.sigma_start) == (4.0, 80.0)
    same = {"grid": {"kind": "karras", "rho": 5}, "jump_to_zero": True}
    assert below.to_dict()["nodes"] == lmsd.solve("dpmpp_2m", nfe=5, sigma_max=4.0, **same).to_dict()["nodes"]
    afs = lmsd.solve("ipndm_3", nfe=5, jump_to_zero=True, afs=True)
    assert found["ipndm_3", "karras rho=7, straight to 0, AFS"] == afs
    assert afs.sigmas[0] == lmsd.solve("ipndm_3", nfe=6, jump_to_zero=True).sigmas[1]


def test_grids_of_ones_own():
    grid = np.array([80, 10.9, 1.5, 0])
    more = lmsd.rivals(3, extra=[grid])
    less = lmsd.rivals(3)
    assert more[: len(less)] == less
    added = more[len(less) :]
    assert {"euler", "dpmpp_2m", "unipc_bh2_2"} <= {solver for solver, _ in kinds(added)}
    assert all((schedule.sigmas == grid).all() for schedule in added)
    assert kinds(added)[0] == ("euler", "sigmas 80 10.9 1.5 0")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"nfe": 0}, "nfe is 0"),
        ({"nfe": 5, "field": "weakest"}, "weakest"),
        ({"nfe": 5, "sigma_max": 0.001}, "sigma_min is 0.002"),
        ({"nfe": 5, "process": "flow", "sigma_max": 80.0}, "0 to 1"),
        ({"nfe": 5, "extra": [[80, 0]]}, "grid 0 of extra"),
    ],
)
def test_refusals(options, says):
    with pytest.raises(lmsd.Error, match=says):
        lmsd.rivals(**options)
