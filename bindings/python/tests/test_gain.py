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
COMPARED = {name: value for name, value in CONFIG.items() if name != "trajectories"}


def arguments(mixture):
    return mixture.model, mixture.begin, mixture.like


# ---- the race


def test_rounds():
    assert [gain.plan(batches) for batches in (1, 2, 3, 16)] == [[1], [1, 2], [1, 2, 3], [1, 2, 16]]
    assert [gain.kept(count, 0) for count in (5, 8, 33, 1100)] == [5, 8, 9, 275]
    assert [gain.kept(count, 1) for count in (5, 33, 1100)] == [5, 8, 8]


def test_a_race_measures_all_few_times_and_few_many_times():
    schedules = lmsd.rivals(3, "published")[:40]
    truth = {schedule: float(number % 17 + number / 100) for number, schedule in enumerate(schedules)}
    asked = []

    def distances(field, batches):
        asked.append((len(field), batches))
        assert len(set(field)) == len(field)
        return [truth[schedule] for schedule in field]

    groups = {"all": schedules, "few": schedules[10:13]}
    own = [lmsd.solve("euler", nfe=7)]
    truth[own[0]] = 0.125
    best, found = gain.race(groups, distances, [1, 2, 16], 4, own)
    assert asked == [(40, 1), (10 + 3, 2), (4 + 3 + 1, 16)]
    ranked = (
        sorted(schedules, key=truth.__getitem__)[:4] + schedules[10:13]
    )  # these by way of the other group
    assert best["all"] == [(schedule, truth[schedule]) for schedule in ranked]
    assert [schedule for schedule, _ in best["few"]] == schedules[10:13] and found == [0.125]


def test_what_diverges_is_not_among_the_best():
    schedules = lmsd.rivals(3, "published")[:3]
    best, _ = gain.race({0: schedules, 1: []}, lambda field, _: [2.0, np.inf, 1.0], [4])
    assert best == {0: [(schedules[2], 1.0), (schedules[0], 2.0)], 1: []}


# ---- measure


@pytest.fixture(scope="module")
def family():
    from mixture import Mixture

    mixture = Mixture()
    return lmsd.distill(*arguments(mixture), nfe=(3, 4), progress=False, **CONFIG)


@pytest.fixture(scope="module")
def measured(family):
    from mixture import Mixture

    return gain.measure(family, *arguments(Mixture(size=8)), **CONFIG)


def rows(schedule):
    return {(row["solver"], row["nfe"]): row for row in schedule.made_by["compared"]}


def test_every_schedule_gets_the_whole_comparison(family, measured):
    expected = {(solver, nfe) for solver in gain.NAMES.values() for nfe in (3, 4, 6, 8)}
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


def test_the_figures_are_those_of_compare(family, measured):
    """Of the very schedules that the grid's words name, on every trajectory."""
    from mixture import Mixture

    table = rows(measured.schedules[3])
    named, own = {}, {}
    for name, field in (("best as published", "published"), ("strongest", "strongest")):
        for nfe in (3, 4, 6, 8):
            for schedule in lmsd.rivals(nfe, field):
                named[name, nfe, f"{schedule.made_by['solver']}, {schedule.made_by['grid']}"] = schedule
    for (solver, nfe), row in table.items():
        own[solver, nfe] = named.get((solver, nfe, row["grid"]), family.schedules.get(nfe))
    distances = lmsd.compare(list(own.values()), *arguments(Mixture(size=8)), **COMPARED)
    assert [table[key]["distance"] for key in own] == pytest.approx(distances)
    for nfe in (3, 4, 6, 8):
        assert table["strongest", nfe]["distance"] <= table["best as published", nfe]["distance"]


def test_the_best_of_the_field_is_found(family, mixture):
    """One batch is one round, of everything."""
    table = rows(gain.measure(family, *arguments(mixture), field="published", **CONFIG).schedules[3])
    assert not any(solver == "strongest" for solver, _ in table)
    field = lmsd.rivals(6, "published")
    distances = lmsd.compare(field, *arguments(mixture), **COMPARED)
    best = field[int(np.argmin(distances))].made_by
    assert table["best as published", 6]["distance"] == min(distances)
    assert table["best as published", 6]["grid"] == f"{best['solver']}, {best['grid']}"


