"""The model that the command line names: a problem file of the user's, or a network file."""

import lmsd

from . import library_options, network_file, problem_file
from .task import Task


def load(args, function: str) -> Task:
    """For "distill" or "compare". Flags of the library go before what a problem file says."""
    given = library_options.given(args, function)
    task = problem_file.load(args) if args.problem is not None else network_file.load(args, given)
    made_for = {**task.config.get("made_for", {}), **given.get("made_for", {})}
    return Task(task.problem, {**task.config, **given, "made_for": made_for})


def load_for(args, schedule: lmsd.Schedule) -> Task:
    """To sample with `schedule`."""
    return problem_file.load(args) if args.problem is not None else network_file.load(args, {}, schedule)
