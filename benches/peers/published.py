"""The handcrafted fields of lmsd.rivals: as published, and the strongest that tuning makes of them.

The best is chosen on the test trajectories themselves, which favours the field.
"""

import lmsd
from lmsd import gain

from .trajectories import TEST, TEST_SEED, levels, mean_distance, pool, test_pool

RANKING = TEST + (1 << 20)  # first batch of the trajectories that only rank


def best(net, nfe, field, settings):
    """(schedule, words) of the best of a field by successive halving, at last on the test trajectories."""
    rivals = lmsd.rivals(nfe, field, shift=net.shift, **levels(net))
    rivals = [r for r in rivals if not settings.solvers or r.made_by["solver"] in settings.solvers]
    most = max(settings.field_rounds)
    ranking = pool(net, most, TEST_SEED, settings.teacher, RANKING)

    def distances(schedules, count):
        on = test_pool(net.net, settings.test) if count is None else ranking.part(slice(count))
        return [mean_distance(net, schedule, on) for schedule in schedules]

    rounds = [*settings.field_rounds, None]
    found, _ = gain.race({field: rivals}, distances, rounds, settings.finalists)
    schedule = found[field][0][0]
    return schedule, f"{schedule.made_by['solver']}, {schedule.made_by['grid']} (best of {len(rivals)})"


def published(net, nfe, _seed, settings):
    return best(net, nfe, "published", settings)


def strongest(net, nfe, _seed, settings):
    return best(net, nfe, "strongest", settings)
