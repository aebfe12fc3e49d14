"""Python files and modules with a function `problem`. Errors of the user's own code pass."""

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path

import lmsd
from lmsd import guidance

from .network_file import FLAGS
from .task import Task, refuse

NEEDED = ("like", "begin", "model")
SAYS = ("process", "sigma_min", "sigma_max", "sigma_end", "made_for", "seeds")  # what a problem may say


def load(args) -> Task:
    """What `problem` of --problem makes, with --guidance and --set."""
    path, options = args.problem, dict(args.set)
    refuse(args, FLAGS, "is for --torchscript and --onnx; a problem file says it itself")
    if args.guidance is not None:
        options["guidance"] = args.guidance
    problem = made(path, options)
    config = {name: getattr(problem, name) for name in SAYS if getattr(problem, name, None) is not None}
    if args.guidance is not None:
        config["made_for"] = {**guidance.made_for(args.guidance), **config.get("made_for", {})}
    default = " ".join([Path(path).name, *(f"{key}={value}" for key, value in sorted(options.items()))])
    config["seeds"] = str(config.get("seeds", default))
    return Task(problem, config)


def made(path: str, options: dict):
    """The problem, which has what a problem needs."""
    module = imported(path)
    if not callable(getattr(module, "problem", None)):
        raise lmsd.Error(f"{path} defines no function problem(); see lmsd distill --help")
    try:
        inspect.signature(module.problem).bind(**options)
    except TypeError as error:
        raise lmsd.Error(f"problem() of {path} does not take these options: {error}") from None
    problem = module.problem(**options)
    missing = [name for name in NEEDED if not hasattr(problem, name)]
    if missing:
        what = "None" if problem is None else f"an object of type {type(problem).__name__}"
        told = "see lmsd distill --help"
        if isinstance(problem, dict):
            told = "an object with attributes is needed: types.SimpleNamespace(**it) makes one of a dict"
        raise lmsd.Error(f"problem() of {path} returned {what}, which has no {', '.join(missing)}; {told}")
    if not hasattr(problem.like, "shape"):
        kind = type(problem.like).__name__
        raise lmsd.Error(
            f"like of problem() in {path} is a {kind}; a numpy array or a torch tensor is needed"
        )
    return problem


def imported(path: str, what: str = "problem file"):
    """The module of a file NAME.py, or of that name; `what` it is, in words."""
    if not path.endswith(".py"):
        return imported_by_name(path)
    file = Path(path).resolve()
    if not file.is_file():
        raise lmsd.Error(f"there is no {what} {path}", lmsd.Status.IO)
    try:
        compile(file.read_bytes(), str(file), "exec")
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if getattr(error, "lineno", None) else ""
        raise lmsd.Error(f"{path}{line}: {getattr(error, 'msg', error)}") from None
    sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module


def imported_by_name(name: str):
    """A module of the present folder, or an installed one."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # another module, which that one asks for
        raise lmsd.Error(f"there is no module {name}; a file is named with its .py") from None
    except (TypeError, ValueError) as error:  # such as an empty or a relative name
        raise lmsd.Error(f"{name!r} is no module: {error}") from None
