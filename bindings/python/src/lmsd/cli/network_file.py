"""TorchScript and ONNX files, with what the command line says of them."""

from pathlib import Path

import lmsd
import lmsd.guidance

from .network import Network, model_hash
from .network_problem import NetworkProblem
from .task import Task, refuse
from .values import Device

DEFAULTS = {"device": Device("cpu"), "dtype": "float32", "classes": 0, "batch": 8, "seed": 0}
FLAGS = (*DEFAULTS, "shape", "memory", "only")  # that a problem file has no use for


def load(args, given: dict, schedule: lmsd.Schedule | None = None) -> Task:
    """The file as a problem. `given`: options of the library. To sample with a `schedule`, that one says the
    noise level and, where the command line does not, shape and guidance."""
    refuse(args, ("set",), "is for --problem")
    path = Path(args.torchscript or args.onnx)
    if not path.is_file():
        raise lmsd.Error(f"there is no model file {path}", lmsd.Status.IO)
    made = schedule.made_for if schedule else {}
    levels = {"sigma_max": schedule.sigma_start} if schedule else given
    shape = args.shape or made.get("latent_shape")
    guidance = made.get("guidance_scale", 1.0) if args.guidance is None else args.guidance
    if args.guidance is None and "guidance_range" in made:
        low, high = made["guidance_range"]
        raise lmsd.Error(f"the schedule is for guidance scales from {low:g} to {high:g}: say --guidance")
    needed = {"--shape": shape, "--sigma-max": levels.get("sigma_max")}
    if schedule is None:
        needed["--sigma-min"] = levels.get("sigma_min")
    missing = [flag for flag, value in needed.items() if value is None]
    if missing:
        raise lmsd.Error(f"a network file does not say {', '.join(missing)}; the command line must")
    said = {name: getattr(args, name) for name in DEFAULTS if getattr(args, name) is not None}
    own = DEFAULTS | said
    problem = NetworkProblem(
        network(args, path, own["device"], own["dtype"]),
        shape,
        sigma_max=levels["sigma_max"],
        guidance=guidance,
        only=getattr(args, "only", None),
        **{name: own[name] for name in ("batch", "classes", "seed")},
    )
    if args.memory is not None:
        problem.fit_memory(args.memory)
    made_for = {"model": path.stem, "model_hash": model_hash(path), **lmsd.guidance.made_for(guidance)}
    seeds = f"PCG64([{own['seed']}, trajectory]), {own['classes']} classes"
    if args.torchscript:
        seeds += f", {own['dtype']}"
    return Task(problem, {"made_for": {**made_for, "latent_shape": list(shape)}, "seeds": seeds})


def network(args, path: Path, device: Device, dtype: str) -> Network:
    """The network itself. torch and onnxruntime are loaded here, each where it is needed."""
    if args.torchscript:
        from .torchscript import TorchScript

        return TorchScript(path, device, dtype)
    from .onnx import Onnx

    refuse(args, ("dtype",), "is for --torchscript; an ONNX file says itself what it computes in")
    return Onnx(path, device)
