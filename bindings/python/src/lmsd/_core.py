"""Schedules, sampling and distillation: what `import lmsd` gives.

Coordinates are those of k-diffusion: a state `x` at noise level `sigma`, and a model `model(x, sigma) ->
denoised` that returns its prediction of x0, guidance included. `x` and `denoised` are numpy arrays, torch
tensors or arrays of another library that has `__dlpack__` and from_dlpack (JAX, CuPy, MLX), shape
[trajectories, ...], float16, bfloat16, float32 or float64; `sigma` is a float. The model is called with the
kind of array that the caller hands in. Models must not write to `x`; a torch tensor that a model returns is
kept without a copy until its last use and must not be overwritten.

An exception in a function that the caller hands in ends the call, which then raises that very exception.
"""

import contextlib
import json
import math
import operator
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from ctypes import byref, c_double, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from . import _abi, _files, guidance
from ._abi import Error, Status, lib
from ._hosts import Call, Host, host_for, no_grad

# What `progress` is told.
Progress = dict[str, Any]


def _json(options: Mapping) -> bytes:
    """Options as the library takes them; None is left out."""

    def plain(value):
        if hasattr(value, "tolist"):  # numpy and torch
            return value.tolist()
        if isinstance(value, Schedule):
            return value.to_dict()
        return os.fspath(value)

    given = {name: value for name, value in options.items() if value is not None}
    return json.dumps(given, default=plain, allow_nan=False).encode()


def _path(path) -> bytes:
    path = os.fspath(path)
    if "\0" in path:
        raise ValueError(f"the path {path!r} has a NUL in it")
    return path.encode()


def solvers() -> list[dict[str, Any]]:
    """The published solvers, as dicts.

    `name`, `about`, `arxiv`, `order` (of a whole run), `competes` (false where it is another name of one
    before it), and the numbers of model calls up to 50 that it can have: `nfes` where the last step ends at
    sigma 0, `nfes_above_zero` where it ends above.
    """
    return json.loads(_abi.text(lib.lmsd_solvers))


def options() -> dict[str, list[dict[str, Any]]]:
    """Every option of `solve`, `distill`, `compare` and `rivals`, as lists of dicts.

    `name`, `type`, `default` (None where it depends on others), `default_text`, `range` (in words), `unit`,
    `about`; `values` where it is one of a few words, `min` and `max` where these bound a number.
    """
    return json.loads(_abi.text(lib.lmsd_options))


def rivals(options: dict) -> list["Schedule"]:
    """See _functions.py."""
    options["extra"] = [[float(sigma) for sigma in sigmas] for sigmas in options["extra"]]
    found = json.loads(_abi.text(lib.lmsd_rivals, _json(options)))
    return [Schedule.from_json(file) for file in found]


def _grid(grid) -> Mapping | None:
    """As the library takes it."""
    if isinstance(grid, str):
        return {"kind": grid}
    if grid is None or isinstance(grid, Mapping):
        return grid
    return {"kind": "list", "sigmas": [float(sigma) for sigma in grid]}


def solve(options: dict) -> "Schedule":
    """See _functions.py."""
    return Schedule._make(lib.lmsd_schedule_solve, _json(options | {"grid": _grid(options["grid"])}))


