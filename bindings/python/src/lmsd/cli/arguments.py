"""The arguments of each subcommand. Those of the library, with their defaults, are in `library_options`."""

import argparse

import lmsd
from lmsd import gain

from . import library_options, values
from .compare import HELD_OUT
from .network_file import DEFAULTS

PROBLEMS = """\
--problem is a Python file or module with a function problem(guidance=..., **options). It returns an object of

    like                    a tensor of the shape, dtype and device of one batch (numpy or torch)
    begin(batch)            makes batch number `batch` current and returns its x_T, noise level sigma_max
    model(x, sigma)         the denoised tensor for the current batch, guidance included; with --fit-guidance
                            model(x, sigma, guidance): at scale 1 + guidance * (scale - 1)

and, where the library's defaults do not fit, process, sigma_min, sigma_max, sigma_end, made_for (a dict
for the schedules to say: model, guidance_scale, ...) and seeds (a text that names its noise, its conditions
and its features). Flags go before what it says. If it has features(x), distances to the teacher are those
between what that returns for end points x of the current batch; --feature-weight mixes them with the plain
ones.

--torchscript and --onnx are network files that take x [B, ...], sigma [B] and, with --classes, class [B],
and return denoised, the prediction of x0. A network that takes classes 0 to N - 1 takes N for none of them,
if it is to be guided. States are float32 whatever the network computes in. TorchScript needs torch, ONNX
onnxruntime.

    lmsd distill --problem problem.py --guidance 3 --nfe 4-8 --out family
    lmsd distill --onnx net.onnx --shape 4,64,64 --sigma-min 0.002 --sigma-max 80 --nfe 4-8 --out family
    lmsd compare family --onnx net.onnx --shape 4,64,64 --sigma-min 0.002 --sigma-max 80
    lmsd sample --onnx net.onnx --schedule family/nfe05.json --count 16 --out samples.npy
"""
RANKS = """
Many GPUs: `torchrun --nproc-per-node N -m lmsd distill ...` shares the batches of one run among N processes,
each with a GPU of its own as torch's current one (problem() makes its tensors on "cuda"; a network file is
given --device cuda), to the same schedules. --trajectories and --held-out should hold N batches or more.
"""
BENCH = """\
The protocol by which learned solvers of Stable Diffusion 1.5 are compared. A teacher, multistep DPM-Solver++
of --teacher-steps calls, makes a picture of each of --test prompts. For each number of calls a schedule is
distilled on other prompts; it, the schedulers of diffusers and lmsd's published solvers make the same
pictures from the same noise. The options of those are chosen by a third part of the prompts. The table has
the PSNR of decoded pictures to the teacher's, and a distance of features.

    lmsd bench --diffusers stable-diffusion-v1-5 --prompts captions.txt --dtype float16 --device cuda

--out holds bench.json, the schedules, sheet.png and the teacher's pictures. The same command goes on from
there after Ctrl-C, and with more numbers in --nfe it measures those too.
"""
LEVELS = ("process", "sigma_min", "sigma_max", "sigma_end")
LIMITS = ("max_calls", "max_seconds", "checkpoint", "made_for", "seeds", "starts", "feature_weight")
# of a fit, by the protocol of `bench`
DECIDED = ("nfe", "nfe_from", "teacher", "teacher_nfe", "teacher_grid", *LEVELS, *LIMITS)
SOLVERS = ("euler", "dpmpp_2m", "dpmpp_3m", "ipndm_4", "unipc_bh2_3")
TIMEOUT = 1800.0  # seconds


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="lmsd", description=lmsd.__doc__.splitlines()[0], allow_abbrev=False)
    main.add_argument("--version", action="version", version=f"lmsd {lmsd.__version__}")
    commands = main.add_subparsers(dest="command", required=True, metavar="command")
    for add, text, epilog in (
        (solve, "write the schedule of a published solver", ""),
        (distill, "fit schedules to a model, by forward calls only", PROBLEMS + RANKS),
        (sample, "sample with a schedule", PROBLEMS),
        (show, "print schedules", ""),
        (
            compare,
            "measure schedules and published solvers on trajectories that no fit sees",
            PROBLEMS + RANKS,
        ),
        (bench, "compare distilled schedules with other schedulers in a diffusers pipeline", BENCH),
        (validate, "check schedule files; exit code 1 if any is refused", ""),
    ):
        add(
            commands.add_parser(
                add.__name__,
                help=text,
                description=text[0].upper() + text[1:] + ".",
                epilog=epilog,
                formatter_class=argparse.RawDescriptionHelpFormatter,
                allow_abbrev=False,
            )
        )
    return main


