"""What distilled schedules gain over published solvers, measured and written into their files.

On trajectories that neither the fit nor the selection saw, at the same number of model calls and at twice as
many. The published solvers get the best of their grids.
"""

from itertools import product

from ._abi import Error
from ._core import Distilled, Schedule, compare, solve

SOLVERS = ("euler", "dpmpp_2m", "ipndm_4")
GRIDS = {
    "ve": [{"kind": "karras", "rho": 7.0}, {"kind": "karras", "rho": 4.0}, {"kind": "log"}],
    "flow": [{"kind": "flow", "shift": 1.0}, {"kind": "flow", "shift": 2.0}, {"kind": "flow", "shift": 3.0}],
}


def rivals(
    nfes, solvers=SOLVERS, *, process="ve", shift=None, sigma_min=0.002, sigma_max=80.0, sigma_end=0.0
):
    """The schedules of `solvers` on every grid, at every NFE of `nfes` and at twice that.

    A dict from (solver, grid in words, NFE) to Schedule. `shift`: that of a flow model, one more grid.
    """
    grids = list(GRIDS[process])
    if shift is not None and all(grid.get("shift") != shift for grid in grids):
        grids.append({"kind": "flow", "shift": shift})
    levels = {"sigma_max": sigma_max, "sigma_end": sigma_end}
    ends = [False]
    if sigma_end == 0 and process == "ve":
        levels["sigma_min"] = sigma_min
        ends = [False, True]
    found = {}
    for nfe, solver, grid, jump in product(sorted({*nfes, *(2 * nfe for nfe in nfes)}), solvers, grids, ends):
        options = {"nfe": nfe, "grid": grid, "process": process, "jump_to_zero": jump, **levels}
        try:
            schedule = solve(solver, **options)
        except Error:  # two calls a step: not every NFE
            continue
        found[solver, schedule.made_by["grid"], nfe] = schedule
    return found


def measure(distilled: Distilled, model, begin, like, *, solvers=SOLVERS, **config) -> Distilled:
    """The same with `made_by["compared"]` filled in: a list of dicts of solver, grid, nfe and distance.

    `model`, `begin`, `like` and `config` as for `distill`; batches from 2**21 are asked for, `held_out`
    trajectories. Every schedule gets the whole list: all of the family as "distilled" ("handcrafted" where
    nothing better was found), and each of `solvers` on its best grid.
    """
    names = ("process", "sigma_min", "sigma_max", "sigma_end")
    levels = {name: config[name] for name in names if config.get(name) is not None}
    shift = (config.get("made_for") or {}).get("shift")
    others = rivals(distilled.schedules, solvers, shift=shift, **levels)
    own = {(s.made_by["method"], "", nfe): s for nfe, s in distilled.schedules.items()}
    entries = own | others
    distances = compare(list(entries.values()), model, begin, like, **config)
    best = {}
    for (solver, grid, nfe), distance in zip(entries, distances, strict=True):
        if distance < best.get((solver, nfe), ("", float("inf")))[1]:
            best[solver, nfe] = grid, distance
    compared = [
        {"solver": solver, "grid": grid, "nfe": nfe, "distance": distance}
        for (solver, nfe), (grid, distance) in best.items()
    ]
    schedules = {}
    for nfe, schedule in distilled.schedules.items():
        file = schedule.to_dict()
        file["made_by"]["compared"] = compared
        schedules[nfe] = Schedule.from_json(file)
    return Distilled(schedules, distilled.report)
