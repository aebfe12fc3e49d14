"""Options stand once, in the library: what Python says of them is generated from there."""

import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import lmsd
import numpy as np
import pytest

GENERATOR = Path(__file__).parents[1] / "generate.py"


def generator():
    spec = importlib.util.spec_from_file_location("generate", GENERATOR)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_functions_are_up_to_date():
    generate = generator()
    again = generate.generated()
    assert generate.FILE.read_text() == again, "run python bindings/python/generate.py"


@pytest.mark.parametrize("name", ["solve", "distill", "compare", "rivals"])
def test_every_option_is_a_typed_argument_with_its_text(name):
    function, options = getattr(lmsd, name), lmsd.options()[name]
    parameters = inspect.signature(function).parameters
    text = " ".join(inspect.getdoc(function).split())
    assert len(options) > 5
    for option in options:
        parameter = parameters[option["name"]]
        assert parameter.annotation is not inspect.Parameter.empty
        empty = option["default"] in (None, [], {})
        assert empty or parameter.default == option["default"], option["name"]
        assert not empty or parameter.default in (None, ()), option["name"]
        assert f"`{option['name']}` (" in text
        assert f"default: {option['default_text']}): {option['about']}" in text
        assert option["unit"] in text and option["range"] in text


def test_an_option_that_there_is_not_is_refused_by_python():
    with pytest.raises(TypeError, match="trajectory"):
        lmsd.distill(None, None, np.zeros((1, 2)), trajectory=3)


def test_ranges_are_those_that_the_library_keeps():
    def refused(**options):
        with pytest.raises(lmsd.Error) as caught:
            lmsd.distill(None, lambda batch: None, np.zeros((1, 2)), progress=False, **options)
        return str(caught.value)

    bounded = [o for o in lmsd.options()["distill"] if o["type"] == "integer" and " to " in o["range"]]
    assert {"nfe", "order", "teacher_nfe", "iterations"} <= {option["name"] for option in bounded}
    for option in bounded:
        low, high = map(int, option["range"].split(" to "))
        for value in (low - 1, high + 1):
            said = refused(**{option["name"]: value})
            assert said == f"{option['name']} is {value}; it must be {option['range']}"
    assert refused(difference_step=0.3) == "difference_step is 0.3; it must be 1e-5 to 0.2"


@pytest.mark.parametrize("nfe", ["5", [3, 5, 8], 2.5, None])
def test_what_is_no_number_of_calls_is_refused(nfe):
    with pytest.raises(lmsd.Error, match=r"it must be a number of model calls, or \(from, to\)"):
        lmsd.distill(None, None, np.zeros((1, 2)), nfe=nfe)


def test_a_users_script_is_typed(tmp_path):
    script = tmp_path / "user.py"
    script.write_text(USER)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(script)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    script.write_text(USER.replace("trajectories=16", 'trajectories="many"'))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "trajectories" in done.stdout


USER = '''"""Distills for a Gaussian, samples, compares."""

from typing import Any

import lmsd
import numpy as np

SIGMA_MAX = 80.0


def model(x: Any, sigma: float) -> Any:
    return x / (1 + sigma**2)


def begin(batch: int) -> Any:
    return np.random.default_rng(batch).normal(size=(4, 3)) * SIGMA_MAX


def stop(told: lmsd.Progress) -> bool:
    return bool(told["seconds_left"] > 60)


x_t = begin(0)
published: lmsd.Schedule = lmsd.solve("dpmpp_2m", nfe=8, grid={"kind": "karras", "rho": 5})
found: lmsd.Distilled = lmsd.distill(model, begin, x_t, nfe=5, trajectories=16, progress=stop)
schedules = [published, *found.schedules.values(), *lmsd.rivals(5, "published", process="ve")]
for schedule, distance in zip(schedules, lmsd.compare(schedules, model, begin, x_t, held_out=8)):
    print(schedule.name, schedule.nfe, distance, schedule.sigmas.tolist())
end = lmsd.sample(found.schedules[5], x_t, model)
sampler = lmsd.Sampler(published, x_t)
for x, sigma in sampler:
    sampler.step(model(x, sigma))
found.save("schedules")
print(end, lmsd.solvers()[0]["nfes"], [option["name"] for option in lmsd.options()["distill"]])
'''
