"""What the library calls back: the caller's functions, and tensor operations on the caller's own tensors.

Tensors cross as integer keys into a dict, and none is written in place: an operation makes a new tensor and
binds it to the key, and a copy is the tensor itself under another key. So nobody's memory is overwritten, and
a tensor that the caller keeps stays as it is.
numpy arrays are combined by the library's own kernels; torch tensors by the library's operations for that
very torch where there is a library of them (`lmsd_torch_host`), else by torch, on whatever device they are.
Arrays of other libraries become one of these on the way in, and their own kind on the way out (`_arrays.py`).
"""

import abc
import contextlib
import ctypes
import functools
import importlib.util
import itertools
import logging
import math
import os
import signal
import sys
import threading
from ctypes import POINTER, byref, c_double, c_void_p
from pathlib import Path

import numpy as np

from . import _abi, _arrays
from ._abi import Error, Status, lib

DTYPES = {"float16": (2, 16), "float32": (2, 32), "float64": (2, 64), "bfloat16": (4, 16)}
GRAM_BYTES = 1 << 26  # of float64 that a torch Gram matrix works on at a time

logger = logging.getLogger("lmsd")


class Call:
    """Calls into the library whose callbacks may raise.

    An exception must not cross the library, so a callback that raises keeps the exception here and returns
    nonzero; `check` raises that very object when the library has returned. Signals such as Ctrl-C are
    delivered while the caller's functions run, or else at the next of them or at the end: ctypes would
    swallow an exception that a signal handler raises at the door of a callback.
    """

    def __init__(self):
        self.error = None
        self.delivering = False
        self.pending = None
        self.previous = None
        self.said = b""

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self.previous = signal.getsignal(signal.SIGINT)
            if callable(self.previous):
                signal.signal(signal.SIGINT, self.on_signal)
        return self

    def __exit__(self, *_):
        previous, self.previous, self.error = self.previous, None, None
        # unless the caller's handler has put another in its own place meanwhile
        if callable(previous) and signal.getsignal(signal.SIGINT) == self.on_signal:
            signal.signal(signal.SIGINT, previous)
        pending, self.pending = self.pending, None
        if pending is not None:
            previous(pending, None)

    def on_signal(self, number, frame):
        if not self.delivering:
            self.pending = number
            return
        self.delivering = False  # in case that raises
        self.previous(number, frame)
        self.delivering = True

    def outer(self, function):
        """`function`, one of the caller's, as a callback: 0 if it returns, 1 if it raises or returns true."""

        def trampoline(_user_data, *arguments):
            try:
                if self.error is not None:
                    return 1
                self.delivering = True
                pending, self.pending = self.pending, None
                if pending is not None:
                    self.on_signal(pending, None)
                code = 1 if function(*arguments) else 0
                self.delivering = False
                return code
            except BaseException as error:
                self.delivering = False
                self.error = error
                return 1

        return trampoline

    def inner(self, function):
        """`function`, one of the binding's own, as a callback: 0 if it returns, 1 if it raises."""

        def trampoline(_user_data, *arguments):
            try:
                function(*arguments)
                return 0
            except BaseException as error:
                self.error = self.error or error
                return 1

        return trampoline

    def reason(self, _user_data, text) -> int:
        """Tells the library, and through it other ranks, of the exception that is kept here."""
        if self.error is None:
            return Status.OK
        said = f"{type(self.error).__name__}: {self.error}".replace("\0", "?")
        text[0] = self.said = said.encode(errors="replace")
        return getattr(self.error, "status", Status.STOPPED)

    def check(self, status: int) -> None:
        """Raises the exception that a callback raised, or what the library says."""
        error, self.error = self.error, None
        try:
            if error is not None:
                raise error
            _abi.check(status)
        finally:
            del error  # its traceback holds this frame


