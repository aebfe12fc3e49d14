"""`lmsd compare`: distances of schedules and published solvers to the teacher, at each NFE."""

import lmsd
from lmsd import gain
from lmsd._files import schedule_files

from . import library_options, model, pictures
from .ranks import launched
from .terminal import note, number, print_table

HELD_OUT = 64  # trajectories: more than a fit needs, as people read these numbers
LEVELS = ("process", "sigma_min", "sigma_max", "sigma_end")


def run(args) -> int:
    pictures.check_plot(args.png)
    with launched(args) as ranks:
        return compare(args, ranks)


def compare(args, ranks) -> int:
    entries = files(args.files)
    nfes = {nfe for _, nfe in entries}
    if args.nfe:
        nfes |= set(range(args.nfe[0], args.nfe[1] + 1))
    if not nfes:
        raise lmsd.Error("nothing to compare: give schedule files, or --nfe")
    nfes = sorted(nfes)
    task = model.load(args, "compare")
    levels = {name: task.config[name] for name in LEVELS if name in task.config}
    warn(entries, task)
    entries |= solvers(args.solvers, nfes, levels)
    fields = rivals(args, task, nfes, levels)
    options = {
        name: task.config[name] for name in library_options.described("compare") if name in task.config
    }
    size = len(task.problem.like)

    def distances(schedules, batches):
        measured = {**options, "held_out": batches * size}
        p = task.problem
        measured["features"] = getattr(p, "features", None)
        return lmsd.compare(schedules, p.model, p.begin, p.like, ranks=ranks, **measured)

    batches = -(-options.get("held_out", HELD_OUT) // size)
    rounds = gain.plan(batches) if fields else [batches]
    best, found = gain.race(fields, distances, rounds, own=list(entries.values()))
    table = {}
    for (name, nfe), distance in zip(entries, found, strict=True):
        table.setdefault(name, {})[nfe] = distance
    which = winners(best, fields, table)
    about = f"; field: {args.field}" if fields else ""
    rows = [[f"mean distance to the teacher{about}", *(f"{nfe} NFE" for nfe in nfes)]]
    rows += [[name, *(number(row.get(nfe)) for nfe in nfes)] for name, row in table.items()]
    print_table(rows)
    print("".join(f"{line}\n" for line in which), end="")
    if args.png and (ranks is None or ranks.rank == 0):
        from lmsd.plots import plot_distances

        pictures.save_plot(plot_distances(table), args.png)
    return 0


def files(paths) -> dict:
    """(row, NFE) -> schedule; the files of one folder make a row."""
    entries = {}
    for file in schedule_files(paths):
        schedule = lmsd.Schedule.load(file)
        key = (str(file.parent), schedule.nfe)
        entries[(str(file), schedule.nfe) if key in entries else key] = schedule
    return entries


def warn(entries: dict, task) -> None:
    """Notes schedules of another shape; other processes are refused by the library."""
    shape = list(task.problem.like.shape[1:])
    for (row, nfe), schedule in entries.items():
        try:
            schedule.check(latent_shape=shape)
        except lmsd.ScheduleError as error:
            note(f"lmsd: {row}, {nfe} NFE: {error}")


def solvers(names: str, nfes: list[int], levels: dict) -> dict:
    """(row, NFE) -> schedule of the published solvers, at the NFEs that each can have."""
    at_zero = levels.get("sigma_end", 0) == 0
    possible = {s["name"]: s["nfes" if at_zero else "nfes_above_zero"] for s in lmsd.solvers()}
    grids = ["flow"] if levels.get("process") == "flow" else ["karras", "log"]
    entries = {}
    for name in filter(None, names.split(",")):
        listed = possible.get(name, nfes)  # of one that there is not, `lmsd.solve` says which there are
        for grid in grids:
            for nfe in nfes:
                if nfe in listed or nfe > max(listed):
                    entries[f"{name}, {grid}", nfe] = lmsd.solve(name, nfe=nfe, grid=grid, **levels)
    return entries


def rivals(args, task, nfes: list[int], levels: dict) -> dict:
    """(field, NFE) -> its schedules."""
    if args.field == "none":
        return {}
    options = library_options.given(args, "rivals")
    shift = options.get("shift", task.config.get("made_for", {}).get("shift"))
    fields = {}
    for name in gain.fields(args.field):
        for nfe in nfes:
            extra = [grid for grid in options.get("extra", []) if len(grid) == nfe + 1]
            fields[name, nfe] = lmsd.rivals(nfe, name, shift=shift, extra=extra, **levels)
    return fields


def winners(best: dict, fields: dict, table: dict) -> list[str]:
    """Puts the best of each field into the table; lines that say which solver and grid it is."""
    lines = []
    for (name, nfe), ranked in best.items():
        for schedule, distance in ranked[:1]:
            table.setdefault(gain.NAMES[name], {})[nfe] = distance
            made, count = schedule.made_by, len(fields[name, nfe])
            lines.append(f"{gain.NAMES[name]}, {nfe} NFE: {made['solver']}, {made['grid']} (of {count})")
    return lines