class Schedule:
    """A multistep sampler as data. It never changes and may be used by any number of threads.

    Get one from `solve`, `distill`, `Schedule.load` or `Schedule.from_json`; each refuses what breaks the
    format with a ScheduleError that says where. Schedules compare by all they say, and can be hashed, copied
    and pickled.
    """

    __slots__ = ("__weakref__", "_file", "_handle", "_json")

    def __init__(self):
        raise TypeError("use lmsd.solve, Schedule.load or Schedule.from_json")

    @classmethod
    def _make(cls, function, *arguments):
        out = c_void_p()
        _abi.check(function(*arguments, out))
        return cls._own(out.value)

    @classmethod
    def _own(cls, handle: int):
        self = object.__new__(cls)
        self._handle = handle
        weakref.finalize(self, lib.lmsd_schedule_free, handle)
        self._json = _abi.text(lib.lmsd_schedule_to_json, handle)
        self._file = json.loads(self._json)
        return self

    @classmethod
    def from_json(cls, text: str | bytes | Mapping) -> "Schedule":
        """From the text of a schedule file, at most 1 MiB, or from the same as a dict."""
        if isinstance(text, Mapping):
            text = _json(text)
        elif isinstance(text, str):
            text = text.encode()
        return cls._make(lib.lmsd_schedule_from_json, text, len(text))

    @classmethod
    def load(cls, path) -> "Schedule":
        """From a file."""
        return cls._make(lib.lmsd_schedule_load, _path(path))

    def save(self, path) -> None:
        """Writes the file, whole or not at all."""
        _abi.check(lib.lmsd_schedule_save(self._handle, _path(path)))

    def to_json(self) -> str:
        """The text of the file; every number reads back to the last bit."""
        return self._json

    def to_dict(self) -> dict:
        """The file as a dict, which is the caller's to change and to hand to `from_json`."""
        return json.loads(self._json)

    @property
    def nfe(self) -> int:
        """Number of model calls."""
        return self._file["nfe"]

    @property
    def name(self) -> str | None:
        return self._file.get("name")

    @property
    def process(self) -> str:
        """ "ve" or "flow"."""
        return self._file["process"]

    @property
    def sigma_start(self) -> float:
        """Noise level of the x_T that sampling starts from."""
        return self._file["sigma_start"]

    @property
    def sigma_end(self) -> float:
        """Noise level of the result."""
        return self._file["sigma_end"]

    @property
    def sigmas(self) -> np.ndarray:
        """Noise levels of the states, float64 [nfe + 1], the end included."""
        return np.array([node["sigma"] for node in self._file["nodes"]] + [self.sigma_end])

    @property
    def scales(self) -> np.ndarray:
        """Time scaling factors, float64 [nfe]: node n calls the model at scales[n] * sigmas[n]."""
        return np.array([node["scale"] for node in self._file["nodes"]])

    @property
    def guidance(self) -> np.ndarray:
        """The share of the guidance that each call has, float64 [nfe].

        Where w is the guidance scale that the user set, node n calls the model at the scale
        1 + guidance[n] * (w - 1). All 1 where guidance was not fitted.
        """
        return np.array([node.get("guidance", 1.0) for node in self._file["nodes"]])

    @property
    def is_guided(self) -> bool:
        """Whether a call has another guidance than the user's: the model must then be able to set it."""
        return any("guidance" in node for node in self._file["nodes"])

    @property
    def weights(self) -> list[np.ndarray]:
        """Coefficients over D_n, D_{n-1}, ..., newest first: float64 [1 to n + 1] for each node."""
        return [np.array(node["weights"]) for node in self._file["nodes"]]

    @property
    def made_for(self) -> dict:
        """What it was made for: model, guidance_scale, sigma_min, ...; empty if it does not say."""
        return dict(self._file.get("made_for", {}))

    @property
    def made_by(self) -> dict:
        """How it came to be: method, solver, distance, ...; empty if it does not say."""
        return dict(self._file.get("made_by", {}))

    def start_at(self, sigma: float) -> "Schedule":
        """The schedule for a state at noise level `sigma` already, as image-to-image hosts have it.

        Above `sigma_end`, at most `sigma_start`. Above `sigmas[0]` all nodes stay; below it the node nearest
        to `sigma` in log sigma moves there and those before it are dropped, so `nfe` falls. Rows that lose
        predictions are completed on the oldest one left.
        """
        return Schedule._make(lib.lmsd_schedule_start_at, self._handle, sigma)

    def check(self, **host) -> None:
        """Raises ScheduleError where it was made for something else than the host's own values.

        Any of `process`, `model`, `model_hash`, `guidance_scale` (which may lie anywhere in the schedule's
        `guidance_range`), `boundary`, `guidance_scale_2`, `latent_shape`, `sigma_min`, `sigma_max`, `shift`;
        only what both sides state is compared.
        """
        _abi.check(lib.lmsd_schedule_check(self._handle, _json(host)))

    def __eq__(self, other):
        return self._json == other._json if isinstance(other, Schedule) else NotImplemented

    def __hash__(self):
        return hash(self._json)

    def __reduce__(self):
        return Schedule.from_json, (self._json,)

    def __repr__(self):
        name = f"{self.name!r}, " if self.name else ""
        distance = self.made_by.get("distance")
        made = "" if distance is None else f", distance {distance:.4g}"
        sigmas = f"sigma {self.sigma_start:g} to {self.sigma_end:g}"
        return f"<Schedule {name}{self.process}, {self.nfe} NFE, {sigmas}{made}>"


AnySchedule = Schedule | str | os.PathLike[str]


def as_schedule(given: AnySchedule, what: str = "schedule") -> Schedule:
    """A schedule, loaded where the path of its file is given. `what`: its name, for people."""
    if isinstance(given, str | os.PathLike):
        return Schedule.load(given)
    if not isinstance(given, Schedule):
        kind = type(given).__name__
        raise TypeError(f"{what} is {kind}; a Schedule or the path of its file is needed")
    return given


