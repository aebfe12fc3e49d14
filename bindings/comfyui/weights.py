"""What a schedule file says of a model's weights, and what is said where a run has others.

A fingerprint is a few numbers of eight parameters, as they are before any patch, and a hash of the patches
(LoRAs, merges). It is compared with a tolerance, so that float32, float16 and bfloat16 of one checkpoint are
the same. What cannot be read at once, such as packed integers, is left out: only what both sides have is
compared.
"""

import logging
import zlib

import torch

KIND = 4  # parameters of each kind: matrices and kernels, and vectors
NUMBERS = 4  # of each parameter
HALF = 2**-7  # relative: what two roundings to bfloat16 differ by at most
# of the length of a parameter's numbers, and absolute: as 8 bits or a finetune change them
COARSE = 0.25, 0.004
SAME, NEAR, UNKNOWN, OTHER = range(4)  # what the weights of a run are to those of a file
WORDS = {
    NEAR: "the schedule was made for weights near these: of a checkpoint of the same origin, or in another "
    "number format such as fp8",
    OTHER: "the schedule was made for another checkpoint",
}
PATCHES = {  # whether there were any, whether there are
    (False, True): "the schedule was made without the LoRA or other patch of the weights that this run has",
    (True, False): "the schedule was made with a LoRA or other patch of the weights; this run has none",
    (True, True): "the schedule was made with another LoRA, or another strength of it, than this run has",
}


def fingerprint(*patchers) -> str | None:
    """Of MODELs that share one schedule: "name=numbers,name=numbers+patches" of each, with "|" in between.

    None where nothing can be read. It reads 32 numbers and moves no weights. Weights and patches are told
    apart, so that a LoRA on the same checkpoint can be called that.
    """
    found = [one + patches(patcher) for patcher in patchers if (one := unpatched(patcher))]
    return "|".join(found) or None


def unpatched(patcher) -> str:
    """The numbers as text: four hexadecimal digits each, of a bfloat16."""
    network = getattr(patcher.model, "diffusion_model", None)
    if not isinstance(network, torch.nn.Module):
        return ""
    parameters = sorted(network.named_parameters(), key=lambda one: (zlib.crc32(one[0].encode()), one[0]))
    chosen = [one for one in parameters if one[1].ndim > 1][:KIND] + [
        one for one in parameters if one[1].ndim == 1
    ][:KIND]
    texts = []
    for name, parameter in chosen:
        before = (getattr(patcher, "backup", None) or {}).get(f"diffusion_model.{name}")
        numbers = first_numbers(getattr(before, "weight", parameter))
        if numbers is not None:
            bits = numbers.to(torch.bfloat16).view(torch.int16).tolist()
            texts.append(f"{code(name):04x}=" + "".join(f"{one & 0xFFFF:04x}" for one in bits))
    return ",".join(texts)


def code(name: str) -> int:
    return zlib.crc32(name.encode()) & 0xFFFF


def first_numbers(tensor):
    """A few numbers from all along the first axis, float32 in main memory; None where it holds none."""
    try:
        if tensor.is_meta or not tensor.is_floating_point():  # not there, or packed
            return None
        column = tensor.detach()
        while column.ndim > 1:
            column = column.select(-1, 0)
        return column[:: max(1, len(column) // NUMBERS)][:NUMBERS].to(torch.float32).cpu()
    except Exception as error:  # tensors of other packs do not take every operation
        logging.debug("lmsd: a parameter cannot be read: %s", error)
        return None


def patches(patcher) -> str:
    """ "+" and a hash of what is patched into the weights, how strongly; empty where nothing is.

    Of four of the patches the numbers themselves count.
    """
    held = getattr(patcher, "patches", None) or {}
    keys = sorted(
        (key for key in held if str(key).startswith("diffusion_model.")),
        key=lambda key: zlib.crc32(key.encode()),
    )
    found = 0
    for place, key in enumerate(keys):
        for strength, patch, of_model, *_ in held[key]:
            found = zlib.crc32(f"{key} {float(strength):g} {float(of_model):g}".encode(), found)
            for numbers in map(first_numbers, tensors(patch) if place < KIND else ()):
                found = found if numbers is None else zlib.crc32(numbers.numpy().tobytes(), found)
    return f"+{found:08x}" if keys else ""


def tensors(patch, depth: int = 4) -> list:
    """Those of a patch, in whatever the host's version keeps them."""
    if torch.is_tensor(patch):
        return [patch]
    patch = getattr(patch, "weights", patch)
    if depth == 0 or not isinstance(patch, tuple | list):
        return []
    return [found for one in patch for found in tensors(one, depth - 1)]


# ---- comparing


def differences(made: str | None, here: str | None) -> list[str]:
    """Sentences on the weights of a run where they are not those of a file; `made`, `here`: fingerprints."""
    if not made or not here:
        return []
    how, (wanted, found) = closest(made, here)
    said = [WORDS[how]] if how in WORDS else []
    if wanted != found and how != OTHER:
        said.append(PATCHES[bool(wanted), bool(found)])
    return said


def rank(made: str | None, here: str | None) -> float:
    """How far a file is from fitting the weights of a run, 0 for the same; to be compared only."""
    if not made or not here:
        return UNKNOWN
    how, (wanted, found) = closest(made, here)
    return how + 0.5 * (wanted != found)


def closest(made: str, here: str) -> tuple[int, tuple[str, str]]:
    """SAME to OTHER, and the patches of both. A file for several models fits a run of some of them."""
    all_of_run = []
    for one in here.split("|"):
        numbers, _, found = one.partition("+")
        options = []
        for other in made.split("|"):
            wanted_numbers, _, wanted = other.partition("+")
            options.append((compared(read(wanted_numbers), read(numbers)), wanted != found, (wanted, found)))
        how, _, both = min(options)
        all_of_run.append((how, both))
    return max(all_of_run, key=lambda one: (one[0], one[1][0] != one[1][1]))


def read(text: str) -> dict[str, torch.Tensor]:
    """Name to numbers; what is not of this form is left out."""
    found = {}
    for item in text.split(","):
        name, _, digits = item.partition("=")
        try:
            bits = [int(digits[at : at + 4], 16) for at in range(0, len(digits), 4)]
        except ValueError:
            continue
        signed = [bit - (bit >= 1 << 15) * (1 << 16) for bit in bits]
        found[name] = torch.tensor(signed, dtype=torch.int16).view(torch.bfloat16).float()
    return found


def compared(made: dict, here: dict) -> int:
    """SAME, NEAR, UNKNOWN or OTHER."""
    both = [(made[name], here[name]) for name in made if name in here and len(made[name]) == len(here[name])]
    if not both:
        return UNKNOWN
    if all(((a - b).abs() <= HALF * torch.maximum(a.abs(), b.abs()) + 1e-6).all() for a, b in both):
        return SAME
    share, least = COARSE
    near = sum(bool((a - b).norm() <= share * max(a.norm(), b.norm()) + least) for a, b in both)
    return NEAR if near >= 0.75 * len(both) else OTHER
