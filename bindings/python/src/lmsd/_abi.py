"""The C ABI of liblmsd as ctypes sees it: structs, prototypes, status codes. `include/lmsd.h` is its manual.

The library is looked for at `LMSD_LIBRARY` (a path), then beside this file; nowhere else.
"""

import ctypes
import os
import sys
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_double, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from enum import IntEnum
from pathlib import Path

ABI_VERSION = 2
FILE_NAME = {"win32": "lmsd.dll", "darwin": "liblmsd.dylib"}.get(sys.platform, "liblmsd.so")


class Status(IntEnum):
    """`lmsd_status`: what went wrong, as a number that never changes its meaning."""

    OK = 0
    INVALID_ARGUMENT = 1
    INVALID_SCHEDULE = 2
    INVALID_TENSOR = 3
    IO = 4
    STOPPED = 5
    NON_FINITE = 6
    MISMATCH = 7
    WRONG_STATE = 8
    OUT_OF_MEMORY = 9
    INTERNAL = 10


class Purpose(IntEnum):
    """`lmsd_purpose`: what a call of the model is for."""

    SAMPLE = 0
    TEACHER = 1
    RANKING = 2
    FIT = 3
    COMPARE = 4
    CHECK = 5


class Phase(IntEnum):
    """`lmsd_phase`: what a distillation or a comparison is doing."""

    TEACHER = 0
    RANK = 1
    FIT = 2
    GROW = 3
    PLAN = 4
    COMPARE = 5


class Error(Exception):
    """The library refused. `status`: the kind of fault. The text names the value and what would be right."""

    def __init__(self, message: str, status: Status = Status.INVALID_ARGUMENT):
        super().__init__(message, status)
        self.status = status

    def __str__(self):
        return self.args[0]


class ScheduleError(Error, ValueError):
    """A schedule or its file breaks the format, or was made for something else (`Status.MISMATCH`)."""


class Device(ctypes.Structure):
    """`lmsd_device`"""

    _fields_ = [("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32)]


class Dtype(ctypes.Structure):
    """`lmsd_dtype`"""

    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class Tensor(ctypes.Structure):
    """`lmsd_tensor`, which is DLPack's DLTensor."""

    _fields_ = [
        ("data", c_void_p),
        ("device", Device),
        ("ndim", ctypes.c_int32),
        ("dtype", Dtype),
        ("shape", POINTER(ctypes.c_int64)),
        ("strides", POINTER(ctypes.c_int64)),
        ("byte_offset", c_uint64),
    ]


class Sized(ctypes.Structure):
    """A struct that starts with its own size, which the constructor fills in."""

    def __init__(self, **fields):
        super().__init__(struct_size=ctypes.sizeof(self), **fields)


class Host(Sized):
    """`lmsd_host`"""

    _fields_ = [
        ("struct_size", c_size_t),
        ("user_data", c_void_p),
        ("alloc", CFUNCTYPE(c_int, c_void_p, c_void_p, POINTER(c_void_p))),
        ("release", CFUNCTYPE(None, c_void_p, c_void_p)),
        ("lincomb", CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t, POINTER(c_double), POINTER(c_void_p))),
        ("gram", CFUNCTYPE(c_int, c_void_p, c_size_t, POINTER(c_void_p), POINTER(c_double))),
        ("batch", CFUNCTYPE(c_size_t, c_void_p, c_void_p)),
        ("error", CFUNCTYPE(c_int, c_void_p, POINTER(c_char_p))),
        ("alloc_many", CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t, POINTER(c_void_p))),
        ("elements", CFUNCTYPE(c_size_t, c_void_p, c_void_p)),
        ("not_finite", CFUNCTYPE(c_int, c_void_p, c_void_p, POINTER(c_size_t))),
    ]


class Call(Sized):
    """`lmsd_call`"""

    _fields_ = [
        ("struct_size", c_size_t),
        ("node", c_size_t),
        ("nfe", c_size_t),
        ("sigma", c_double),
        ("purpose", ctypes.c_int32),
        ("guidance", c_double),
    ]


class Step(Sized):
    """`lmsd_step`"""

    _fields_ = [
        ("struct_size", c_size_t),
        ("index", c_size_t),
        ("nfe", c_size_t),
        ("sigma", c_double),
        ("model_sigma", c_double),
        ("x", c_void_p),
        ("denoised", c_void_p),
    ]


class Progress(Sized):
    """`lmsd_progress`"""

    _fields_ = [
        ("struct_size", c_size_t),
        ("phase", ctypes.c_int32),
        ("nfe", c_size_t),
        ("calls", c_uint64),
        ("calls_expected", c_uint64),
        ("distance", c_double),
        ("handcrafted", c_double),
        ("seconds_left", c_double),
        ("batch", c_size_t),
        ("gain_expected", c_double),
        ("unwritten", c_size_t),
    ]


MODEL = CFUNCTYPE(c_int, c_void_p, POINTER(Call), c_void_p, c_void_p)
OBSERVER = CFUNCTYPE(c_int, c_void_p, POINTER(Step))


