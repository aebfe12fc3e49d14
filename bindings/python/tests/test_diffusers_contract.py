"""What diffusers asks of every scheduler, as its common scheduler test does, of LmsdScheduler.

What that test does and LmsdScheduler refuses on purpose is at the end, and in docs/diffusers.md.
"""

import inspect
import json
import logging
import warnings

import lmsd
import numpy as np
import pytest
import torch
from diffusers_models import seeded, table
from lmsd.diffusers import LmsdScheduler

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # theirs, for numpy 2
NFE = 6
CONFIGS = {
    "epsilon": {"num_train_timesteps": 1100},
    "v_prediction": {"prediction_type": "v_prediction", "beta_schedule": "scaled_linear"},
    "sample": {"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2"},
    "flow_prediction": {"prediction_type": "flow_prediction", "shift": 3.0},
}


def config_of(kind):
    options = {"process": "flow"} if kind == "flow_prediction" else {"sigma_max": 10.0}
    return {**CONFIGS[kind], "schedules": [table("dpmpp_2m", nfe=NFE, **options).to_dict()]}


@pytest.fixture(params=CONFIGS)
def made(request):
    """Makes a scheduler, the same each time."""
    return lambda **more: LmsdScheduler(**config_of(request.param), **more)


def sample():
    return torch.rand(4, 3, 8, 8, generator=seeded())


def model(sample, t):
    return sample * t / (t + 1)


def loop(scheduler, steps=NFE, **options):
    """The common loop of a pipeline; the states before each step, and the end point."""
    scheduler.set_timesteps(steps)
    x = torch.randn(4, 3, 8, 8, generator=seeded()) * scheduler.init_noise_sigma
    states = [x]
    for t in scheduler.timesteps:
        output = model(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x, **options)[0]
        states.append(x)
    return states