def solve(p) -> None:
    option = library_options.described("solve")
    p.add_argument("solver", nargs="?", help=library_options.help_text(option["solver"]))
    p.add_argument("--list", action="store_true", help="list the solvers")
    grid = p.add_mutually_exclusive_group()
    text = library_options.help_text(option["grid"])
    grid.add_argument("--grid", type=values.grid, metavar="KIND|JSON", help=text)
    grid.add_argument("--rho", type=float, help="short for the karras grid with this rho")
    grid.add_argument("--shift", type=float, help="short for the flow grid with this time shift")
    grid.add_argument(
        "--sigmas", type=float, nargs="+", metavar="X", help="short for the list of these noise levels"
    )
    library_options.add(p, "solve", without=("solver", "grid"))
    p.add_argument("--out", metavar="FILE", help="the file to write (default: print it)")


def distill(p) -> None:
    the_model(p)
    option = library_options.described("distill")
    p.add_argument(
        "--nfe",
        type=values.nfe_range,
        metavar="N|N-M",
        help=library_options.help_text(option["nfe"]) + "; a family is 3-8, smallest and largest",
    )
    p.add_argument(
        "--out",
        required=True,
        help="a folder for nfe<NN>.json and report.json; or a file NAME.json: the schedule itself, or for a "
        "family the beginning of NAME-nfe<NN>.json, with NAME-report.json beside it",
    )
    library_options.add(
        group(p, "the fit"),
        "distill",
        without=("nfe", "nfe_from"),
        defaults={
            "checkpoint": "checkpoint.jsonl beside the results; removed when the run is done without a limit",
            "made_for": "what is known of the model",
            "seeds": "the options that noise and conditions depend on",
        },
    )
    torchrun(p)
    p.add_argument("--quiet", action="store_true", help="no progress bar, no plan")


def sample(p) -> None:
    the_model(p)
    p.add_argument("--schedule", required=True, metavar="FILE", help="the schedule file")
    p.add_argument(
        "--count", type=values.at_least(1), default=16, metavar="N", help="samples (default: %(default)s)"
    )
    p.add_argument(
        "--class",
        dest="only",
        type=values.at_least(0),
        metavar="N",
        help="the class of all samples, of a network file with --classes (default: one drawn for each)",
    )
    p.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help="samples.npy, or samples.png for images of 1 or 3 channels with pixels in [-1, 1]",
    )
    p.add_argument("--quiet", action="store_true", help="no progress bar")


def show(p) -> None:
    p.add_argument("files", nargs="+", help="schedule files, or folders of them")
    png(p)


def compare(p) -> None:
    p.add_argument("files", nargs="*", help="schedule files, or folders of them")
    the_model(p)
    p.add_argument(
        "--nfe",
        type=values.nfe_range,
        metavar="N|N-M",
        help="NFEs of the published solvers besides those of the files, such as 3-8",
    )
    p.add_argument(
        "--solvers",
        default=",".join(SOLVERS),
        help="published solvers, with commas; each at the NFEs that it can have (default: %(default)s)",
    )
    p.add_argument(
        "--field",
        choices=[*gain.NAMES, "none"],
        default="published",
        help="a field of published solvers, of which the best is told, by successive halving. "
        + library_options.help_text(library_options.described("rivals")["field"], "published"),
    )
    options = group(p, "the comparison")
    library_options.add(options, "compare", defaults={"held_out": str(HELD_OUT)})
    known = (*library_options.described("compare"), "nfe", "field")
    library_options.add(
        options, "rivals", without=known, defaults={"shift": "the one of the model, or else 1"}
    )
    torchrun(p)
    png(p)


