"""`lmsd.gain`: what is compared, that the figures are right, where they go; the report that shows them."""

import io

import lmsd
import numpy as np
import pytest
from lmsd import gain
from lmsd.plots import plot_report
from matplotlib.text import Text

CONFIG = {
    "trajectories": 16,
    "held_out": 32,
    "teacher_nfe": 40,
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_end": 0.0,
}


def arguments(mixture):
    return mixture.model, mixture.begin, mixture.like


# ---- rivals


def test_rivals_at_as_many_and_twice_as_many_calls():
    found = gain.rivals([3, 4])
    assert {nfe for _, _, nfe in found} == {3, 4, 6, 8}
    assert {solver for solver, _, _ in found} == set(gain.SOLVERS)
    for (solver, grid, nfe), schedule in found.items():
        made = schedule.made_by
        assert schedule.nfe == nfe and (made["solver"], made["grid"]) == (solver, grid)
        assert (schedule.process, schedule.sigma_start, schedule.sigma_end) == ("ve", 80.0, 0.0)
    grids = {grid for solver, grid, nfe in found if (solver, nfe) == ("euler", 4)}
    assert len(grids) == 6  # karras rho 7 and 4, log; with a call at sigma_min and without


def test_rivals_have_the_hosts_levels():
    levels = {"sigma_min": 0.03, "sigma_max": 14.6}
    for schedule in gain.rivals([4], ["euler"], **levels).values():
        assert schedule.sigmas[0] == 14.6 and schedule.sigmas[-1] == 0
        last = schedule.sigmas[-2]
        assert last == pytest.approx(0.03) or last > 0.05  # a call at sigma_min, or none
    for schedule in gain.rivals([4], ["euler"], sigma_max=10.0, sigma_end=0.5).values():
        assert schedule.sigmas[[0, -1]].tolist() == [10.0, 0.5]


def test_rivals_of_flow_models_have_its_shift_too():
    def shifts(**options):
        return {grid for _, grid, _ in gain.rivals([4], ["euler"], process="flow", sigma_max=1.0, **options)}

    assert len(shifts()) == len(shifts(shift=3.0)) == 3
    assert shifts(shift=1.15) - shifts() == {"flow shift=1.15"}
    found = gain.rivals([4], ["euler"], process="flow", shift=1.15, sigma_max=1.0, sigma_end=0.0)
    assert all(s.process == "flow" and s.sigmas[0] == 1 for s in found.values())


def test_solvers_with_two_calls_a_step_are_left_out_where_they_do_not_fit():
    found = gain.rivals([3, 4], ["heun", "euler"])
    assert {nfe for solver, _, nfe in found if solver == "euler"} == {3, 4, 6, 8}
    assert {nfe for solver, _, nfe in found if solver == "heun"} < {3, 4, 6, 8}


# ---- measure


@pytest.fixture(scope="module")
def family():
    from mixture import Mixture

    mixture = Mixture()
    return lmsd.distill(*arguments(mixture), nfe=(3, 4), progress=False, **CONFIG)


@pytest.fixture(scope="module")
def measured(family):
    from mixture import Mixture

    return gain.measure(family, *arguments(Mixture()), solvers=("euler", "dpmpp_2m"), **CONFIG)


def rows(schedule):
    return {(row["solver"], row["nfe"]): row for row in schedule.made_by["compared"]}


def test_every_schedule_gets_the_whole_comparison(family, measured):
    expected = {(solver, nfe) for solver in ("euler", "dpmpp_2m") for nfe in (3, 4, 6, 8)}
    expected |= {("distilled", 3), ("distilled", 4)}
    assert list(measured.schedules) == [3, 4] and measured.report == family.report
    for nfe, schedule in measured.schedules.items():
        assert set(rows(schedule)) == expected
        assert rows(schedule) == rows(measured.schedules[3])
        before, after = family.schedules[nfe].to_dict(), schedule.to_dict()
        del after["made_by"]["compared"]
        before["made_by"].pop("compared", None)
        assert before == after
    assert all("compared" not in s.made_by or not s.made_by["compared"] for s in family.schedules.values())


def test_the_figures_are_those_of_compare_on_the_best_grid(family, measured, mixture):
    (schedule, *_) = measured.schedules.values()
    table = rows(schedule)
    rivals = gain.rivals(family.schedules, ("euler", "dpmpp_2m"))
    names = [*rivals, *(("distilled", "", nfe) for nfe in family.schedules)]
    schedules = [*rivals.values(), *family.schedules.values()]
    distances = lmsd.compare(schedules, *arguments(mixture), **CONFIG)
    for (solver, nfe), row in table.items():
        mine = [(d, n[1]) for n, d in zip(names, distances, strict=True) if (n[0], n[2]) == (solver, nfe)]
        assert (row["distance"], row["grid"]) == min(mine)


