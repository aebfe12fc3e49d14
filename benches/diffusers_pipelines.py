"""The pipelines of the installed diffusers that can be built small: sampled and distilled for a few calls.

    python benches/diffusers_pipelines.py --theirs diffusers/tests --docs docs/diffusers-pipelines.md

`--theirs`: the folder `tests` of diffusers' sources, of a version near the installed one, whose dummy
components (small random networks) and dummy arguments are used. They need accelerate, parameterized,
requests_mock and torchvision. No hub: tokenizers and T5 encoders that those tests download are replaced by
small stand-ins, and what needs more than these is listed as not built.

A pipeline counts as built where it runs with its own scheduler. Then it samples with LmsdScheduler and
Euler's table of 3 steps, and lmsd.diffusers.distill is run for 60 calls. Each either works, is refused with
lmsd's reason, or crashes; the exit status is 1 if anything crashes. `--out` gets a row for each pipeline, and
a later run goes on from there.
"""

import argparse
import contextlib
import gc
import importlib
import inspect
import json
import os
import re
import signal
import sys
import traceback
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import diffusers
import lmsd
import torch
from lmsd._pipeline.distillation import refuse_copies
from lmsd._pipeline.network import Network, settings
from lmsd.diffusers import LmsdScheduler

STEPS, NFE = 3, 2  # of the sampled table, of the fit
CALLS = 60  # of the model, after which a distillation is stopped
QUICK = {"teacher_nfe": 4, "iterations": 1, "trajectories": 2, "held_out": 1}
SECONDS = 240  # of processor time for one pipeline, else it counts as too slow
OWN_NAMES = ("batch_size", "generator", "num_inference_steps", "latents", "strength", "timesteps", "sigmas")
PACKAGE = Path(lmsd.__file__).parent
WORKS, REFUSED, CRASHED = "works", "refused", "crashed"
CAN = "can be built, but does not run here with its own scheduler"


class TooSlow(BaseException):
    pass


@contextlib.contextmanager
def limited(seconds):
    def stop(*_):
        raise TooSlow

    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


# Stand-ins for what their tests download.