class Host(abc.ABC):
    """The tensors of one call: of one dtype and device; `like` is the first of them, without gaps.

    Tensors that are combined have one shape; other batches of a distillation may have another. `kind`: the
    caller's kind of array, where these tensors stand for arrays of another library.
    """

    kind: _arrays.Kind | None = None

    def __init__(self, like, dtype: str):
        self.like = like
        self.tensors = {}
        self.keys = itertools.count(1)
        if dtype not in DTYPES:
            raise Error(f"dtype {dtype}; one of {', '.join(DTYPES)} is needed", Status.INVALID_TENSOR)
        if like.ndim == 0 or 0 in like.shape:
            raise Error(
                f"a tensor of shape {list(like.shape)}; [trajectories, ...], none of them 0, is needed",
                Status.INVALID_TENSOR,
            )

    @abc.abstractmethod
    def own(self, tensor, what: str, shape=None):
        """A tensor of the caller's as this host has them; `what` as "the model returned".

        Raises Error where it is not of `shape` (None: see `fits`) or not of the kind and device of `like`.
        """

    @abc.abstractmethod
    def combine(self, factors: list[float], terms: list):
        """A new tensor, the sum of the terms times their factors. A term with factor 0 counts as absent."""

    @abc.abstractmethod
    def inner_products(self, columns: list, out) -> None:
        """Writes <columns[i][b], columns[j][b]> for each trajectory b to `out[b, i, j]`, of float64."""

    @abc.abstractmethod
    def first_not_finite(self, tensor) -> int:
        """The first trajectory with an element that is not finite; their number where there is none."""

    def add(self, tensor=None) -> int:
        """A new key; without a tensor as yet, if none is given."""
        key = next(self.keys)
        self.tensors[key] = tensor
        return key

    def taken(self, tensor, what: str, shape=None):
        """A tensor of the caller's, of the caller's kind, made this host's `own`."""
        return self.own(self.kind.plain(tensor, what) if self.kind else tensor, what, shape)

    def handed(self, key: int):
        """A tensor as the caller has them."""
        tensor = self.tensors[key]
        return self.kind.own(tensor) if self.kind else tensor

    def bind(self, key: int, tensor, what: str, shape=None) -> None:
        """Binds a tensor of the caller's."""
        self.tensors[key] = self.taken(tensor, what, shape)

    def fits(self, tensor, what: str, shape) -> None:
        """Raises Error where a tensor is not of `shape`; where that is None, not of a batch's."""
        given = list(tensor.shape)
        if shape is not None and given != list(shape):
            raise Error(f"{what} a tensor of shape {given}; it must be {list(shape)}", Status.INVALID_TENSOR)
        trajectories = self.like.shape[0]
        if shape is None and (given[:1] != [trajectories] or 0 in given):
            raise Error(
                f"{what} a tensor of shape {given}; it must be [{trajectories}, ...], as many as `like` has",
                Status.INVALID_TENSOR,
            )

    def shape(self, key: int):
        """That of a tensor; that of `like` where it was not written yet."""
        tensor = self.tensors[key]
        return (self.like if tensor is None else tensor).shape

    def struct(self, call: Call) -> _abi.Host:
        """`lmsd_host`; it refers to this object and to `call`, neither of them to it."""
        given = ("alloc", "lincomb", "gram", "not_finite")
        functions = {name: call.inner(getattr(self, name)) for name in given}
        functions["release"] = call.inner(self.release)
        functions["batch"] = lambda _user_data, key: self.shape(key)[0]
        functions["elements"] = lambda _user_data, key: math.prod(self.shape(key))
        types = dict(_abi.Host._fields_)
        return _abi.Host(**{name: types[name](function) for name, function in functions.items()})

    def alloc(self, _like, out):
        out[0] = self.add()

    def release(self, key):
        self.tensors.pop(key, None)

    def lincomb(self, key, count, factors, terms):
        terms = [self.tensors[term] for term in terms[:count]]
        copy = count == 1 and factors[0] == 1
        self.tensors[key] = terms[0] if copy else self.combine(factors[:count], terms)

    def gram(self, count, columns, out):
        self.inner_products([self.tensors[column] for column in columns[:count]], out)

    def not_finite(self, key, trajectory):
        trajectory[0] = self.first_not_finite(self.tensors[key])


