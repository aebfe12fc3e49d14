"""What the network of a diffusers pipeline takes and returns, in lmsd's coordinates.

All of it follows from the config of the pipeline's scheduler.
"""

import inspect
import math
from collections.abc import Mapping

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler

from .._abi import Error

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction")
BETAS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)
FINE = 1000  # timesteps that a flow network has at least, whatever num_train_timesteps counts
OWN_LEVELS = "the pipeline passes noise levels of its own to the scheduler"
LAST_ALPHA = 2.0**-24  # of a network trained to no signal at all, whose sigma would be infinite


def settings(scheduler) -> dict:
    """The config of a pipeline's scheduler, in which `prediction_type` and `shift` are always to be found.

    Of `clip_sample` and `thresholding` only what that kind of scheduler heeds. Raises Error for networks
    whose coordinates are not those of `Network`.
    """
    config = {name: value for name, value in dict(scheduler.config).items() if name != "_use_default_values"}
    strange = "sigma_data" in config or config.get("invert_sigmas")
    if config.get("use_flow_sigmas"):
        config |= {"prediction_type": "flow_prediction", "shift": config.get("flow_shift", 1.0)}
    elif "shift" in config and "prediction_type" not in config:  # FlowMatchEulerDiscreteScheduler and kin
        config["prediction_type"] = "flow_prediction"
    elif config.get("prediction_type") != "flow_prediction" and "beta_schedule" not in config:
        strange = True
    known = inspect.signature(type(scheduler).__init__).parameters
    for name in ("clip_sample", "thresholding"):
        if name not in known:
            config.pop(name, None)
    if strange or not _same_noise_levels(scheduler, config):
        raise Error(f"{type(scheduler).__name__}: networks of this kind are not supported")
    return config


def _same_noise_levels(scheduler, config) -> bool:
    """Whether a scheduler's table of noise levels, if it has one, is the one that follows from its config."""
    theirs = scheduler.__dict__.get("alphas_cumprod")
    if not isinstance(theirs, torch.Tensor) or config.get("prediction_type") not in PREDICTION_TYPES[:3]:
        return True
    own = Network(config).alphas_cumprod
    return own.shape == theirs.shape and torch.allclose(own, theirs.to(own), rtol=1e-3, atol=1e-6)