def as_schedules(given: Sequence[AnySchedule], what: str) -> list[Schedule]:
    """The same of several, which may be dicts as well."""
    if isinstance(given, str | os.PathLike | Schedule | Mapping):
        kind = type(given).__name__
        raise TypeError(f"{what} is {kind}; a list of Schedules, or of the paths of their files, is needed")
    found = []
    for at, one in enumerate(given):
        which = f"schedule {at} of {what}"
        try:
            found.append(Schedule.from_json(one) if isinstance(one, Mapping) else as_schedule(one, which))
        except Error as error:
            raise type(error)(f"{which}: {error}", error.status) from None
    return found


def _model(host: Host, model: Callable, guided: bool):
    """`guided`: whether the model is told the guidance of each call, too."""
    if guided and not guidance.takes(model):
        raise Error("the guidance differs from call to call; the model must be model(x, sigma, guidance)")

    def callback(call, x, denoised):
        call = call.contents
        told = (call.sigma, call.guidance) if guided else (call.sigma,)
        found = model(host.handed(x), *told)
        host.bind(denoised, found, "the model returned", host.shape(x))

    return callback


def sample(schedule: AnySchedule, x, model: Callable, callback: Callable[[dict], Any] | None = None):
    """Runs `schedule` from `x` (noise level `schedule.sigma_start`) to the end point, which is returned.

    `schedule` may be the path of its file. The result is of the kind, shape, dtype and device of `x`, which
    stays as it is. A schedule with `is_guided` calls `model(x, sigma, guidance)`, see `Schedule.guidance`.
    `callback` sees every step as a dict: "i" (node, from 0), "x" (the state), "denoised",
    "sigma" (noise level of the state) and "sigma_hat" (the one that the model was told). Raises Error with
    `Status.NON_FINITE`, naming the node, where the model's output is not finite.
    """
    schedule, host = as_schedule(schedule), host_for(x)

    def observe(step):
        step = step.contents
        callback(
            {
                "i": step.index,
                "x": host.handed(step.x),
                "denoised": host.handed(step.denoised),
                "sigma": step.sigma,
                "sigma_hat": step.model_sigma,
            }
        )

    try:
        with Call() as call, no_grad(host):
            struct = host.struct(call)
            x_t, out = host.add(host.like), host.add()
            on_model = _abi.MODEL(call.outer(_model(host, model, schedule.is_guided)))
            on_step = _abi.OBSERVER(call.outer(observe)) if callback else _abi.OBSERVER()
            call.check(lib.lmsd_sample(schedule._handle, struct, x_t, on_model, on_step, None, out))
            return host.handed(out)
    finally:
        host.tensors.clear()


