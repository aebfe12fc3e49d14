"""Schedules as data: what goes in comes out to the last bit, and what breaks the format is refused."""

import copy
import json
import pickle

import lmsd
import numpy as np
import pytest

FILE = {
    "format": 1,
    "name": "née λ",
    "process": "ve",
    "nfe": 2,
    "sigma_start": 80.0,
    "sigma_end": 0.0,
    "nodes": [
        {"sigma": 7.123456789012345, "scale": 0.9876543210987654, "weights": [1.1]},
        {"sigma": 0.1 + 0.2, "weights": [1 / 3, 5e-324]},
    ],
    "made_for": {"guidance_scale": 3.0, "sigma_max": 80.0, "model": "toy"},
}


def test_every_number_reads_back_to_the_last_bit(tmp_path):
    schedule = lmsd.Schedule.from_json(FILE)
    schedule.save(tmp_path / "ü.json")
    again = lmsd.Schedule.load(tmp_path / "ü.json")
    for s in (schedule, again, pickle.loads(pickle.dumps(again)), copy.deepcopy(again)):
        assert s == schedule and hash(s) == hash(schedule)
        assert s.nfe == 2 and s.process == "ve" and s.name == "née λ"
        assert (s.sigma_start, s.sigma_end) == (80.0, 0.0)
        assert s.sigmas.tolist() == [7.123456789012345, 0.1 + 0.2, 0.0]
        assert s.scales.tolist() == [0.9876543210987654, 1.0]
        assert [w.tolist() for w in s.weights] == [[1.1], [1 / 3, 5e-324]]
        assert s.made_for == FILE["made_for"] and s.made_by == {}
    assert json.loads((tmp_path / "ü.json").read_text(encoding="utf-8")) == schedule.to_dict()


def test_random_numbers_read_back():
    rng = np.random.default_rng(0)
    sigmas = np.sort(np.exp(rng.uniform(-20, 10, 200)))[::-1]
    weights = [rng.normal(size=rng.integers(1, n + 2)) * 10.0 ** rng.integers(-8, 8) for n in range(200)]
    nodes = [{"sigma": sigmas[n], "scale": rng.uniform(0.5, 2), "weights": weights[n]} for n in range(200)]
    file = FILE | {"nfe": 200, "sigma_start": sigmas[0] * 2, "nodes": nodes}
    schedule = lmsd.Schedule.from_json(file)
    assert (schedule.sigmas[:-1] == sigmas).all()
    assert all((a == b).all() for a, b in zip(schedule.weights, weights, strict=True))


def test_schedules_are_equal_by_what_they_say():
    assert lmsd.solve(nfe=5) == lmsd.solve(nfe=5) != lmsd.solve(nfe=6)
    assert lmsd.solve(nfe=5) != "a text"
    assert len({lmsd.solve(nfe=5), lmsd.solve(nfe=5), lmsd.solve("euler", nfe=5)}) == 2
    assert "5 NFE" in repr(lmsd.solve(nfe=5)) and "distance" not in repr(lmsd.solve(nfe=5))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "format 2"),
        ({"nfe": 3}, "nfe is 3 but there are 2 nodes"),
        ({"sigma_end": 0.5}, "sigma_end is 0.5"),
        ({"sigma_start": 1.0}, "sigma of node 0 is 7.1"),
        ({"nodes": []}, "nfe is 2"),
        ({"process": "vp"}, "unknown variant `vp`"),
        ({"surprise": 1}, "unknown field `surprise`"),
    ],
)
def test_refusals_say_where(change, words):
    with pytest.raises(lmsd.ScheduleError, match=words) as raised:
        lmsd.Schedule.from_json(FILE | change)
    assert raised.value.status == lmsd.Status.INVALID_SCHEDULE
    assert isinstance(raised.value, ValueError)


def test_bad_texts_and_files_are_refused(tmp_path):
    for text in (
        "",
        "{",
        "[1]",
        b"\xff\xfe",
        "null",
        '{"format": 1e400}',
        "[" * 100_000,
        "x" * (1 << 20 | 1),
    ):
        with pytest.raises(lmsd.ScheduleError):
            lmsd.Schedule.from_json(text)
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(lmsd.Error, match=path.name) as raised:
            lmsd.Schedule.load(path)
        assert raised.value.status == lmsd.Status.IO
    with pytest.raises(ValueError, match="NUL"):
        lmsd.Schedule.load("a\0b")