def tokenizer(length=77):
    """A tokenizer of bytes: 256 and a few special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<pad>", "<unk>"]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens = {token: number for number, token in enumerate(tokens)}
    found = Tokenizer(models.BPE(vocab=tokens, merges=[], unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    found.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=found,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=length,
    )
    made.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return made


def t5_config():
    from transformers import T5Config

    return T5Config(vocab_size=1103, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)


def without_hub():
    """Puts the stand-ins in the place of downloads."""
    import transformers

    def made(cls, *args, **options):
        return tokenizer()

    def config(cls, name, *args, **options):
        if "t5" not in str(name).lower():
            raise OSError(f"{name} is on the hub")
        return t5_config()

    def encoder(cls, name, *args, **options):
        if "t5" in str(name).lower():
            return cls(cls.config_class(**t5_config().to_diff_dict()))
        if "BertModel" in str(name):
            small = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2}
            return cls(transformers.BertConfig(vocab_size=1124, num_attention_heads=4, **small))
        raise OSError(f"{name} is on the hub")

    transformers.PreTrainedTokenizerBase.from_pretrained = classmethod(made)
    transformers.AutoTokenizer.from_pretrained = classmethod(made)
    transformers.AutoConfig.from_pretrained = classmethod(config)
    for name in ("T5EncoderModel", "UMT5EncoderModel", "BertModel"):
        getattr(transformers, name).from_pretrained = classmethod(encoder)


# What there is to try.


def pipeline_classes() -> list[str]:
    found = []
    for name in dir(diffusers):
        if name.endswith("Pipeline"):
            kind = getattr(diffusers, name)
            if isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline):
                found.append(name)
    return sorted(found)


def files_of_tests(theirs: Path) -> dict[str, list[Path]]:
    """Pipeline class name -> files of their tests that say they test it."""
    found = {}
    for path in sorted((theirs / "pipelines").rglob("test_*.py")):
        for name in sorted(set(re.findall(r"^    pipeline_class = (\w+)", path.read_text(), re.MULTILINE))):
            found.setdefault(name, []).append(path)
    return found


def tests_in(path: Path, theirs: Path, pipeline: str) -> list[type]:
    """The classes of a file of their tests that can make this pipeline."""
    if str(theirs.parent) not in sys.path:
        sys.path.insert(0, str(theirs.parent))
    module = importlib.import_module(".".join(path.relative_to(theirs.parent).with_suffix("").parts))
    return [
        one
        for one in vars(module).values()
        if isinstance(one, type)
        and getattr(getattr(one, "pipeline_class", None), "__name__", None) == pipeline
        and hasattr(one, "get_dummy_components")
        and hasattr(one, "get_dummy_inputs")
    ]


def build(test):
    """(pipeline, its arguments) as a test of theirs has them."""
    one = test()
    torch.manual_seed(0)
    pipe = one.pipeline_class(**one.get_dummy_components())
    pipe.set_progress_bar_config(disable=True)
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            module.eval().requires_grad_(False)
    parameters = inspect.signature(one.get_dummy_inputs).parameters
    inputs = one.get_dummy_inputs("cpu") if "device" in parameters else one.get_dummy_inputs()
    for name in ("mask", "mask_image"):  # where all is unknown nothing is put back
        if isinstance(inputs.get(name), torch.Tensor) and inputs[name].unique().numel() == 1:
            inputs[name] = inputs[name].clone()
            inputs[name][..., : inputs[name].shape[-1] // 2] = 0
            inputs[name][..., inputs[name].shape[-1] // 2 :] = 1
    return pipe, inputs


# The trials.


def run(pipe, inputs, **options):
    parameters = inspect.signature(pipe.__call__).parameters
    options = {name: value for name, value in options.items() if name in parameters}
    with torch.no_grad():
        return pipe(**{**inputs, **options})


def seeded():
    return torch.Generator().manual_seed(0)


def sample(pipe, inputs):
    """Samples with Euler's method in a table; with whole timesteps where something is looked up by them."""
    refuse_copies(pipe)
    own = pipe.scheduler
    network = Network(settings(own))
    high = network.sigma_max if network.process == "flow" else min(network.sigma_max, 1000.0)
    levels = {"process": network.process, "sigma_min": network.sigma_min, "sigma_max": high}
    schedule = lmsd.solve("euler", nfe=STEPS, **levels).to_dict()
    schedule.pop("made_for")
    schedule = lmsd.Schedule.from_json(schedule)
    inputs = {name: value for name, value in inputs.items() if name not in ("timesteps", "sigmas")}
    try:
        end = end_state(pipe, inputs, LmsdScheduler.from_schedule(schedule, like=own))
    except IndexError:
        pipe.scheduler = own
        whole = LmsdScheduler.from_schedule(schedule, like=own, integer_timesteps=True)
        end = end_state(pipe, inputs, whole)
    assert end.isfinite().all(), "the end state is not finite"


def end_state(pipe, inputs, scheduler):
    """What the last step of a run returned."""
    states, step = [], scheduler.step

    def recorded(*args, **options):
        out = step(*args, **options)
        states.append(out[0])
        return out

    scheduler.step = recorded
    pipe.scheduler = scheduler
    run(pipe, inputs, num_inference_steps=STEPS, generator=seeded(), strength=0.7)
    return states[-1]


def distill(pipe, inputs):
    given = {name: value for name, value in inputs.items() if name not in OWN_NAMES}
    given.pop("output_type", None)
    prompt = given.pop("prompt", None)
    guidance = given.pop("guidance_scale", None)
    prompts = None if prompt is None else [prompt] if isinstance(prompt, str) else list(prompt)
    calls = 0

    def enough(_):
        nonlocal calls
        calls += 1
        return calls >= CALLS

    options = {**QUICK, **given, "progress": enough, "guidance_scale": guidance}
    try:
        lmsd.diffusers.distill(pipe, prompts, nfe=NFE, batch_size=len(prompts or [None]), **options)
    except lmsd.Error as error:
        if error.status != lmsd.Status.STOPPED or calls < CALLS:
            raise


def outcome(trial, pipe, inputs):
    """(works, refused or crashed, reason)."""
    scheduler = pipe.scheduler
    try:
        trial(pipe, inputs)
        return WORKS, ""
    except Exception as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        ours = raised_in.is_relative_to(PACKAGE) and isinstance(error, lmsd.Error | ValueError)
        return (REFUSED if ours else CRASHED), first_line(error)
    finally:
        pipe.scheduler = scheduler


def first_line(error) -> str:
    text = " ".join(str(error).split())
    text = text if len(text) <= 160 else text[:157] + "..."
    return text if isinstance(error, lmsd.Error | ValueError) else f"{type(error).__name__}: {text}"