class Problem(Sized):
    """`lmsd_problem`"""

    _fields_ = [
        ("struct_size", c_size_t),
        ("user_data", c_void_p),
        ("like", c_void_p),
        ("begin", CFUNCTYPE(c_int, c_void_p, c_uint64, c_void_p)),
        ("model", MODEL),
        ("progress", CFUNCTYPE(c_int, c_void_p, POINTER(Progress))),
        ("rank", c_size_t),
        ("ranks", c_size_t),
        ("sum", CFUNCTYPE(c_int, c_void_p, c_size_t, POINTER(c_double))),
        ("error", CFUNCTYPE(c_int, c_void_p, POINTER(c_char_p))),
        ("features", CFUNCTYPE(c_int, c_void_p, c_void_p, POINTER(c_void_p))),
    ]


_OUT = POINTER(c_void_p)  # a handle, or a text to be freed
_STATUS = {
    "lmsd_schedule_solve": (c_char_p, _OUT),
    "lmsd_schedule_from_json": (c_char_p, c_size_t, _OUT),
    "lmsd_schedule_load": (c_char_p, _OUT),
    "lmsd_schedule_save": (c_void_p, c_char_p),
    "lmsd_schedule_to_json": (c_void_p, _OUT),
    "lmsd_schedule_check": (c_void_p, c_char_p),
    "lmsd_schedule_start_at": (c_void_p, c_double, _OUT),
    "lmsd_solvers": (_OUT,),
    "lmsd_options": (_OUT,),
    "lmsd_rivals": (c_char_p, _OUT),
    "lmsd_torch_host": (c_char_p, POINTER(POINTER(Host))),
    "lmsd_lincomb": (POINTER(Host), c_size_t, POINTER(c_double), POINTER(c_void_p), c_void_p),
    "lmsd_gram": (POINTER(Host), c_size_t, POINTER(c_void_p), c_size_t, POINTER(c_double)),
    "lmsd_sample": (c_void_p, POINTER(Host), c_void_p, MODEL, OBSERVER, c_void_p, c_void_p),
    "lmsd_sampler_new": (c_void_p, POINTER(Host), c_void_p, _OUT),
    "lmsd_sampler_next": (c_void_p, POINTER(c_double), c_void_p),
    "lmsd_sampler_step": (c_void_p, c_void_p),
    "lmsd_sampler_set_state": (c_void_p, c_void_p),
    "lmsd_sampler_copy": (c_void_p, _OUT),
    "lmsd_sampler_result": (c_void_p, c_void_p),
    "lmsd_distill": (c_char_p, POINTER(Host), POINTER(Problem), _OUT),
    "lmsd_distilled_schedule": (c_void_p, c_size_t, _OUT),
    "lmsd_distilled_report": (c_void_p, _OUT),
    "lmsd_compare": (
        c_char_p,
        POINTER(Host),
        POINTER(Problem),
        c_size_t,
        POINTER(c_void_p),
        POINTER(c_double),
    ),
}
_PLAIN = {
    "lmsd_abi_version": (c_uint32,),
    "lmsd_version": (c_char_p,),
    "lmsd_last_error": (c_char_p,),
    "lmsd_string_free": (None, c_void_p),
    "lmsd_schedule_free": (None, c_void_p),
    "lmsd_sampler_index": (c_size_t, c_void_p),
    "lmsd_sampler_free": (None, c_void_p),
    "lmsd_distilled_count": (c_size_t, c_void_p),
    "lmsd_distilled_free": (None, c_void_p),
}


def load() -> ctypes.CDLL:
    """The library with its prototypes set. Raises ImportError where it is missing, or another one."""
    path = Path(os.environ.get("LMSD_LIBRARY") or Path(__file__).with_name(FILE_NAME)).absolute()
    if not path.is_file():
        raise ImportError(
            f"there is no lmsd library at {path}: install a wheel, or build it (cargo build --release) and "
            f"copy it there, or set LMSD_LIBRARY to the path of {FILE_NAME}"
        )
    try:
        library = ctypes.CDLL(str(path))
        library.lmsd_abi_version.restype = c_uint32
        found = library.lmsd_abi_version()
    except (OSError, AttributeError) as error:
        raise ImportError(f"{path} is not a library of lmsd for this platform: {error}") from error
    if found != ABI_VERSION:
        raise ImportError(
            f"{path} has ABI version {found}, this Python package needs {ABI_VERSION}: "
            f"take both from one release"
        )
    for name, arguments in _STATUS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = c_int, arguments
    for name, (result, *arguments) in _PLAIN.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


lib = load()


def check(status: int) -> None:
    """Raises what the status and the library's last error say. To be called at once, on the same thread."""
    if status == Status.OK:
        return
    kind = ScheduleError if status in (Status.INVALID_SCHEDULE, Status.MISMATCH) else Error
    raise kind(lib.lmsd_last_error().decode(errors="replace"), Status(status))


def text(function, *arguments) -> str:
    """The text that a function of the library writes to its last argument."""
    out = c_void_p()
    check(function(*arguments, out))
    try:
        return ctypes.string_at(out.value).decode()
    finally:
        lib.lmsd_string_free(out)