def test_grids_of_ones_own_take_part(family, mixture):
    """Such as one that is good by accident: that of a schedule that was fitted."""
    own = family.schedules[4].sigmas.tolist()
    table = rows(gain.measure(family, *arguments(mixture), extra={4: [own]}, **CONFIG).schedules[3])
    without = rows(gain.measure(family, *arguments(mixture), **CONFIG).schedules[3])
    assert table["strongest", 4]["distance"] <= without["strongest", 4]["distance"]
    assert table["best as published", 4] == without["best as published", 4]
    field = lmsd.rivals(4, extra=[own])[len(lmsd.rivals(4)) :]
    best = min(lmsd.compare(field, *arguments(mixture), **COMPARED))
    assert table["strongest", 4]["distance"] == min(best, without["strongest", 4]["distance"])


@pytest.mark.parametrize(
    ("field", "held_out"), [("published", 8), ("published", 16), ("published", 32), ("strongest", 24)]
)
def test_calls_are_known_before(family, field, held_out):
    from mixture import Mixture

    mixture, config = Mixture(size=8), {**CONFIG, "held_out": held_out}
    gain.measure(family, *arguments(mixture), field=field, **config)
    expected = gain.calls(family.schedules, held_out // 8, field=field, **config)
    assert mixture.calls <= expected
    assert field == "strongest" or mixture.calls == expected


def test_fields_have_names(family, mixture):
    with pytest.raises(ValueError, match="weakest.*published, strongest"):
        gain.measure(family, *arguments(mixture), field="weakest", **CONFIG)
    with pytest.raises(ValueError, match="extra is given"):
        gain.measure(family, *arguments(mixture), field="published", extra={3: [[80, 9, 1, 0]]}, **CONFIG)
    with pytest.raises(TypeError, match="does not take held_outt"):
        gain.measure(family, *arguments(mixture), held_outt=8, **CONFIG)


def test_flow_models_have_their_shift(family):
    levels = {"process": "flow", "sigma_max": 1.0, "made_for": {"shift": 1.15}}
    more, less = (gain.calls([4], 1, field="published", **(levels | made)) for made in ({}, {"made_for": {}}))
    assert more > less


def test_the_gain_is_on_images_that_nobody_saw(measured):
    """So the figure is not the fit's own, but it is a gain."""
    table = rows(measured.schedules[4])
    for nfe in (3, 4):
        assert table["distilled", nfe]["distance"] < 0.9 * table["best as published", nfe]["distance"]
    # Where one call more gains nothing, the two are the same to rounding, which goes either way.
    assert table["distilled", 4]["distance"] < 1.1 * table["distilled", 3]["distance"]
    assert table["distilled", 4]["distance"] != measured.schedules[4].made_by["distance"]


def test_batches_are_those_of_a_comparison(family, mixture):
    asked = []

    def begin(batch):
        asked.append(batch)
        return mixture.begin(batch)

    gain.measure(family, mixture.model, begin, mixture.like, field="published", **CONFIG)
    assert asked and min(asked) >= 2**21


def test_it_survives_the_file(measured, tmp_path):
    for path, schedule in zip(measured.save(tmp_path), measured.schedules.values(), strict=True):
        loaded = lmsd.Schedule.load(path)
        assert loaded == schedule and rows(loaded) == rows(schedule)


def test_what_is_no_gain_is_called_handcrafted(mixture):
    """As where a run is stopped before its first fit, and starts are published ones."""

    def stop(told):
        return np.isfinite(told["distance"])

    found = lmsd.distill(*arguments(mixture), nfe=3, fit_weights=False, progress=stop, **CONFIG)
    assert not found.schedules[3].made_by["improved"]
    table = rows(gain.measure(found, *arguments(mixture), field="published", **CONFIG).schedules[3])
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
    words = " ".join(shown.split())
    for name in gain.NAMES.values():
        for nfe in (4, 8):
            assert f"{table[name, nfe]['distance'] / own:.2f}x" in shown
            assert f"{name}, {nfe} calls: {table[name, nfe]['grid']}" in words
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