def trials(pipe, inputs) -> dict:
    """A row of the table, of a pipeline that runs with its own scheduler."""
    kind = type(pipe.scheduler).__name__ if hasattr(pipe, "scheduler") else None
    row = {"scheduler": kind}
    if kind is None:
        reason = "has no scheduler of its own: a combination of pipelines, or none at all"
        return row | {"sampled": [REFUSED, reason], "distilled": [REFUSED, reason]}
    return row | {name: list(outcome(one, pipe, inputs)) for name, one in TRIALS.items()}


TRIALS = {"sampled": sample, "distilled": distill}


def examine(name: str, files: list[Path], theirs: Path) -> dict:
    """The row of one pipeline class."""
    why = "diffusers has no dummy components for it"
    for path in files:
        try:
            tests = tests_in(path, theirs, name)
        except Exception as error:
            why = f"its tests do not load: {first_line(error)}"
            continue
        for test in tests:
            try:
                pipe, inputs = build(test)
            except OSError:
                why = "its dummy components need files of the hub"
                continue
            except Exception as error:
                why = f"its dummy components: {first_line(error)}"
                continue
            try:
                run(pipe, inputs, num_inference_steps=inputs.get("num_inference_steps", 2))
            except Exception as error:
                why = f"{CAN}: {first_line(error)}"
                continue
            return {"pipeline": name, "built": True, **trials(pipe, inputs)}
    return {"pipeline": name, "built": False, "why": why}


# The page.


def table(rows) -> list[str]:
    def cell(result):
        state, reason = result
        return "yes" if state == WORKS else f"{state}: {reason}".replace("|", "/")

    lines = ["| pipeline | its scheduler | sampled | distilled |", "|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['pipeline']} | {row['scheduler']} | {cell(row['sampled'])} | {cell(row['distilled'])} |"
        )
    return lines


def page(rows, version) -> str:
    built = [row for row in rows if row["built"]]
    counts = {
        (name, state): sum(row[name][0] == state for row in built)
        for name in TRIALS
        for state in (WORKS, REFUSED, CRASHED)
    }
    lines = [
        "# Pipelines of diffusers",
        "",
        f"Made by `benches/diffusers_pipelines.py` with diffusers {version}: each pipeline class with small",
        "random networks, sampled with a table of Euler's method and distilled for a few calls. Nothing here",
        "says how good a schedule is; it says that the pipeline's loop and the library work together, or why",
        "not.",
        "",
        f"Of {len(rows)} pipeline classes {len(built)} were built without a hub.",
        "",
        "| | works | refused with a reason | crashed |",
        "|---|---|---|---|",
    ]
    for name in TRIALS:
        lines.append(
            f"| {name} | " + " | ".join(str(counts[name, s]) for s in (WORKS, REFUSED, CRASHED)) + " |"
        )
    lines += ["", *table(built), "", "## Not built", ""]
    reasons = {}
    for row in rows:
        if not row["built"]:
            reasons.setdefault(row["why"], []).append(row["pipeline"])
    lines += [f"- {why}: {', '.join(names)}." for why, names in sorted(reasons.items())]
    return "\n".join(lines) + "\n"


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--theirs", type=Path, required=True, help="the folder tests of diffusers' sources")
    parser.add_argument("--out", type=Path, default=Path("out/diffusers_pipelines.jsonl"))
    parser.add_argument("--docs", type=Path, help="the page to write")
    parser.add_argument("--only", nargs="*", help="these pipelines only")
    parser.add_argument("--again", action="store_true", help="those that crashed before, too")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    without_hub()
    known = {}
    if args.out.exists():
        for line in args.out.read_text().splitlines():
            row = json.loads(line)
            known[row["pipeline"]] = row
    if args.again:
        known = {
            name: row
            for name, row in known.items()
            if row["built"] and all(row[trial][0] != CRASHED for trial in TRIALS)
        }
    theirs = args.theirs.resolve()
    files = files_of_tests(theirs)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    names = args.only or pipeline_classes()
    for name in names:
        if name in known and not args.only:
            continue
        try:
            with limited(SECONDS):
                row = examine(name, files.get(name, []), theirs)
        except TooSlow:
            row = {"pipeline": name, "built": False, "why": f"takes more than {SECONDS} seconds"}
        known[name] = row
        with args.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
        gc.collect()
    rows = [known[name] for name in names]
    if args.docs:
        args.docs.write_text(page(rows, diffusers.__version__))
    return int(any(row["built"] and row[trial][0] == CRASHED for row in rows for trial in TRIALS))


if __name__ == "__main__":
    sys.exit(main())