class LibraryOperations:
    """The library's own operations, on the memory of tensors that have no gaps and are all in one format.

    `table`: the `lmsd_host` of their kind; None: that of the built-in tensors. `address` and `empty_like` are
    functions of a tensor.
    """

    def __init__(self, table, device: _abi.Device, dtype: str, address, empty_like):
        self.table = table
        self.device = device
        self.dtype = _abi.Dtype(*DTYPES[dtype], 1)
        self.address = address
        self.empty_like = empty_like

    def descriptor(self, tensor) -> _abi.Tensor:
        shape = (ctypes.c_int64 * tensor.ndim)(*tensor.shape)
        return _abi.Tensor(self.address(tensor), self.device, tensor.ndim, self.dtype, shape, None, 0)

    def pointers(self, tensors):
        descriptors = [self.descriptor(tensor) for tensor in tensors]
        pointers = (c_void_p * len(tensors))(*map(ctypes.addressof, descriptors))
        return descriptors, pointers  # the former must outlive the latter

    def combine(self, factors, terms):
        out = self.empty_like(terms[0])
        _keep, pointers = self.pointers(terms)
        factors, described = (c_double * len(terms))(*factors), self.descriptor(out)
        _abi.check(lib.lmsd_lincomb(self.table, len(terms), factors, pointers, byref(described)))
        return out

    def inner_products(self, columns, out):
        _keep, pointers = self.pointers(columns)
        length = columns[0].shape[0] * len(columns) ** 2
        _abi.check(lib.lmsd_gram(self.table, len(columns), pointers, length, out))


class Numpy(Host):
    """numpy arrays, through the library's own operations."""

    def __init__(self, like):
        kind, like = type(like).__name__, np.asarray(like)
        if like.dtype == object:
            raise Error(
                f"x is {kind}; a numpy array, a torch tensor or an array with __dlpack__ is needed",
                Status.INVALID_TENSOR,
            )
        super().__init__(like, like.dtype.name)
        self.like = np.ascontiguousarray(like, like.dtype.newbyteorder("="))
        self.operations = LibraryOperations(
            None, _abi.Device(1, 0), like.dtype.name, lambda array: array.ctypes.data, np.empty_like
        )

    def own(self, tensor, what, shape=None):
        """A copy, since a numpy model often writes to the same array again."""
        array = np.asarray(tensor)
        self.fits(array, what, shape)
        return np.array(array, dtype=self.like.dtype, order="C")

    def combine(self, factors, terms):
        return self.operations.combine(factors, terms)

    def inner_products(self, columns, out):
        self.operations.inner_products(columns, out)

    def first_not_finite(self, tensor):
        squares = (c_double * len(tensor))()
        self.inner_products([tensor], squares)
        return next((b for b, square in enumerate(squares) if not math.isfinite(square)), len(tensor))


