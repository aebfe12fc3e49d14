"""The digits network as a TorchScript or ONNX file: forward(x, sigma, class) -> denoised.

    python export.py digits.pt
    lmsd distill --torchscript digits.pt --classes 10 --guidance 3 --shape 1,8,8 --sigma-min 0.002 \\
        --sigma-max 80 --sigma-end 0.002 --nfe 4-5 --out schedules

and the same with digits.onnx and --onnx.

x: [B, 1, 8, 8]; sigma: [B]; class: int64 [B], 0 to 9, and 10 for none.
"""

import argparse

import torch
from model import SIGMA_DATA, WEIGHTS
from safetensors.torch import load_file
from torch import Tensor, nn


def modulated(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """RMS norm of the rows of h, times 1 + scale, plus shift."""
    return h * torch.rsqrt((h * h).mean(1, keepdim=True) + 1e-6) * (1 + scale) + shift


class Block(nn.Module):
    def __init__(self, embedding: int, width: int, hidden: int):
        super().__init__()
        self.modulation = nn.Linear(embedding, 2 * width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.modulation(emb).chunk(2, 1)
        return h + self.down(nn.functional.silu(self.up(modulated(h, scale, shift))))


class Digits(nn.Module):
    """The network of model.py in torch, at guidance 1."""

    def __init__(self):
        super().__init__()
        weights = {name: value.float() for name, value in load_file(WEIGHTS).items()}

        def linear(name):
            outputs, inputs = weights[name + ".weight"].shape
            return nn.Linear(inputs, outputs)

        width = weights["input.weight"].shape[0]
        count = sum(name.endswith(".up.weight") for name in weights)
        self.sigma_embed, self.embed = linear("sigma_embed"), linear("embed")
        self.label_embed = nn.Embedding(*weights["label_embed.weight"].shape)
        self.input, self.output, self.modulation = linear("input"), linear("output"), linear("modulation")
        hidden = weights["blocks.0.up.weight"].shape[0]
        self.blocks = nn.ModuleList(Block(self.embed.out_features, width, hidden) for _ in range(count))
        self.sigma_data: float = SIGMA_DATA
        self.load_state_dict(weights)

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        flat, dtype = x.flatten(1).float(), self.input.weight.dtype
        sigma = sigma.float().unsqueeze(1)
        variance = sigma * sigma + self.sigma_data**2
        waves = torch.arange(1, self.sigma_embed.in_features // 2 + 1, device=x.device)
        angle = sigma.log() / 4 * waves
        wave = torch.cat([angle.cos(), angle.sin()], 1).to(dtype)
        emb = nn.functional.silu(self.label_embed(label) + self.sigma_embed(wave))
        emb = nn.functional.silu(self.embed(emb))
        h = self.input((flat / variance.sqrt()).to(dtype))
        for block in self.blocks:
            h = block(h, emb)
        scale, shift = self.modulation(emb).chunk(2, 1)
        f = self.output(nn.functional.silu(modulated(h, scale, shift))).float()
        denoised = f * (sigma * self.sigma_data / variance.sqrt()) + flat * (self.sigma_data**2 / variance)
        return denoised.view(x.shape)


def export(path):
    """Writes the file: ONNX if its name ends in .onnx, else TorchScript."""
    network = Digits().eval().requires_grad_(False)
    if str(path).endswith(".onnx"):
        export_onnx(network, (torch.ones(2, 1, 8, 8), torch.ones(2), torch.tensor([0, 1])), path)
    else:
        torch.jit.script(network).save(str(path))


def export_onnx(network, like, path):
    """Writes a network as ONNX, for batches of any size. `like`: x, sigma and maybe class. Needs onnx."""
    names = ["x", "sigma", "class"][: len(like)]
    batch = {name: {0: "batch"} for name in [*names, "denoised"]}
    torch.onnx.export(
        network,
        like,
        str(path),
        input_names=names,
        output_names=["denoised"],
        dynamic_axes=batch,
        dynamo=False,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", help="the file to write, .pt or .onnx")
    export(parser.parse_args().path)
