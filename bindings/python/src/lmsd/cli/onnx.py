"""ONNX files, by onnxruntime. The states of a run are numpy arrays."""

import os
from pathlib import Path

import numpy as np

import lmsd

from .network import Network, process_memory, reason
from .values import Device

try:
    import onnxruntime
except ImportError as error:
    raise lmsd.Error(f"--onnx needs onnxruntime: pip install lmsd[onnx] ({error})") from None

PROVIDERS = {
    "cpu": ("CPUExecutionProvider", "onnxruntime"),
    "cuda": ("CUDAExecutionProvider", "onnxruntime-gpu"),
    "directml": ("DmlExecutionProvider", "onnxruntime-directml"),
}
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


class Onnx(Network):
    """Inputs x [B, ...], sigma [B] and maybe class [B], in this order; the first output is denoised."""

    def __init__(self, path: Path, device: Device):
        self.on_cpu = device.kind == "cpu"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # calls are far apart
        options.enable_mem_pattern = device.kind != "directml"  # which cannot have it
        wanted = providers(device)
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=wanted)
        except Exception as error:  # onnxruntime has a dozen kinds of its own, with no common base
            said = reason(error)
            raise lmsd.Error(f"{path} cannot be loaded as an ONNX model: {said}", lmsd.Status.IO) from error
        if PROVIDERS[device.kind][0] not in self.session.get_providers():
            raise lmsd.Error(f"onnxruntime cannot start {PROVIDERS[device.kind][0]}; its drivers are missing")
        given = self.session.get_inputs()
        self.inputs = range(len(given), len(given) + 1)
        self.names = [value.name for value in given]
        self.output = self.session.get_outputs()[0].name
        for value in given:
            if value.type not in DTYPES:
                known = ", ".join(DTYPES)
                raise lmsd.Error(f"{path}: input {value.name} is a {value.type}; one of {known} is needed")
        self.dtypes = [DTYPES[value.type] for value in given]

    def tensor(self, array):
        return array

    def joined(self, parts):
        return np.concatenate(parts)

    def run(self, x, sigma, classes):
        given = [x, np.full(len(x), sigma), *([] if classes is None else [classes])]
        feed = {
            name: np.ascontiguousarray(value, dtype)
            for name, value, dtype in zip(self.names, given, self.dtypes, strict=True)
        }
        return np.asarray(self.session.run([self.output], feed)[0], np.float32)

    def memory_used(self):
        return process_memory() if self.on_cpu else None


def providers(device: Device) -> list:
    """What onnxruntime is to run on: `device`, and the CPU for what that cannot do."""
    name, package = PROVIDERS[device.kind]
    there = onnxruntime.get_available_providers()
    if name not in there:
        raise lmsd.Error(
            f"--device {device.kind} needs {name}, and this onnxruntime has {', '.join(there)}: "
            f"pip install {package}"
        )
    if device.kind == "cpu":
        return [name]
    index = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
    return [(name, {"device_id": index}), PROVIDERS["cpu"][0]]
