"""Network files for the tests of the command line: the digits network, and small ones of one's own."""

import importlib.util
import sys
import warnings
from pathlib import Path

import pytest

DIGITS = Path(__file__).resolve().parents[3] / "examples" / "digits"
GAUSSIAN = (
    "s = sigma.to(x.dtype).view(-1, 1, 1)\nreturn x * 0.25 / (0.25 + s * s) + 0.1 * torch.tanh(x) / (1 + s)"
)
sys.path.insert(0, str(DIGITS))


def digits(folder: Path) -> dict[str, Path]:
    """The digits network as --torchscript and --onnx take it."""
    export = pytest.importorskip("export")
    paths = {"--torchscript": folder / "digits.pt", "--onnx": folder / "digits.onnx"}
    for path in paths.values():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's, of its exporters
            export.export(path)
    return paths


def model(folder: Path, body: str, inputs: str = "x, sigma"):
    """A torch module whose forward is `body`."""
    import torch

    name = f"Model{abs(hash((body, inputs)))}"
    file = folder / f"{name.lower()}.py"
    signature = ", ".join(f"{name}: Tensor" for name in inputs.split(", "))
    lines = "\n".join("        " + line for line in body.splitlines())
    file.write_text(
        "import torch\nfrom torch import Tensor\n\n\n"
        f"class {name}(torch.nn.Module):\n    def forward(self, {signature}) -> Tensor:\n{lines}\n"
    )
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return torch.jit.script(getattr(module, name)())


def scripted(folder: Path, body: str, inputs: str = "x, sigma") -> Path:
    """A TorchScript file whose forward is `body`."""
    path = folder / f"{abs(hash((body, inputs)))}.pt"
    model(folder, body, inputs).save(str(path))
    return path


def gaussian_onnx(folder: Path) -> Path:
    """GAUSSIAN as an ONNX file, for latents of shape (3, 5)."""
    import torch
    from export import export_onnx

    path = folder / "gaussian.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        export_onnx(model(folder, GAUSSIAN), (torch.ones(2, 3, 5), torch.ones(2)), path)
    return path
