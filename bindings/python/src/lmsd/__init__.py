"""Few-step sampling of diffusion and flow models by distilled linear multistep solvers.

    schedule = lmsd.solve("dpmpp_2m", nfe=8)                    # a published solver, as data
    x = lmsd.sample(schedule, x_T, model)                       # model(x, sigma) -> denoised
    distilled = lmsd.distill(model, begin, like=x_T, nfe=5)     # fitted to this model, by forward calls only
    x = lmsd.sample(distilled.schedules[5], x_T, model)

numpy arrays, torch tensors on any device, and arrays of other libraries that speak DLPack (JAX, CuPy, MLX).
`lmsd.features` makes features in which distances may be measured; `lmsd.plots` draws (needs matplotlib);
`lmsd --help` is the command line.
"""

from . import features
from ._abi import Error, ScheduleError, Status, lib
from ._core import Distilled, Progress, ProgressBar, Sampler, Schedule, options, sample, solvers
from ._functions import compare, distill, rivals, solve
from ._interrupt import Interrupt
from ._memory import halve_until_it_fits, out_of_memory

__version__ = lib.lmsd_version().decode()
__all__ = [
    "Distilled",
    "Error",
    "Interrupt",
    "Progress",
    "ProgressBar",
    "Sampler",
    "Schedule",
    "ScheduleError",
    "Status",
    "compare",
    "distill",
    "features",
    "halve_until_it_fits",
    "options",
    "out_of_memory",
    "rivals",
    "sample",
    "solve",
    "solvers",
]
