"""A published solver's schedule, an analytic model, four samples."""

import lmsd
import numpy as np

schedule = lmsd.solve(solver="dpmpp_2m", nfe=8)


def model(x, sigma):
    """The exact prediction of x0 where x0 is 1, with a standard deviation of 0.5."""
    return (0.25 * x + sigma**2) / (0.25 + sigma**2)


x_t = np.array([[-60.0], [-20.0], [20.0], [60.0]], np.float32)  # noise of standard deviation 80
print(lmsd.sample(schedule, x_t, model).ravel().round(4))