class Network:
    """Timesteps, inputs and outputs of a network of diffusers, from its scheduler's config.

    epsilon, v_prediction and sample: process "ve", x = x0 + sigma n as in EulerDiscreteScheduler; the network
    is given x / sqrt(1 + sigma^2). flow_prediction: process "flow"; the network is given x itself.
    `sigma_min`, `sigma_max`: the range of its training; `betas`: of the former, else None. Where the config
    says so, predictions of x0 are clipped, by `clip_sample` or by `thresholding` (arXiv 2205.11487, 2.3).
    """

    def __init__(self, config: Mapping):
        self.prediction_type = config.get("prediction_type", "epsilon")
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type is {self.prediction_type!r}; {', '.join(PREDICTION_TYPES)} are supported"
            )
        self.process = "flow" if self.prediction_type == "flow_prediction" else "ve"
        self.steps = config.get("num_train_timesteps", 1000)
        self.smallest = 1 / max(self.steps, FINE)  # noise level of a flow network, before the shift
        self.integer = bool(config.get("integer_timesteps"))
        self.time_shift = 1.0  # by which a flow network's time is less than its noise level
        self.log_time = False  # as EulerDiscreteScheduler's continuous timesteps: log(sigma) / 4
        self.betas, self.shift = None, None
        self.clip = config.get("clip_sample_range", 1.0) if config.get("clip_sample") else None
        self.quantile = (
            config.get("dynamic_thresholding_ratio", 0.995) if config.get("thresholding") else None
        )
        self.largest = config.get("sample_max_value", 1.0)
        if self.process == "flow":
            if not config.get("use_dynamic_shifting"):
                self.shift = float(config.get("shift", 1.0))
            self.sigma_max = 1.0
            self.sigma_min = shifted(self.smallest, self.shift or 1.0)
            return
        self.betas, self.alphas_cumprod = _training(config)
        sigmas = ((1 - self.alphas_cumprod) / self.alphas_cumprod).double().sqrt().numpy()
        self.log_sigmas = np.log(sigmas)
        self.sigma_min, self.sigma_max = float(sigmas[0]), float(sigmas[-1])
        if config.get("timestep_type") == "continuous" and self.prediction_type == "v_prediction":
            self.log_time = True
            self.sigma_min = config.get("sigma_min") or self.sigma_min
            self.sigma_max = config.get("sigma_max") or self.sigma_max

    def timestep(self, sigma: float) -> float:
        """The network's timestep for `sigma`: between training steps by log sigma, clipped to their range.

        Flow: num_train_timesteps * sigma, or what it was before the shift: see `hear`.
        """
        if self.process == "flow":
            time = self.steps * unshifted(sigma, self.time_shift)
        elif self.log_time:
            return 0.25 * math.log(sigma)
        else:
            time = float(np.interp(math.log(sigma), self.log_sigmas, np.arange(len(self.log_sigmas))))
        return round(time) if self.integer else time

    def sigma(self, timestep: float) -> float:
        """The noise level of a timestep: the inverse of `timestep`."""
        if self.process == "flow":
            return shifted(timestep / self.steps, self.time_shift)
        if self.log_time:
            return math.exp(4 * timestep)
        return math.exp(np.interp(timestep, np.arange(len(self.log_sigmas)), self.log_sigmas))

    def expects(self, sigmas) -> bool:
        """Whether these are noise levels that flow pipelines pass by themselves: evenly spaced, from 1."""
        given = np.array([float(sigma) for sigma in sigmas])
        rounding = 1.01 / max(self.steps, FINE)  # CogView4's are whole timesteps
        even = [np.linspace(given[0], end, len(given)) for end in (1 / len(given), rounding)]
        near = min(np.abs(given - levels).max() for levels in even) <= rounding
        return self.process == "flow" and given[0] > 0.99 and near

    def hear(self, timesteps, sigmas, mu: float | None, config: Mapping) -> None:
        """What a pipeline passes to set_timesteps. With both lists a flow network gets the unshifted time.

        So do CogView4's pipelines: their lists are the same numbers, of which the scheduler shifts the noise
        levels only.
        """
        self.time_shift = 1.0
        if self.process == "flow" and timesteps is not None and sigmas is not None:
            given = np.array([float(time) for time in timesteps]) / self.steps
            if len(given) != len(sigmas) or not np.allclose(given, [float(s) for s in sigmas], 0, 1e-3):
                raise ValueError("timesteps are not those of sigmas: leave both out")
            if self.shift is not None:
                self.time_shift = self.shift
            elif mu is not None:
                self.time_shift = shift_of(mu, config)

    @property
    def timestep_dtype(self) -> torch.dtype:
        return torch.int64 if self.integer and not self.log_time else torch.float32

    def input_scale(self, sigma: float) -> float:
        """Factor from a state to the network's input at `sigma`."""
        return 1.0 if self.process == "flow" else 1 / math.sqrt(1 + sigma**2)

    def start(self, sigma: float) -> float:
        """Standard deviation of the x_T that stands for noise level `sigma`.

        sqrt(1 + sigma^2): the network's input has unit variance, as it has in DDIMScheduler and whatever else
        keeps x / sqrt(1 + sigma^2). Flow: 1, as no flow pipeline scales its noise.
        """
        return 1.0 if self.process == "flow" else math.sqrt(1 + sigma**2)

    def denoised(self, output: torch.Tensor, x: torch.Tensor, sigma: float) -> torch.Tensor:
        """The prediction of x0 from the network's output (guidance included) at x.

        Of an output with twice the channels, whose second half is a variance, the first half counts.
        """
        if output.ndim > 1 and output.shape[1] == 2 * x.shape[1] and output.shape[2:] == x.shape[2:]:
            output = output[:, : x.shape[1]]
        if self.prediction_type == "sample":
            return self._clipped(output)
        if self.prediction_type == "v_prediction":
            return self._clipped(x / (1 + sigma**2) - output * (sigma / math.sqrt(1 + sigma**2)))
        return self._clipped(x - sigma * output)  # epsilon; flow: the velocity n - x0

    def _clipped(self, denoised: torch.Tensor) -> torch.Tensor:
        if self.quantile is not None:
            sizes = denoised.flatten(1).abs().double()
            most = torch.quantile(sizes, self.quantile, dim=1).clamp(1, max(1, self.largest)).to(denoised)
            most = most.reshape(-1, *[1] * (denoised.ndim - 1))
            return denoised.clamp(-most, most) / most
        return denoised if self.clip is None else denoised.clamp(-self.clip, self.clip)

    def noisy(self, x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """`x0` at noise levels `sigma`, one for each or one for all."""
        sigma = sigma.reshape(-1, *[1] * (x0.ndim - 1))
        return (1 - sigma if self.process == "flow" else 1.0) * x0 + sigma * noise


def _training(config: Mapping) -> tuple[torch.Tensor, torch.Tensor]:
    """(betas, alphas_cumprod) of the training steps."""
    betas = {name: config[name] for name in BETAS if name in config}
    shift = config.get("snr_shift_scale") or 1.0
    if config.get("beta_schedule") == "exp":  # Shap-E's; Euler's scheduler has none of these
        betas.pop("rescale_betas_zero_snr", None)
        heun = HeunDiscreteScheduler(**betas)
        return heun.betas, heun.alphas_cumprod
    if shift == 1:
        euler = EulerDiscreteScheduler(**betas)
        return euler.betas, euler.alphas_cumprod
    euler = EulerDiscreteScheduler(**{**betas, "rescale_betas_zero_snr": False})
    alphas = euler.alphas_cumprod / (shift + (1 - shift) * euler.alphas_cumprod)  # as CogVideoXDDIMScheduler
    if config.get("rescale_betas_zero_snr"):
        roots = alphas.sqrt()
        alphas = ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))) ** 2
        alphas[-1] = LAST_ALPHA
    return euler.betas, alphas


def shifted(sigma: float, shift: float) -> float:
    """The noise level of a flow model's time `sigma` under `shift` (arXiv 2403.03206, equation 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def unshifted(sigma: float, shift: float) -> float:
    """The inverse of `shifted`."""
    return sigma / (shift - (shift - 1) * sigma)


def shift_of(mu: float, config: Mapping) -> float:
    """The shift that a dynamically shifted flow pipeline's `mu` stands for."""
    return float(mu) if config.get("time_shift_type") == "linear" else math.exp(mu)