class Torch(Host):
    """torch tensors on any device, in the memory format of `like`: channels_last stays channels_last.

    Half precision is summed in float32, Gram matrices in float64.
    """

    def __init__(self, like, torch):
        self.torch, self.format = torch, memory_format(like, torch)
        like = like.detach().contiguous(memory_format=self.format)
        super().__init__(like, str(like.dtype).removeprefix("torch."))
        self.sum_dtype = torch.promote_types(like.dtype, torch.float32)
        self.gram_dtype = torch.float32 if like.device.type == "mps" else torch.float64  # MPS has no float64

    def own(self, tensor, what, shape=None):
        """The tensor itself, not a copy."""
        if not isinstance(tensor, self.torch.Tensor):
            raise Error(f"{what} {type(tensor).__name__}; it must be a torch tensor", Status.INVALID_TENSOR)
        self.fits(tensor, what, shape)
        if tensor.device != self.like.device:
            raise Error(
                f"{what} a tensor on {tensor.device}; it must be on {self.like.device}",
                Status.INVALID_TENSOR,
            )
        same = tensor.ndim == self.like.ndim  # features may have other dimensions
        kept = self.format if same else self.torch.contiguous_format
        return tensor.detach().to(self.like.dtype).contiguous(memory_format=kept)

    def combine(self, factors, terms):
        counted = [(factor, term) for factor, term in zip(factors, terms, strict=True) if factor != 0]
        if not counted:
            return self.torch.zeros_like(terms[0])
        (factor, first), *others = counted
        half = first.dtype != self.sum_dtype
        total = first.to(self.sum_dtype).mul_(factor) if half else first.mul(factor)
        for factor, term in others:
            total.add_(term, alpha=factor)
        return total.to(self.like.dtype)

    def inner_products(self, columns, out):
        torch, batch, count = self.torch, columns[0].shape[0], len(columns)
        columns = [column.reshape(batch, -1) for column in columns]
        length = columns[0].shape[1]
        block = max(1, GRAM_BYTES // (8 * batch * count))
        total = torch.zeros(batch, count, count, dtype=self.gram_dtype, device=self.like.device)
        for start in range(0, length, block):
            part = torch.stack([column[:, start : start + block] for column in columns], 1).to(
                self.gram_dtype
            )
            total.baddbmm_(part, part.transpose(1, 2))
        total = total.to("cpu", torch.float64).contiguous()
        ctypes.memmove(out, total.data_ptr(), 8 * total.numel())

    def first_not_finite(self, tensor):
        # one number for all, and a closer look where that is not finite
        if math.isfinite(tensor.sum(dtype=self.sum_dtype).item()):
            return len(tensor)
        finite = tensor.isfinite().flatten(1).all(1) if tensor.ndim > 1 else tensor.isfinite()
        return len(tensor) if finite.all() else int(finite.logical_not().nonzero()[0])


class TorchByLibrary(Torch):
    """torch tensors, through the library's operations for that very torch, whose `lmsd_host` is `table`."""

    def __init__(self, like, torch, table):
        super().__init__(like, torch)
        kind = 1 if like.device.type == "cpu" else 10 if torch.version.hip else 2
        self.operations = LibraryOperations(
            table,
            _abi.Device(kind, like.device.index or 0),
            str(like.dtype).removeprefix("torch."),
            torch.Tensor.data_ptr,
            torch.empty_like,
        )

    def combine(self, factors, terms):
        return self.operations.combine(factors, terms)

    def inner_products(self, columns, out):
        self.operations.inner_products(columns, out)


@functools.cache
def torch_table(version: str):
    """`lmsd_host` of the library's operations for torch of this version, or None; the log says which.

    The library of them is the one that `LMSD_TORCH_LIBRARY` names (empty: none), or that of the package
    lmsd_torch_<major>_<minor>, or else the one beside liblmsd.
    """
    path = os.environ.get("LMSD_TORCH_LIBRARY")
    if path is None:
        name = "lmsd_torch_" + "_".join(version.split(".")[:2])
        package = importlib.util.find_spec(name)
        if package:
            file = _abi.FILE_NAME.replace("lmsd.", name + ".")
            path = str(Path(package.origin).with_name(file))
    found = POINTER(_abi.Host)()
    try:
        if path == "":
            raise Error("LMSD_TORCH_LIBRARY is empty")
        _abi.check(lib.lmsd_torch_host(path.encode() if path else None, byref(found)))
    except Error as error:
        logger.info("torch %s: tensors are combined by torch itself, for %s", version, error)
        return None
    logger.info("torch %s: tensors are combined by lmsd's library for this torch", version)
    return found


def memory_format(x, torch):
    """That of a torch tensor. In all of these a trajectory is one block of memory, and they are all alike."""
    for found in (torch.contiguous_format, torch.channels_last, torch.channels_last_3d):
        if x.is_contiguous(memory_format=found):
            return found
    return torch.contiguous_format


def is_torch(x) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def host_for(x) -> Host:
    """A host for tensors like `x`: torch's, arrays with `__dlpack__`, or what numpy takes for an array."""
    kind = None if is_torch(x) or isinstance(x, np.ndarray) else _arrays.kind_of(x)
    if kind:
        host = host_for(kind.plain(x, "x is"))
        host.kind = kind
        return host
    if not is_torch(x):
        return Numpy(x)
    torch = sys.modules["torch"]
    table = torch_table(str(torch.__version__)) if x.device.type in ("cpu", "cuda") else None
    return TorchByLibrary(x, torch, table) if table else Torch(x, torch)


def no_grad(host: Host):
    """A context in which torch, if it is torch, records nothing. The results are ordinary tensors."""
    return host.torch.no_grad() if isinstance(host, Torch) else contextlib.nullcontext()
