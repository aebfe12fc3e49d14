"""What the network of a diffusers pipeline takes and returns, in lmsd's coordinates.

All of it follows from the config of the pipeline's scheduler.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler

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


def settings(scheduler) -> dict:
    """The config of a pipeline's scheduler, in which `prediction_type` and `shift` are always to be found.

    Raises Error for networks whose coordinates are not those of `Network`.
    """
    config = {name: value for name, value in dict(scheduler.config).items() if name != "_use_default_values"}
    if "sigma_data" in config or config.get("invert_sigmas"):
        raise Error(f"{type(scheduler).__name__}: networks of this kind are not supported")
    if config.get("use_flow_sigmas"):
        config |= {"prediction_type": "flow_prediction", "shift": config.get("flow_shift", 1.0)}
    elif "shift" in config and "prediction_type" not in config:  # FlowMatchEulerDiscreteScheduler and kin
        config["prediction_type"] = "flow_prediction"
    return config


class Network:
    """Timesteps, inputs and outputs of a network of diffusers, from its scheduler's config.

    epsilon, v_prediction and sample: process "ve", x = x0 + sigma n as in EulerDiscreteScheduler; the network
    is given x / sqrt(1 + sigma^2). flow_prediction: process "flow"; the network is given x itself.
    `sigma_min`, `sigma_max`: the range of its training; `betas`: of the former, else None.
    """

    def __init__(self, config: Mapping):
        self.prediction_type = config.get("prediction_type", "epsilon")
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type is {self.prediction_type!r}; {', '.join(PREDICTION_TYPES)} are supported"
            )
        self.process = "flow" if self.prediction_type == "flow_prediction" else "ve"
        self.steps = config.get("num_train_timesteps", 1000)
        self.integer = bool(config.get("integer_timesteps"))
        self.log_time = False  # as EulerDiscreteScheduler's continuous timesteps: log(sigma) / 4
        self.betas, self.shift = None, None
        if self.process == "flow":
            if not config.get("use_dynamic_shifting"):
                self.shift = float(config.get("shift", 1.0))
            self.sigma_max = 1.0
            self.sigma_min = shifted(1 / self.steps, self.shift or 1.0)
            return
        euler = EulerDiscreteScheduler(**{name: config[name] for name in BETAS if name in config})
        self.betas, self.alphas_cumprod = euler.betas, euler.alphas_cumprod
        sigmas = ((1 - euler.alphas_cumprod) / euler.alphas_cumprod).double().sqrt().numpy()
        self.log_sigmas = np.log(sigmas)
        self.sigma_min, self.sigma_max = float(sigmas[0]), float(sigmas[-1])
        if config.get("timestep_type") == "continuous" and self.prediction_type == "v_prediction":
            self.log_time = True
            self.sigma_min = config.get("sigma_min") or self.sigma_min
            self.sigma_max = config.get("sigma_max") or self.sigma_max

    def timestep(self, sigma: float) -> float:
        """The network's timestep for `sigma`: between training steps by log sigma, clipped to their range.

        Flow: num_train_timesteps * sigma.
        """
        if self.process == "flow":
            time = self.steps * sigma
        elif self.log_time:
            return 0.25 * math.log(sigma)
        else:
            time = float(np.interp(math.log(sigma), self.log_sigmas, np.arange(self.steps)))
        return round(time) if self.integer else time

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
        """The prediction of x0 from the network's output (guidance included) at x."""
        if self.prediction_type == "sample":
            return output
        if self.prediction_type == "v_prediction":
            return x / (1 + sigma**2) - output * (sigma / math.sqrt(1 + sigma**2))
        return x - sigma * output  # epsilon; flow: the velocity n - x0


def shifted(sigma: float, shift: float) -> float:
    """The noise level of a flow model's time `sigma` under `shift` (arXiv 2403.03206, equation 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def shift_of(mu: float, config: Mapping) -> float:
    """The shift that a dynamically shifted flow pipeline's `mu` stands for."""
    return float(mu) if config.get("time_shift_type") == "linear" else math.exp(mu)