class Sampler:
    """A run of a schedule whose loop the caller owns.

        sampler = Sampler(schedule, x)
        for x, sigma in sampler:
            sampler.step(model(x, sigma))
        x = sampler.result

    `schedule` may be the path of its file; `x` has noise level `schedule.sigma_start`. One thread at a time.
    A copy (`copy.copy`, `copy.deepcopy`) stands where the run does and goes on without it.
    """

    def __init__(self, schedule: AnySchedule, x):
        self.schedule = schedule = as_schedule(schedule)
        self._host = host_for(x)
        self._call = Call()
        self._struct = self._host.struct(self._call)
        out = c_void_p()
        with self._borrowed(self._host.like) as x_t:
            self._call.check(lib.lmsd_sampler_new(schedule._handle, self._struct, x_t, out))
        self._own(out.value)

    def _own(self, handle: int) -> None:
        self._handle = handle
        # the struct's functions are called until the sampler is freed
        weakref.finalize(self, lambda handle, _keep: lib.lmsd_sampler_free(handle), handle, self._struct)
        with self._borrowed() as key:
            self._look(key)

    def _look(self, key: int) -> None:
        """Keeps where the run stands, so that asking costs nothing: the state, the level of the next call."""
        sigma = c_double()
        if lib.lmsd_sampler_index(self._handle) < self.schedule.nfe:
            self._call.check(lib.lmsd_sampler_next(self._handle, byref(sigma), key))
        else:
            self._call.check(lib.lmsd_sampler_result(self._handle, key))
        self._state, self._sigma = self._host.handed(key), sigma.value

    def __copy__(self):
        out = c_void_p()
        with self._call, no_grad(self._host):
            self._call.check(lib.lmsd_sampler_copy(self._handle, out))
        other = object.__new__(Sampler)
        other.schedule, other._host, other._call = self.schedule, self._host, self._call
        other._struct = self._struct
        other._own(out.value)
        return other

    def __deepcopy__(self, _memo):
        return self.__copy__()

    @property
    def index(self) -> int:
        """The node to be evaluated next, from 0; `schedule.nfe` when the run is over."""
        return lib.lmsd_sampler_index(self._handle)

    def next(self) -> tuple[Any, float]:
        """Where to call the model next: the state, which is the run's own, and the level to tell the model.

        Raises Error with `Status.WRONG_STATE` when the run is over.
        """
        if self.index == self.schedule.nfe:
            self._call.check(lib.lmsd_sampler_next(self._handle, byref(c_double()), 1))  # which says so
        return self._state, self._sigma

    @property
    def guidance(self) -> float:
        """How much of the guidance the next call has, see `Schedule.guidance`; 1 when the run is over."""
        return self.schedule.guidance[self.index] if self.index < self.schedule.nfe else 1.0

    def step(self, denoised, x=None) -> None:
        """Advances with the model's prediction at the present node.

        `x`: the caller's own state at this node, where it changed the one that `next` gave; it takes the
        place of the sampler's before the update. Its noise level is `schedule.sigmas[index]`. Both are kept,
        so leave a torch tensor as it is until the run is over; numpy arrays are copied.

        Refuses a prediction that is not finite, and a step after the last; the sampler then stays at its
        node.
        """
        denoised = self._host.taken(denoised, "denoised is", self._host.like.shape)
        if x is not None:
            x = self._host.taken(x, "x is", self._host.like.shape)
        with self._borrowed(denoised if x is None else x) as key:
            if x is not None:
                self._call.check(lib.lmsd_sampler_set_state(self._handle, key))
                self._host.tensors[key] = denoised
            self._call.check(lib.lmsd_sampler_step(self._handle, key))
            self._look(key)

    @property
    def result(self):
        """The state where the run stands: the end point when it is over."""
        return self._state

    def __iter__(self) -> Iterator[tuple[Any, float]]:
        while (index := self.index) < self.schedule.nfe:
            yield self.next()
            if self.index == index:
                raise Error("step() was not called since the last (x, sigma)", Status.WRONG_STATE)

    @contextlib.contextmanager
    def _borrowed(self, tensor=None):
        """A key for the time of one call, whose callbacks may raise."""
        with self._call, no_grad(self._host):
            key = self._host.add(tensor)
            try:
                yield key
            finally:
                self._host.release(key)


class Distilled:
    """What a distillation leaves: `schedules`, a dict from NFE to Schedule, and `report`, a dict.

    `report`: calls, seconds, `stopped` (why it ended early, else None), and in `family` for each NFE its
    held-out distance, whether that beats every handcrafted solver (`improved`), and its course.
    """

    def __init__(self, schedules: dict[int, Schedule], report: dict):
        self.schedules = schedules
        self.report = report

    def save(self, folder) -> list[Path]:
        """Writes `nfe<NN>.json` for each schedule, and `report.json`; returns the schedules' paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _files.write(folder / "report.json", json.dumps(self.report, indent=2) + "\n")
        paths = [folder / f"nfe{nfe:02d}.json" for nfe in self.schedules]
        for path, schedule in zip(paths, self.schedules.values(), strict=True):
            schedule.save(path)
        return paths

    def __repr__(self):
        found = [
            f"{f['nfe']} NFE {'diverges' if f['distance'] is None else format(f['distance'], '.4g')}"
            for f in self.report["family"]
        ]
        return f"<Distilled {', '.join(found)}>"


class ProgressBar:
    """A tqdm bar over the model's batch calls, a context; call it with what `distill` tells `progress`."""

    def __init__(self) -> None:
        from tqdm import tqdm

        layout = "{desc} |{bar}| {n_fmt}/{total_fmt} calls{postfix}"
        self.tqdm = tqdm(desc="start", bar_format=layout, unit="call", dynamic_ncols=True)

    def __call__(self, p: Progress) -> None:
        bar = self.tqdm
        bar.total = p["calls_expected"]
        bar.set_description_str(f"{p['phase']} {p['nfe']} NFE", refresh=False)
        notes = []
        if math.isfinite(p["distance"]):
            notes.append(f"distance {p['distance']:.4g}")
        if math.isfinite(p["handcrafted"]):
            notes.append(f"handcrafted {p['handcrafted']:.4g}")
        if len(notes) == 2 and p["distance"] > 0:
            notes.append(f"{p['handcrafted'] / p['distance']:.1f}x")
        if math.isfinite(p["seconds_left"]):
            notes.append(f"{bar.format_interval(p['seconds_left'])} left")
        bar.set_postfix_str(", ".join(notes), refresh=False)
        bar.update(p["calls"] - bar.n)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.tqdm.close()


