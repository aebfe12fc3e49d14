"""TorchScript files, by torch."""

from pathlib import Path

import lmsd

from .network import Network, process_memory, reason
from .values import Device

try:
    import torch
except ImportError as error:
    raise lmsd.Error(f"--torchscript needs torch: pip install torch ({error})") from None


class TorchScript(Network):
    """`forward(x, sigma[, class])` -> denoised: x of `dtype`, sigma float32, class int64."""

    def __init__(self, path: Path, device: Device, dtype: str):
        self.device, self.dtype = torch_device(device), getattr(torch, dtype)
        try:
            self.module = torch.jit.load(str(path), map_location=self.device)
            arguments = self.module.forward.schema.arguments[1:]  # without self
        except (RuntimeError, AttributeError) as error:
            said = reason(error)
            raise lmsd.Error(
                f"{path} cannot be loaded as a TorchScript model: {said}", lmsd.Status.IO
            ) from error
        needed = sum(not argument.has_default_value() for argument in arguments)
        self.inputs = range(needed, len(arguments) + 1)
        self.module.eval()
        self.module.to(self.device, self.dtype)

    def tensor(self, array):
        return torch.from_numpy(array).to(self.device)

    def joined(self, parts):
        return torch.cat(parts)

    def run(self, x, sigma, classes):
        sigmas = torch.full((len(x),), sigma, dtype=torch.float32, device=self.device)
        given = [x.to(self.dtype), sigmas]
        if classes is not None:
            given.append(torch.from_numpy(classes).to(self.device))
        with torch.no_grad():
            found = self.module(*given)
        if not isinstance(found, torch.Tensor):
            raise lmsd.Error(f"the model returned {type(found).__name__}; it must return one tensor")
        return found.float()

    def memory_used(self):
        if self.device.type == "cpu":
            return process_memory()
        free, total = torch.cuda.mem_get_info(self.device)
        return total - free


def torch_device(device: Device) -> torch.device:
    if device.kind == "directml":
        raise lmsd.Error("--device directml is for --onnx; TorchScript models run on cpu or cuda")
    if device.kind == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        raise lmsd.Error(f"CUDA device {device.index or 0} is asked for, and torch finds {count} of them")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
