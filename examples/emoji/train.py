"""Train the emoji models: `pixel`, then `flow` (starts from it), `autoencoder`, `latent` (from both);
and `classifier`, which judges.

    python train.py pixel && python train.py flow && python train.py autoencoder && python train.py latent

Each writes NAME.safetensors beside this script: half precision, the vocabulary in its metadata. A run that
was stopped goes on where it last saved. Needs torch, pillow and npm; `pixel` takes 40 minutes on two cores
with AMX.
Losses are those of EDM (arXiv 2206.00364) and, for the flow model, of rectified flow with logit-normal times
(arXiv 2403.03206); words are dropped at random for classifier-free guidance (arXiv 2207.12598).
"""

import argparse
import copy
import json
import math
import time
from pathlib import Path

import torch
from emoji_data import FOLDER
from network import NOISIEST, SIGMA_DATA, Autoencoder, Classifier, Denoiser
from safetensors.torch import load_file, save_file
from stickers import Stickers
from torch.nn import functional as F

HERE = Path(__file__).parent
# name: (steps, batch, learning rate, starts from)
RUNS = {
    "pixel": (7500, 128, 1.2e-3, None),
    "flow": (400, 128, 5e-4, "pixel"),
    "autoencoder": (1200, 32, 2e-3, None),
    "latent": (3000, 128, 1.2e-3, "pixel"),
    "classifier": (1500, 128, 2e-3, None),
}


def draw_sigma(n):
    """n noise levels, log-normal about 0.55, clamped to 0.002..80; one in ten log-uniform."""
    log_sigma = torch.where(
        torch.rand(n) < 0.1,
        torch.rand(n) * math.log(80 / 0.002) + math.log(0.002),
        -0.6 + 1.3 * torch.randn(n),
    )
    return log_sigma.exp().clamp(0.002, 80)


def edm_loss(net, x, words):
    sigma = draw_sigma(len(x))
    s = sigma[:, None, None, None]
    weight = (s * s + SIGMA_DATA**2) / (s * SIGMA_DATA) ** 2
    return (weight * (net(x + s * torch.randn_like(x), sigma, words) - x).square()).mean()


def flow_loss(net, x, words):
    t = torch.sigmoid(0.4 + 1.1 * torch.randn(len(x))).clamp(1e-3, NOISIEST)
    s, noise = t[:, None, None, None], torch.randn_like(x)
    denoised = net((1 - s) * x + s * noise, t, words)
    return ((denoised - x) / s).square().mean()


def autoencoder_loss(net, x, _words):
    """Difference of pictures and of their edges; the latents are kept near standard deviation SIGMA_DATA."""
    latents = net.encode(x).float()
    seen = net.decode(latents + 0.03 * torch.randn_like(latents)).float()
    edges = sum((seen.diff(dim=d) - x.diff(dim=d)).abs().mean() for d in (2, 3))
    size = (latents.square().mean((0, 2, 3)) / SIGMA_DATA**2 - 1).square().mean()
    return (seen - x).abs().mean() + edges + 0.1 * size + 0.1 * latents.mean((0, 2, 3)).square().mean()


def classifier_loss(net, x, kinds):
    return F.cross_entropy(net(x).float(), kinds, label_smoothing=0.05)


def network(name, stickers):
    """The network to train, with the weights that it starts from."""
    words = len(stickers.vocabulary)
    if name == "classifier":
        return Classifier(len(stickers.kinds))
    if name == "autoencoder":
        return Autoencoder()
    latent = name == "latent"
    net = Denoiser(words, 4 if latent else 3, 1 if latent else 2, flow=name == "flow")
    if RUNS[name][3]:
        known = {k: v.float() for k, v in load_file(HERE / f"{RUNS[name][3]}.safetensors").items()}
        net.load_state_dict(translated(known, stickers) if latent else known)
    return net


def coder():
    """The trained autoencoder."""
    net = Autoencoder()
    net.load_state_dict({k: v.float() for k, v in load_file(HERE / "autoencoder.safetensors").items()})
    return net.requires_grad_(False)


