"""What distilled schedules gain over published solvers, measured and written into their files.

On trajectories that neither the fit nor the selection saw, at the same number of model calls and at twice as
many. The published solvers are a whole field (`lmsd.rivals`), of which the best is found by successive
halving: all on the first batch, the best quarter on two, the best few on every batch. The choice, on the
trajectories that are measured on, favours them.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence

from ._core import Distilled, Schedule, options
from ._functions import compare, rivals

NAMES = {"published": "best as published", "strongest": "strongest"}
FINALISTS = 8


def fields(field: str) -> tuple[str, ...]:
    """The fields that a comparison with `field` tells of: the strongest one beside that as published."""
    return tuple(NAMES) if field == "strongest" else (field,)


def plan(batches: int) -> list[int]:
    """How many batches each round takes, of `batches` that there are."""
    return [few for few in (1, 2) if few < batches] + [batches]


def kept(count: int, number: int, finalists: int = FINALISTS) -> int:
    """How many of `count` schedules round `number`, from 0, leaves."""
    return min(count, finalists if number else max(finalists, -(-count // 4)))


def race(
    groups: Mapping[Hashable, Sequence[Schedule]],
    distances: Callable[[list[Schedule], int], list[float]],
    rounds: Sequence[int],
    finalists: int = FINALISTS,
    own: Sequence[Schedule] = (),
) -> tuple[dict[Hashable, list[tuple[Schedule, float]]], list[float]]:
    """The best of each group by successive halving, and the distances of `own`, measured in the last round.

    `distances(schedules, n)` measures schedules over n batches, or whatever `rounds` counts. Groups may share
    schedules: each is measured once a round. Per group: all of it that reached the last round, through
    whichever group, best first, with the distances there; without what diverges.
    """
    left = {key: list(group) for key, group in groups.items()}
    for number, batches in enumerate(rounds):
        last = number + 1 == len(rounds)
        field = list(dict.fromkeys([s for group in left.values() for s in group] + list(own) * last))
        found = dict(zip(field, distances(field, batches), strict=True)) if field else {}
        if not last:
            for key, group in left.items():
                order = sorted(group, key=found.__getitem__)
                left[key] = order[: kept(len(groups[key]), number, finalists)]
    best = {}
    for key, group in groups.items():
        measured = [
            (schedule, found[schedule]) for schedule in group if found.get(schedule, math.inf) < math.inf
        ]
        best[key] = sorted(measured, key=lambda pair: pair[1])
    return best, [found[schedule] for schedule in own]


def _levels(config) -> dict:
    """What `lmsd.rivals` is told, out of the options of a distillation."""
    names = ("process", "sigma_min", "sigma_max", "sigma_end")
    levels = {name: config[name] for name in names if config.get(name) is not None}
    return levels | {"shift": (config.get("made_for") or {}).get("shift")}


def calls(nfes, batches: int, *, teacher_nfe=50, field="strongest", finalists=FINALISTS, **config) -> int:
    """How many model calls `measure` takes at most, for a family of `nfes` and so many `batches`."""
    rounds = plan(batches)
    total = teacher_nfe * sum(rounds) + sum(nfes) * batches
    for nfe in {*nfes, *(2 * nfe for nfe in nfes)}:
        for name in fields(field):
            count = len(rivals(nfe, name, **_levels(config)))
            left = [count, *(kept(count, number, finalists) for number in range(len(rounds) - 1))]
            total += nfe * sum(many * few for many, few in zip(left, rounds, strict=True))
    return total


def measure(
    distilled: Distilled,
    model,
    begin,
    like,
    *,
    field: str = "strongest",
    extra: Mapping[int, Sequence[Sequence[float]]] | None = None,
    finalists: int = FINALISTS,
    features: Callable | None = None,
    **config,
) -> Distilled:
    """The same with `made_by["compared"]` filled in: a list of dicts of solver, grid, nfe and distance.

    `model`, `begin`, `like`, `features` and `config` as for `distill`; batches from 2**21 are asked for,
    `held_out` trajectories. `field`: "published" or "strongest" (see `lmsd.rivals`); `extra`: grids of one's
    own for the strongest, by NFE, such as those of GITS (arXiv 2405.11326).

    Every schedule gets the whole list: all of the family as "distilled" ("handcrafted" where nothing better
    was found), and at each of its NFEs and at twice that the best of the field as solver "best as published",
    and for the strongest one as "strongest" too; its grid then says which solver and grid that is. Up to
    `finalists` of a field are measured on all of the trajectories.
    """
    if field not in NAMES:
        raise ValueError(f"field is {field!r}; it must be one of {', '.join(NAMES)}")
    if extra and field != "strongest":
        raise ValueError('extra is given, but field is "published"; only the strongest has such grids')
    if unknown := set(config) - {option["name"] for option in options()["distill"]}:
        raise TypeError(f"measure() does not take {', '.join(sorted(unknown))}: it is no option of distill")
    levels = _levels(config)
    groups = {}
    for nfe in sorted({*distilled.schedules, *(2 * nfe for nfe in distilled.schedules)}):
        for name in fields(field):
            own_grids = (extra or {}).get(nfe, ()) if name == "strongest" else ()
            groups[name, nfe] = rivals(nfe, name, extra=own_grids, **levels)
    size, own = len(like), list(distilled.schedules.values())

    names = {option["name"] for option in options()["compare"]} & set(config)
    of_comparison = {name: config[name] for name in names}

    def distances(schedules, batches):
        measured = of_comparison | {"held_out": batches * size}
        return compare(schedules, model, begin, like, features=features, **measured)

    batches = -(-(config.get("held_out") or 64) // size)
    best, found = race(groups, distances, plan(batches), finalists, own)
    compared = [
        {"solver": schedule.made_by["method"], "grid": "", "nfe": schedule.nfe, "distance": distance}
        for schedule, distance in zip(own, found, strict=True)
        if distance < math.inf
    ]
    for (name, nfe), ranked in best.items():
        for schedule, distance in ranked[:1]:
            which = f"{schedule.made_by['solver']}, {schedule.made_by['grid']}"
            compared.append({"solver": NAMES[name], "grid": which, "nfe": nfe, "distance": distance})
    schedules = {}
    for nfe, schedule in distilled.schedules.items():
        file = schedule.to_dict()
        file["made_by"]["compared"] = compared
        schedules[nfe] = Schedule.from_json(file)
    return Distilled(schedules, distilled.report)
