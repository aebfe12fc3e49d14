"""What this repository is about: lmsd.distill, forward calls only."""

import lmsd

from .trajectories import levels


def fit(net, nfe, seed, settings):
    size, held = settings.ours_batch, {}

    def begin(index):
        x, held["conditions"] = net.batch(index, size, seed)
        return x

    found = lmsd.distill(
        lambda x, sigma: net.denoise(x, sigma, held["conditions"]),
        begin,
        net.batch(0, size, seed)[0],
        nfe=nfe,
        trajectories=settings.ours_trajectories,
        max_calls=settings.ours_calls * nfe // size,
        progress=False,
        **levels(net),
    )
    schedule = found.schedules[nfe]
    used = found.report
    return schedule, f"{used['image_calls']} image-calls by its own report"