def translated(known, stickers, count=256):
    """Weights to begin the latent model with, from those of the pixel model.

    Both see one grid of 16x16 places. The first and the last layer are composed with the linear maps between
    latents and patches of pixels that fit `count` pictures best.
    """
    pictures = stickers.picture(stickers.draw(count), 64)
    latents = coder().encode(pictures).movedim(1, 3).flatten(0, 2)
    patches = F.pixel_unshuffle(F.avg_pool2d(pictures, 2), 2).movedim(1, 3).flatten(0, 2)
    one = torch.ones(len(latents), 1)
    into = torch.linalg.lstsq(torch.cat([latents, one], 1), patches).solution  # [4 + 1, 12]
    back = torch.linalg.lstsq(torch.cat([patches, one], 1), latents).solution[:-1]  # [12, 4]
    first, last = known["unet.input.weight"], known["unet.output.weight"]
    return known | {
        "unet.input.weight": torch.einsum("ochw,dc->odhw", first, into[:-1]),
        "unet.input.bias": known["unet.input.bias"] + torch.einsum("ochw,c->o", first, into[-1]),
        "unet.output.weight": torch.einsum("cihw,cd->dihw", last, back),
        "unet.output.bias": known["unet.output.bias"] @ back,
    }


def batches(name, stickers, batch):
    """Yields (x, words), or of the classifier (x, kinds), for ever."""
    encode = lambda x: x  # noqa: E731
    if name == "latent":
        encode = coder().encode
    size = 64 if name in ("autoencoder", "latent") else 32
    while True:
        which = stickers.draw(batch)
        x = encode(stickers.picture(which, size))
        told = stickers.kind[which] if name == "classifier" else stickers.prompt(which)
        yield x.contiguous(memory_format=torch.channels_last), told


def save(name, ema, stickers):
    state = {k: v.half().contiguous() for k, v in ema.state_dict().items()}
    said = {"kinds": stickers.kinds} if name == "classifier" else {"words": stickers.vocabulary}
    path = HERE / f"{name}.safetensors"
    save_file(state, path, {key: json.dumps(value) for key, value in said.items()})
    path.chmod(0o644)


def train(name, args):
    steps, batch, rate, _ = RUNS[name]
    steps = args.steps or steps
    torch.manual_seed(args.seed)
    stickers = Stickers()
    net = network(name, stickers).to(memory_format=torch.channels_last)
    ema = copy.deepcopy(net).requires_grad_(False)
    rare = [p for key, p in net.named_parameters() if "words" in key]  # each is seen seldom
    others = [p for key, p in net.named_parameters() if "words" not in key]
    groups = [{"params": others, "faster": 1}, {"params": rare, "faster": 3, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
    state_file, begin = FOLDER / f"{name}.state", 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        net.load_state_dict(state["net"]), ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        begin = state["step"]
        torch.manual_seed(args.seed + begin)
        print(f"goes on at step {begin}")
    others = {"flow": flow_loss, "autoencoder": autoencoder_loss, "classifier": classifier_loss}
    loss_of = others.get(name, edm_loss)
    if args.compile:
        loss_of = torch.compile(loss_of)
    source, started, seen = batches(name, stickers, batch), time.perf_counter(), 0.0
    for step in range(begin, steps):
        for group in optimizer.param_groups:
            group["lr"] = (
                group["faster"]
                * rate
                * min(1, (step + 1) / 200)
                * max(0.01, 0.5 + 0.5 * math.cos(math.pi * step / steps))
            )
        x, words = next(source)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(net, x, words)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        decay = min(0.999, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(ema.parameters()), list(net.parameters()), 1 - decay)
        seen += loss.item()
        if step % 100 == 99:
            left = (time.perf_counter() - started) / (step + 1 - begin) * (steps - step - 1)
            print(f"{name} {step + 1}/{steps}: loss {seen / 100:.4f}, {left / 60:.0f} min left", flush=True)
            seen = 0.0
        if step % 500 == 499 or step + 1 == steps:
            save(name, ema, stickers)
            state = {"net": net.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "step": step + 1}, state_file)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=RUNS)
    parser.add_argument(
        "--steps", type=int, help="default: " + ", ".join(f"{k} {v[0]}" for k, v in RUNS.items())
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--compile", action="store_true", help="with torch.compile, which needs a C++ compiler"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args.name, args)


if __name__ == "__main__":
    main()