def _features(host: Host, features: Callable):
    shapes = {}  # of what it returned, by the shape of what it was given

    def callback(x, out):
        given = tuple(host.shape(x))
        found = host.taken(features(host.handed(x)), "features returned")
        shape = shapes.setdefault(given, tuple(found.shape))
        if tuple(found.shape) != shape:
            raise Error(
                f"features returned a tensor of shape {list(found.shape)} for x of shape {list(given)}; it "
                f"must be {list(shape)} as the first time",
                Status.INVALID_TENSOR,
            )
        out[0] = host.add(found)

    return callback


@contextlib.contextmanager
def _problem(model, begin, like, progress, ranks=None, features=None, guided=False):
    """(call, lmsd_host, lmsd_problem) for the time of one call."""
    host = host_for(like)

    def on_begin(batch, x_t):
        host.bind(x_t, begin(batch), "begin returned")

    def on_progress(told):
        told = {name: getattr(told.contents, name) for name, _ in _abi.Progress._fields_[1:]}
        return progress({**told, "phase": _abi.Phase(told["phase"]).name.lower()})

    def on_sum(count, values):
        ranks.sum(np.ctypeslib.as_array(values, (count,)))

    types = dict(_abi.Problem._fields_)
    try:
        with Call() as call, no_grad(host):
            problem = _abi.Problem(
                like=host.add(host.like),
                begin=types["begin"](call.outer(on_begin)),
                model=types["model"](call.outer(_model(host, model, guided))),
            )
            if progress:
                problem.progress = types["progress"](call.outer(on_progress))
            if features:
                problem.features = types["features"](call.outer(_features(host, features)))
            if ranks:
                problem.rank, problem.ranks = ranks.rank, ranks.count
                problem.sum = types["sum"](call.inner(on_sum))
                problem.error = types["error"](call.reason)
            yield call, host.struct(call), problem
    finally:
        host.tensors.clear()


def _nfe(nfe) -> dict:
    """The options that a number of model calls, or two of them, stand for."""
    with contextlib.suppress(TypeError):
        return {"nfe": operator.index(nfe)}  # any kind of integer, numpy's too
    try:
        first, last = map(operator.index, nfe)
    except (TypeError, ValueError):
        raise Error(
            f"nfe is {nfe!r}; it must be a number of model calls, or (from, to) for a family"
        ) from None
    return {"nfe_from": first, "nfe": last}


def distill(model: Callable, begin: Callable, like, progress, ranks, features, options: dict) -> Distilled:
    """See _functions.py."""
    options |= _nfe(options["nfe"]) | {"teacher_grid": _grid(options["teacher_grid"])}
    options["starts"] = as_schedules(options["starts"], "starts")
    out = c_void_p()
    with contextlib.ExitStack() as stack:
        if progress is True:
            progress = stack.enter_context(ProgressBar())
        work = _problem(model, begin, like, progress, ranks, features, options["fit_guidance"])
        call, host, problem = stack.enter_context(work)
        stack.callback(lib.lmsd_distilled_free, out)
        call.check(lib.lmsd_distill(_json(options), host, problem, out))
        count = lib.lmsd_distilled_count(out)
        found = [Schedule._make(lib.lmsd_distilled_schedule, out, i) for i in range(count)]
        report = json.loads(_abi.text(lib.lmsd_distilled_report, out))
    return Distilled({schedule.nfe: schedule for schedule in found}, report)


def compare(
    schedules: Sequence[AnySchedule], model: Callable, begin: Callable, like, ranks, features, options: dict
) -> list[float]:
    """See _functions.py."""
    options["teacher_grid"] = _grid(options["teacher_grid"])
    schedules = as_schedules(schedules, "schedules")
    count = len(schedules)
    handles = (c_void_p * count)(*(schedule._handle for schedule in schedules))
    distances = (c_double * count)()
    guided = any(schedule.is_guided for schedule in schedules)
    with _problem(model, begin, like, None, ranks, features, guided) as (call, host, problem):
        call.check(lib.lmsd_compare(_json(options), host, problem, count, handles, distances))
    return list(distances)
