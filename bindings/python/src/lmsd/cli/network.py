"""What every kind of network file has in common."""

import glob
import hashlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np


class Network(ABC):
    """What a network file computes, on tensors of its own kind. Each backend loads and calls it."""

    inputs: range  # how many it can be given: x and sigma, or a class too

    @abstractmethod
    def tensor(self, array: np.ndarray) -> Any:
        """An array of float32 as a tensor where the network runs."""

    @abstractmethod
    def joined(self, parts: list) -> Any:
        """Tensors one after the other, along the first axis."""

    @abstractmethod
    def run(self, x, sigma: float, classes: np.ndarray | None) -> Any:
        """The network's result in float32: x [B, ...] float32, one sigma for all, classes [B] int64."""

    @abstractmethod
    def memory_used(self) -> int | None:
        """Bytes in use where the network runs: on a GPU by anybody, on the CPU the most that this process has
        had. None where that cannot be measured."""


def model_hash(path: Path) -> str:
    """SHA-256 of a file and of what ONNX keeps beside it, `net.onnx.data` or `net.onnx_data`."""
    digest = hashlib.sha256()
    for file in [path, *sorted(path.parent.glob(glob.escape(path.name) + "[._]data*"))]:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def process_memory() -> int | None:
    """The most main memory that this process has had, in bytes; None where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    peak = next((line for line in lines if line.startswith("VmHWM:")), None)
    return int(peak.split()[1]) << 10 if peak else None


def reason(error: Exception) -> str:
    """What is wrong, on one line: without the lines of code that TorchScript and C++ print around it."""
    lines = [line.strip() for line in str(error).split("Exception raised from")[0].splitlines()]
    lines = [line for line in lines if line] or [type(error).__name__]
    if any("Traceback of TorchScript" in line for line in lines):
        lines = [lines[-1].removeprefix("builtins.").removeprefix("RuntimeError: ")]
    return " ".join(lines)