def test_a_saved_config_makes_the_same_steps(made, tmp_path):
    scheduler = made()
    scheduler.save_config(tmp_path)
    again = LmsdScheduler.from_pretrained(tmp_path)
    for ours, theirs in zip(loop(scheduler), loop(again), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_saved_scheduler_has_the_same_config(made, tmp_path):
    scheduler = made()
    scheduler.save_pretrained(tmp_path)
    config = dict(scheduler.config)
    config.pop("_use_default_values")
    assert config == LmsdScheduler.from_pretrained(tmp_path).config
    file = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert file["_class_name"] == "LmsdScheduler" and file["schedules"] == config["schedules"]


def test_compatible_schedulers_take_the_config_and_give_it_back():
    scheduler = LmsdScheduler(**config_of("epsilon"))
    kinds = scheduler.compatibles
    assert len(kinds) > 15 and None not in kinds
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    try:
        for kind in kinds:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                theirs = kind.from_config(scheduler.config)
            again = LmsdScheduler.from_config(theirs.config)
            assert {name: again.config[name] for name in scheduler.config} == dict(scheduler.config), kind
            more = set(again.config) - set(scheduler.config)
            assert not more & set(inspect.signature(LmsdScheduler.__init__).parameters)
    finally:
        logging.getLogger("diffusers").setLevel(logging.WARNING)


def test_a_step_keeps_the_shape(made):
    scheduler, x = made(), sample()
    for t in scheduler.timesteps[:2]:
        assert scheduler.scale_model_input(x, t).shape == x.shape
        out = scheduler.step(0.1 * x, t, x)
        assert out.prev_sample.shape == out.pred_original_sample.shape == x.shape


def test_a_tuple_holds_what_the_output_object_holds(made):
    outputs, x = [], sample()
    for return_dict in (True, False):
        scheduler = made()
        t = scheduler.timesteps[0]
        scheduler.scale_model_input(x, t)
        outputs.append(scheduler.step(0.1 * x, t, x, return_dict=return_dict))
    assert isinstance(outputs[1], tuple) and len(outputs[1]) == 2
    for one, other in zip(outputs[0].values(), outputs[1], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_public_interface(made):
    scheduler, x = made(), sample()
    assert scheduler.order == 1 and len(scheduler) == scheduler.config.num_train_timesteps
    assert float(scheduler.init_noise_sigma) >= 1 and scheduler.config_name == "scheduler_config.json"
    scheduler.set_timesteps(NFE)
    times = scheduler.timesteps
    assert len(times) == scheduler.num_inference_steps == NFE and (times.diff() < 0).all()
    assert len(scheduler.sigmas) == NFE + 1 and scheduler.sigmas[-1] == 0
    for t in (times[0], float(times[0]), times[0].double()):
        scheduler.set_timesteps(NFE)
        assert scheduler.scale_model_input(x, t).shape == x.shape


@pytest.mark.parametrize("count", [1, 4])
def test_noise_is_added_for_one_timestep_or_for_each(made, count):
    scheduler, x, noise = made(), sample(), torch.randn(4, 3, 8, 8, generator=seeded(1))
    scheduler.set_timesteps(NFE)
    noised = scheduler.add_noise(x, noise, scheduler.timesteps[4][None].repeat(count))
    assert noised.shape == x.shape and noised.dtype == x.dtype and noised.device == x.device
    assert not torch.equal(noised, x)


def test_only_arguments_with_names():
    parameters = inspect.signature(LmsdScheduler.__init__).parameters.values()
    assert not any(one.kind == one.VAR_KEYWORD for one in parameters) and not LmsdScheduler._deprecated_kwargs


def test_betas_given_as_an_array_are_saved(tmp_path):
    schedule = table(nfe=2, sigma_max=0.5).to_dict()
    scheduler = LmsdScheduler([schedule], trained_betas=np.array([0.1, 0.3]))
    scheduler.save_pretrained(tmp_path)
    assert LmsdScheduler.from_pretrained(tmp_path).betas.tolist() == scheduler.betas.tolist()


def test_attributes(made, caplog):
    scheduler = made()
    scheduler.a_new_one = 5
    scheduler.register_to_config(in_the_config=5)
    assert scheduler.a_new_one == 5 and scheduler.save_pretrained == scheduler.save_pretrained
    with pytest.warns(FutureWarning, match="in_the_config"):
        assert scheduler.in_the_config == 5
    with pytest.raises(AttributeError, match="'LmsdScheduler' object has no attribute 'absent'"):
        scheduler.absent  # noqa: B018


def test_a_second_run_is_like_the_first_and_no_generator_matters(made):
    scheduler = made()
    runs = [loop(scheduler), loop(scheduler, generator=seeded(7)), loop(made(), generator=seeded(8))]
    for run in runs[1:]:
        for one, other in zip(runs[0], run, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert all(x.isfinite().all() for x in runs[0])


def test_what_is_refused_on_purpose(made):
    """What their test does and other schedulers take, at the price of another result than was meant."""
    scheduler, x = made(), sample()
    t = scheduler.timesteps[0]
    if scheduler.config.prediction_type != "flow_prediction":
        with pytest.raises(ValueError, match="did not call scheduler.scale_model_input"):
            scheduler.step(0.1 * x, t, x)
    scheduler.set_timesteps(NFE)
    with pytest.raises(ValueError, match="none of scheduler.timesteps"):
        scheduler.scale_model_input(x, 17.3)
    with pytest.raises(ValueError, match="no schedule of 10 steps"):
        scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match="its own timesteps"):
        scheduler.set_timesteps(timesteps=[100, 87, 50, 1, 0])
    loop(scheduler)
    with pytest.raises(ValueError, match="the last step was taken"):
        scheduler.scale_model_input(x, t)
    with pytest.raises(lmsd.Error, match="no list of schedules"):
        LmsdScheduler()


def test_betas_that_know_less_noise_than_the_schedule_are_refused():
    with pytest.raises(lmsd.Error, match="knows no noise level above"):
        LmsdScheduler(**config_of("epsilon"), trained_betas=np.array([0.1, 0.3]))