def bench(p) -> None:
    at_least = values.at_least
    p.add_argument("--diffusers", required=True, metavar="DIR", help="folder of a diffusers pipeline")
    p.add_argument("--prompts", required=True, metavar="FILE", help="prompts, one on each line")
    p.add_argument(
        "--pipeline", metavar="FILE.py|MODULE", help="has the pipeline's class, if diffusers has not"
    )
    for name, default, text in (
        ("nfe", "5,8,10,12", "numbers of calls, with commas"),
        ("guidance", 3.0, "guidance scale"),
        ("teacher-steps", 40, "calls of the teacher"),
        ("test", 64, "prompts to measure on, which no fit and no choice sees"),
        ("rank", 8, "prompts to choose the options of other schedulers by"),
        ("batch", 4, "pictures in a call of the pipeline; halved where memory runs out"),
        ("image-calls", 20000, "predictions for one picture that each fit may take, all included"),
        ("seed", 0, "of the noise, and of which prompts are measured on"),
        ("sheet", 6, "columns of sheet.png"),
    ):
        kind = {"nfe": values.nfe_list, "guidance": float}.get(name, at_least(0 if name == "seed" else 1))
        p.add_argument(
            f"--{name}", type=kind, default=default, metavar="N", help=f"{text} (default: %(default)s)"
        )
    for name in ("height", "width"):
        p.add_argument(
            f"--{name}",
            type=at_least(1),
            metavar="N",
            help="of pictures, in pixels (default: the pipeline's)",
        )
    p.add_argument(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        default="float32",
        help="(default: %(default)s)",
    )
    p.add_argument("--device", type=values.device, metavar="NAME", help="cpu, cuda or cuda:N (default: cpu)")
    p.add_argument(
        "--features",
        default="random",
        metavar="KIND",
        help="what features are compared: random (a fixed random network), torchvision:NAME (a classifier, "
        "whose weights torchvision downloads), the folder of a CLIP vision model, or a TorchScript file that "
        "takes [n, 3, H, W] in 0 to 1 (default: %(default)s)",
    )
    p.add_argument(
        "--field",
        choices=["ranked", *gain.NAMES, "none"],
        default="ranked",
        help="lmsd's published solvers: ranked (those of the strongest field that each fit ranked highest), "
        "or all of a field, which takes a thousand schedules for the strongest one (default: %(default)s)",
    )
    p.add_argument(
        "--out", default="bench", metavar="DIR", help="folder of the results (default: %(default)s)"
    )
    p.add_argument("--quiet", action="store_true", help="no progress bars, no plan")
    library_options.add(group(p, "the fits"), "distill", without=DECIDED)


def validate(p) -> None:
    p.add_argument("files", nargs="+", help="schedule files, or folders of them")


def group(p, title: str):
    return p.add_argument_group(title)


def png(p) -> None:
    p.add_argument("--png", metavar="FILE", help="a picture to write (needs matplotlib)")


def torchrun(p) -> None:
    p.add_argument(
        "--timeout",
        type=float,
        default=TIMEOUT,
        metavar="X",
        help="with torchrun, how long ranks wait for one another (seconds; default: %(default)g)",
    )


def the_model(p) -> None:
    """What is sampled from: one of three kinds."""
    kinds = group(p, "the model, one of three; see below").add_mutually_exclusive_group(required=True)
    kinds.add_argument("--problem", metavar="FILE.py|MODULE", help="Python with a function problem()")
    kinds.add_argument("--torchscript", metavar="FILE", help="a TorchScript file")
    kinds.add_argument("--onnx", metavar="FILE", help="an ONNX file")
    p.add_argument(
        "--guidance",
        type=values.guidance,
        metavar="X",
        help="guidance scale, or a range such as 2-7, or several with commas, of which batches take one each "
        "in turn; handed to problem() if given, as a number or a list (network files: default 1, to sample "
        "the schedule's)",
    )
    p.add_argument(
        "--set",
        type=values.assignment,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another option of problem(); the value is JSON, or else a text",
    )
    network_file(group(p, "with --torchscript and --onnx"))


def network_file(files) -> None:
    """What a network file does not say itself."""
    files.add_argument(
        "--shape",
        type=values.shape,
        metavar="N,N,...",
        help="of one latent, such as 4,64,64 (to sample: the schedule's)",
    )
    files.add_argument(
        "--classes",
        type=values.at_least(0),
        metavar="N",
        help="how many classes the network takes, of which each trajectory draws one "
        f"(default: {DEFAULTS['classes']}, it takes none)",
    )
    files.add_argument(
        "--device",
        type=values.device,
        metavar="NAME",
        help=f"cpu, cuda, cuda:N or, for ONNX, directml (default: {DEFAULTS['device'].kind})",
    )
    files.add_argument(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        help=f"what a TorchScript network computes in (default: {DEFAULTS['dtype']})",
    )
    files.add_argument(
        "--batch",
        type=values.at_least(1),
        metavar="N",
        help="trajectories in a batch, 4 to 16 for the cheapest fit; where memory runs out, the network is "
        f"called on parts of it (default: {DEFAULTS['batch']})",
    )
    files.add_argument(
        "--memory",
        type=values.memory,
        metavar="SIZE",
        help="memory that may be in use, such as 8GiB, on the GPU or, on the CPU, by this process: sets how "
        "many trajectories are in a call of the network, by measured calls (default: a batch)",
    )
    files.add_argument(
        "--seed",
        type=values.at_least(0),
        metavar="N",
        help=f"of the noise and the classes (default: {DEFAULTS['seed']})",
    )
