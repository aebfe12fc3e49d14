"""Arrays that are neither numpy's nor torch's, such as JAX's, CuPy's and MLX's: in and out by DLPack.

What is computed with them is computed by numpy or torch, on the device where they are. This knows which of
the two, and which function makes the caller's kind again; it does not know what is computed.
"""

import sys

import numpy as np

from ._abi import Error, Status

CPU = 1  # of DLPack's device types


class Kind:
    """A kind of array, that of `like`. `make`: the from_dlpack of its library."""

    def __init__(self, like, make):
        self.make, self.device = make, device_of(like)
        # numpy cannot import what is on a GPU, nor bfloat16
        self.by_torch = self.device[0] != CPU or not numpy_takes(like)

    def plain(self, array, what: str):
        """As numpy or torch has it, whichever has those like `like`: a view of its memory, or a copy.

        `what` as "the model returned". Raises Error where it has no `__dlpack__`, or is on another device.
        """
        if not hasattr(array, "__dlpack__"):
            kind = type(array).__name__
            raise Error(f"{what} {kind}; it must be an array with __dlpack__", Status.INVALID_TENSOR)
        device = device_of(array)
        if device != self.device:
            raise Error(
                f"{what} an array on DLPack's device {device}; it must be on {self.device}",
                Status.INVALID_TENSOR,
            )
        if self.by_torch:
            return by_torch(array, what).clone()  # the caller may write to its memory again
        if isinstance(array, np.ndarray):  # one that may only be read cannot always be exported
            return array
        return np.from_dlpack(array) if numpy_takes(array) else by_torch(array, what).float().numpy()

    def own(self, plain):
        """An array of this kind with the memory of one of numpy's or torch's, or of a copy of it."""
        if isinstance(plain, np.ndarray) and not plain.flags.writeable:  # not every library takes such
            plain = plain.copy()
        return self.make(plain)


def kind_of(x) -> Kind | None:
    """The kind of an array that has `__dlpack__` and whose library has a from_dlpack, else None."""
    make = maker(x) if hasattr(x, "__dlpack__") else None
    return Kind(x, make) if make else None


def maker(x):
    """The from_dlpack of the namespace that x names, of a module that x's type is in, or of that type."""
    kind, places = type(x), []
    if hasattr(x, "__array_namespace__"):  # the array API standard
        places.append(x.__array_namespace__())
    module = kind.__module__
    while module:
        places.append(sys.modules.get(module))
        module = module.rpartition(".")[0]
    found = (getattr(place, "from_dlpack", None) for place in (*places, kind))
    return next((function for function in found if callable(function)), None)


def device_of(x) -> tuple[int, int]:
    """DLPack's type and number of a device; the CPU is one, whatever its number."""
    kind, index = map(int, x.__dlpack_device__())
    return (kind, 0 if kind == CPU else index)


def numpy_takes(x) -> bool:
    try:
        np.from_dlpack(x)
    except (BufferError, RuntimeError, TypeError):
        return isinstance(x, np.ndarray)
    return True


def by_torch(x, what: str):
    """As a torch tensor that shares its memory."""
    try:
        import torch
    except ImportError:
        raise Error(
            f"{what} an array of a type or on a device that numpy has not (DLPack's device {device_of(x)}); "
            "torch must be installed to compute with it",
            Status.INVALID_TENSOR,
        ) from None
    return torch.from_dlpack(x)
