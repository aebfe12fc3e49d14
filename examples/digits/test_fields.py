"""Tests of what the demo and the benchmarks make of the fields of published solvers."""

import functools

import pytest
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
