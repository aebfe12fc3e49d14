"""Write NAME.onnx beside NAME.safetensors: the graph, which reads its weights (half precision) from there.

    python export.py pixel flow latent autoencoder classifier

Inputs x [B, C, S, S], sigma [B], words int64 [B, W] (0: no word), output denoised; of the autoencoder: x, the
latents [B, 4, 16, 16], and output pictures [B, 3, 64, 64]; of the classifier: see `network.Classifier`. Needs
torch and onnx.
"""

import argparse
import io
import json
from pathlib import Path

import onnx
import torch
from emoji_data import WORDS
from network import Autoencoder, Classifier, Denoiser
from onnx import TensorProto, helper
from safetensors.torch import load_file
from torch import nn

HERE = Path(__file__).parent
NAMES = ("pixel", "flow", "latent", "autoencoder", "classifier")


class Decoder(nn.Module):
    """The half of the autoencoder that is needed to see pictures."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net.decode(x)


class Judge(nn.Module):
    """All that is asked of the classifier."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x), self.net.features(x), self.net.perceptual(x)


def weights_of(name):
    """The weights of NAME.safetensors in single precision."""
    return {key: value.float() for key, value in load_file(HERE / f"{name}.safetensors").items()}


def denoiser(name):
    """The torch module of pixel, flow or latent, with its weights."""
    weights = weights_of(name)
    latent = name == "latent"
    net = Denoiser(
        len(weights["unet.words.weight"]), 4 if latent else 3, 1 if latent else 2, flow=name == "flow"
    )
    net.load_state_dict(weights)
    return net.eval().requires_grad_(False)


def autoencoder():
    """The torch module that turns latents into pictures and back, with its weights."""
    coder = Autoencoder()
    coder.load_state_dict(weights_of("autoencoder"))
    return coder.eval().requires_grad_(False)


def classifier():
    """The torch module that tells the kinds of emoji apart, with its weights."""
    weights = weights_of("classifier")
    net = Classifier(len(weights["scores.bias"]))
    net.load_state_dict(weights)
    return net.eval().requires_grad_(False)


def module(name):
    """(module, example of its inputs by name, names of its outputs)"""
    if name == "autoencoder":
        return Decoder(autoencoder()), {"x": torch.zeros(2, 4, 16, 16)}, ["pictures"]
    if name == "classifier":
        return Judge(classifier()), {"x": torch.zeros(2, 3, 32, 32)}, ["scores", "features", "perceptual"]
    shape = (2, 4, 16, 16) if name == "latent" else (2, 3, 32, 32)
    like = {"x": torch.zeros(shape), "sigma": torch.full((2,), 0.5), "words": torch.ones(2, WORDS).long()}
    return denoiser(name), like, ["denoised"]


def offsets(path):
    """name -> (shape, first byte, bytes) of every tensor of a safetensors file."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return {
        name: (
            entry["shape"],
            8 + size + entry["data_offsets"][0],
            entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
    }


def export(name):
    """Writes NAME.onnx."""
    net, like, outputs = module(name)
    buffer = io.BytesIO()
    torch.onnx.export(
        net,
        tuple(like.values()),
        buffer,
        input_names=list(like),
        output_names=outputs,
        dynamic_axes={key: {0: "batch"} for key in [*like, *outputs]},
        opset_version=17,
        do_constant_folding=False,
        dynamo=False,
    )
    model = onnx.load_from_string(buffer.getvalue())
    weights = HERE / f"{name}.safetensors"
    known = offsets(weights)
    kept, casts = [], []
    for tensor in model.graph.initializer:
        own = tensor.name.removeprefix("net.")
        if own not in known:
            kept.append(tensor)
            continue
        shape, offset, length = known[own]
        half = TensorProto(name=f"{own}.half", data_type=TensorProto.FLOAT16, dims=shape)
        half.data_location = TensorProto.EXTERNAL
        for key, value in {"location": weights.name, "offset": offset, "length": length}.items():
            half.external_data.add(key=key, value=str(value))
        kept.append(half)
        casts.append(helper.make_node("Cast", [half.name], [tensor.name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes)
    (HERE / f"{name}.onnx").write_bytes(model.SerializeToString())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", choices=NAMES)
    for name in parser.parse_args().names:
        export(name)
