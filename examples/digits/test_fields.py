"""Tests of what the demo and the benchmarks make of the fields of published solvers."""

import functools

import demo
import lmsd
import pytest
import report
from common import FIELDS, calls_needed, contest, field, measure, which
from problem import problem

SOLVERS = ("euler", "ipndm_2")


def test_the_best_of_a_contest_is_the_best_of_those_measured():
    make = functools.partial(problem, 3.0)
    test = make(16)
    groups = {name: field(test, 3, name, SOLVERS) for name in FIELDS}
    assert 2 <= len(groups["published"]) < len(groups["strongest"]) / 5
    best = contest(make, groups, test, 32)
    for ranked in best.values():
        schedules, distances = zip(*ranked, strict=True)
        assert list(distances) == sorted(distances) == pytest.approx(measure(test, schedules, 32))
    assert best["strongest"][0][1] < 0.8 * best["published"][0][1]
    assert which(best["strongest"][0][0]) not in {which(schedule) for schedule in groups["published"]}


def test_calls_at_equal_distance():
    line = {3: 1.0, 4: 0.5, 6: 0.125}
    assert [calls_needed(line, distance) for distance in (2.0, 1.0, 0.25, 0.1)] == [3, 3, 5, None]


def test_the_page_tells_of_both_fields(tmp_path):
    digits = problem(3.0, demo.MEASURED)
    file = lmsd.solve("ipndm_2", nfe=3, sigma_max=80.0, sigma_end=0.002, afs=True).to_dict()
    own = lmsd.Schedule.from_json(file | {"made_for": digits.made_for})
    measured = {nfe: demo.measure_one(3.0, 0, nfe, own if nfe == 3 else None, 64, SOLVERS) for nfe in (3, 4)}
    rows, goal = demo.compared(digits, {3: own}, measured, 64)
    (row,) = rows
    assert row["distance"] == pytest.approx(measure(digits, [own], 64)[0])
    for name, best in row["fields"].items():
        assert best["ratio"] == pytest.approx(best["distance"] / row["distance"])
        assert best["distance"] == measured[3].fields[name][0][1] <= measured[3].fields[name][-1][1]
    assert row["fields"]["strongest"]["distance"] <= row["fields"]["published"]["distance"]
    about = {
        "config": {"teacher": "x", "teacher_nfe": 100, "trajectories": 64, "held_out": 64},
        "seconds": 1.0,
    }
    about |= {"image_calls": 1, "teacher_nfe": 20, "library_version": "0"}
    how = {
        "guidance": 3.0,
        "test": 64,
        "ranking": (8, 64),
        "solvers": 2,
        "interrupted": False,
        "report": about,
    }
    how["counts"] = {name: [5] for name in FIELDS}
    report.write(tmp_path, {3: own}, measured, rows, goal, how)
    page = (tmp_path / "report.html").read_text()
    for name, best in row["fields"].items():
        assert f"<td>{FIELDS[name]}</td><td>{best['distance']:.4f}</td>" in page
        assert f"<td>{best['which']}</td>" in page