def test_the_gain_is_on_images_that_nobody_saw(measured):
    """So the figure is not the fit's own, but it is a gain."""
    table = rows(measured.schedules[4])
    assert table["distilled", 4]["distance"] < 0.5 * table["euler", 4]["distance"]
    assert table["distilled", 4]["distance"] < table["distilled", 3]["distance"]
    assert table["distilled", 4]["distance"] != measured.schedules[4].made_by["distance"]


def test_batches_are_those_of_a_comparison(family, mixture):
    asked = []

    def begin(batch):
        asked.append(batch)
        return mixture.begin(batch)

    gain.measure(family, mixture.model, begin, mixture.like, solvers=("euler",), **CONFIG)
    assert asked and min(asked) >= 2**21


def test_it_survives_the_file(measured, tmp_path):
    for path, schedule in zip(measured.save(tmp_path), measured.schedules.values(), strict=True):
        loaded = lmsd.Schedule.load(path)
        assert loaded == schedule and rows(loaded) == rows(schedule)


def test_what_is_no_gain_is_called_handcrafted(mixture):
    """As where a run is stopped before its first fit."""
    found = lmsd.distill(
        *arguments(mixture), nfe=3, progress=lambda told: np.isfinite(told["distance"]), **CONFIG
    )
    assert not found.schedules[3].made_by["improved"]
    table = rows(gain.measure(found, *arguments(mixture), **CONFIG).schedules[3])
    assert ("handcrafted", 3) in table and ("distilled", 3) not in table


def test_an_interrupt_in_the_model_comes_out(family, mixture):
    error = KeyboardInterrupt()

    def stop(x, sigma):
        raise error

    with pytest.raises(KeyboardInterrupt) as raised:
        gain.measure(family, stop, mixture.begin, mixture.like, **CONFIG)
    assert raised.value is error


# ---- the report


def drawn(figure):
    """The picture as text and pixels."""
    file = io.BytesIO()
    figure.savefig(file, format="rgba", dpi=50)
    pixels = np.frombuffer(file.getvalue(), np.uint8).reshape(-1, 4)
    assert (pixels[:, :3].min(1) < 128).mean() > 0.003
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def test_the_report_of_measured_schedules(measured):
    schedule = measured.schedules[4]
    shown = drawn(plot_report(schedule))
    table = rows(schedule)
    own = table["distilled", 4]["distance"]
    for solver in ("euler", "dpmpp_2m"):
        for nfe in (4, 8):
            assert f"{table[solver, nfe]['distance'] / own:.2f}x" in shown
    assert f"distance {own:.4g} at 4 calls" in shown and "4 calls, sigma 80 to 0 (ve)" in shown
    assert "NOT an improvement" not in shown


def test_its_factors_are_quotients_of_the_records_distances():
    def row(solver, nfe, distance):
        return {"solver": solver, "grid": "log", "nfe": nfe, "distance": distance}

    file = lmsd.solve("euler", nfe=3).to_dict() | {"name": "digits"}
    own = [row("distilled", 3, 0.1), row("distilled", 4, 0.05)]
    theirs = [row("euler", 3, 0.37), row("euler", 6, 0.15), row("ipndm_4", 3, 0.2)]
    file["made_by"] = {"method": "distilled", "improved": True, "distance": 0.11, "compared": own + theirs}
    file["made_for"] = {"model": "SD15", "guidance_scale": 7.5, "latent_shape": [4, 64, 64]}
    shown = drawn(plot_report(lmsd.Schedule.from_json(file)))
    for words in ("3.70x", "1.50x", "2.00x", "SD15", "7.5", "4 x 64 x 64", "digits", "0.1 at 3 calls"):
        assert words in shown
    file["made_by"]["improved"] = False
    assert "NOT an improvement" in drawn(plot_report(lmsd.Schedule.from_json(file)))


@pytest.mark.parametrize("record", ["nothing", "rivals only"])
def test_a_report_without_comparisons(family, record):
    if record == "nothing":
        assert "no distances in this file" in drawn(plot_report(lmsd.solve("heun", nfe=7)))
        return
    shown = drawn(plot_report(family.schedules[3]))
    best = family.schedules[3].made_by["handcrafted"][0]
    assert best["solver"] in shown and "no distances" not in shown


@pytest.mark.parametrize("name", ["$\\frac{$ 100 %", "_hidden"])
def test_names_are_shown_as_they_are(name):
    schedule = lmsd.Schedule.from_json(lmsd.solve("euler", nfe=3).to_dict() | {"name": name})
    shown = drawn(plot_report(schedule))
    assert shown.replace(r"\$", "$").count(name) == 2  # title and legend