def test_check_refuses_a_schedule_made_for_something_else():
    schedule = lmsd.Schedule.from_json(FILE)
    schedule.check(process="ve", guidance_scale=3.0, sigma_max=80.01, latent_shape=[4, 64, 64])
    schedule.check()
    for host, words in [
        ({"guidance_scale": 7.5}, "7.5"),
        ({"process": "flow"}, "flow"),
        ({"model": "x"}, "toy"),
    ]:
        with pytest.raises(lmsd.ScheduleError, match=words) as raised:
            schedule.check(**host)
        assert raised.value.status == lmsd.Status.MISMATCH


def test_a_schedule_for_two_networks_says_so():
    made_for = {**FILE["made_for"], "boundary": 0.9, "guidance_scale_2": 1.5}
    schedule = lmsd.Schedule.from_json(FILE | {"made_for": made_for})
    assert lmsd.Schedule.from_json(schedule.to_json()).made_for == made_for
    schedule.check(boundary=0.9, guidance_scale_2=1.5)
    lmsd.Schedule.from_json(FILE).check(boundary=0.9)
    for host, words in [({"boundary": 0.875}, "0.9; .*0.875"), ({"guidance_scale_2": 3.0}, "1.5; .*3")]:
        with pytest.raises(lmsd.ScheduleError, match=words):
            schedule.check(**host)


def test_solve_takes_grids_in_three_forms():
    by_name = lmsd.solve("euler", nfe=4, grid="karras", sigma_min=0.01, sigma_max=10)
    by_dict = lmsd.solve(
        "euler", nfe=4, grid={"kind": "karras", "rho": 7}, sigma_min=0.01, sigma_max=np.float32(10)
    )
    by_list = lmsd.solve("euler", nfe=4, grid=by_name.sigmas)
    assert by_name == by_dict
    assert (by_name.sigmas == by_list.sigmas).all()
    ramp = np.linspace(10 ** (1 / 7), 0.01 ** (1 / 7), 4) ** 7
    np.testing.assert_allclose(by_name.sigmas, [*ramp, 0], rtol=1e-12)


def test_every_solver_is_listed_and_solves():
    for solver in lmsd.solvers():
        for process, top in (("ve", 80.0), ("flow", 1.0)):
            schedule = lmsd.solve(solver["name"], nfe=7, process=process)
            assert schedule.nfe == 7 and schedule.sigma_start == top and schedule.process == process
            assert (
                schedule.made_by["method"] == "handcrafted" and schedule.made_by["solver"] == solver["name"]
            )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"solver": "none"}, 'no solver "none"'),
        ({"nfe": 0}, "nfe is 0"),
        ({"nfe": -1}, "not options"),
        ({"sigma_max": 0.0}, "sigma_max is 0"),
        ({"grid": {"kind": "karras", "rho": -1}}, "rho"),
        ({"grid": "spiral"}, "spiral"),
        ({"grid": [1, 2], "nfe": 1}, "decrease"),
    ],
)
def test_solve_refuses_what_is_out_of_range(options, words):
    with pytest.raises(lmsd.Error, match=words) as raised:
        lmsd.solve(**options)
    assert raised.value.status == lmsd.Status.INVALID_ARGUMENT
    assert not isinstance(raised.value, lmsd.ScheduleError)


def test_schedules_cannot_be_made_otherwise_or_changed():
    with pytest.raises(TypeError, match="from_json"):
        lmsd.Schedule()
    schedule = lmsd.solve(nfe=3)
    with pytest.raises(AttributeError):
        schedule.nfe = 4
    schedule.made_by["solver"] = "other"
    schedule.sigmas[0] = 1
    assert schedule == lmsd.solve(nfe=3) and schedule.made_by["solver"] == "dpmpp_2m"


def test_a_part_starts_where_the_state_is():
    whole = lmsd.solve("dpmpp_3m", nfe=6)
    assert whole.start_at(80) == whole
    part = whole.start_at(1.5)
    assert part.sigma_start == part.sigmas[0] == 1.5 and part.nfe < 6
    assert [sum(row) for row in part.weights] == pytest.approx([1] * part.nfe)
    with pytest.raises(lmsd.Error, match="sigma is 81"):
        whole.start_at(81)
