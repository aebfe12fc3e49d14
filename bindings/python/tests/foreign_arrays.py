"""Arrays that offer DLPack and nothing else: no shape, no arithmetic, no way to numpy.

There are three, for the three places where a library has its from_dlpack: the module of its type (as CuPy),
the namespace that an array names (the array API standard: JAX, MLX), and the type itself (ONNX Runtime).
"""

import types

import numpy as np


class Plain:
    def __init__(self, data):
        self.data = data

    def __dlpack__(self, *, stream=None):
        return self.data.__dlpack__()

    def __dlpack_device__(self):
        return self.data.__dlpack_device__()

    def __array__(self, *arguments, **options):
        raise AssertionError("an array that is asked for is to be had by DLPack")


class OfModule(Plain):
    pass


def from_dlpack(array):
    return OfModule(np.from_dlpack(array))


class OfNamespace(Plain):
    def __array_namespace__(self, *, api_version=None):
        return types.SimpleNamespace(from_dlpack=lambda array: OfNamespace(np.from_dlpack(array)))


class OfType(Plain):
    @classmethod
    def from_dlpack(cls, array):
        return cls(np.from_dlpack(array))


OfType.__module__ = OfNamespace.__module__ = "nowhere"


class OfTorch(Plain):
    """As an array on a GPU or in bfloat16, which torch takes and numpy does not."""

    def __dlpack__(self, *, stream=None):
        return self.data.__dlpack__(stream=stream)

    @classmethod
    def from_dlpack(cls, array):
        import torch

        return cls(torch.from_dlpack(array))


OfTorch.__module__ = "nowhere"


class NoWayBack(Plain):
    pass


NoWayBack.__module__ = "nowhere"
