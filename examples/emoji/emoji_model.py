"""The emoji models, run by onnxruntime; or by torch, on the device that LMSD_EMOJI_DEVICE names."""

import json
import os
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime
from emoji_data import WORDS, words_of

HERE = Path(__file__).parent
DEVICE = os.environ.get("LMSD_EMOJI_DEVICE")  # of torch, such as cuda
SHAPES = {"pixel": (3, 32, 32), "flow": (3, 32, 32), "latent": (4, 16, 16)}
SIGMAS = {"ve": (0.002, 80.0, 0.002), "flow": (0.001, 1.0, 0.0)}  # smallest, largest, end of a run


class Emoji:
    """The model `pixel` (EDM), `flow` (rectified flow) or `latent` (EDM on the latents of an autoencoder)."""

    def __init__(self, name="pixel", threads=0):
        self.name, self.shape, self.process = name, SHAPES[name], "flow" if name == "flow" else "ve"
        self.sigma_min, self.sigma_max, self.sigma_end = SIGMAS[self.process]
        self.threads = threads
        self._run = self._in_torch(DEVICE) if DEVICE else self._in_onnxruntime()
        self.vocabulary = {word: i for i, word in enumerate(metadata(name)["words"]) if i}

    def unknown(self, prompt):
        """The words of a prompt that the model has never seen, which it passes over."""
        return [word for word in words_of(prompt) if word not in self.vocabulary]

    def words(self, prompts):
        """int64 [n, WORDS]: the numbers of the words of each prompt; 0 for none."""
        rows = np.zeros((len(prompts), WORDS), np.int64)
        for row, prompt in zip(rows, prompts, strict=True):
            known = [self.vocabulary[word] for word in words_of(prompt) if word in self.vocabulary][:WORDS]
            row[: len(known)] = known
        return rows

    def denoise(self, x, sigma, words, guidance=1.0):
        """denoised [n, ...] of the states x [n, ...] at level `sigma`, with classifier-free guidance."""
        if guidance == 1:
            return self._network(x, sigma, words)
        both = self._network(np.concatenate([x, x]), sigma, np.concatenate([words, np.zeros_like(words)]))
        told, untold = np.split(both, 2)
        return untold + np.float32(guidance) * (told - untold)

    def _network(self, x, sigma, words):
        x = np.asarray(x, np.float32)
        return self._run(x, np.full(len(x), sigma, np.float32), words)

    def _in_onnxruntime(self):
        run = session(self.name, self.threads).run
        return lambda x, sigma, words: run(None, {"x": x, "sigma": sigma, "words": words})[0]

    def _in_torch(self, device):
        """In single precision: without TF32, as on the CPU."""
        import torch
        from export import denoiser

        torch.backends.cudnn.allow_tf32 = False
        net = denoiser(self.name).to(device)
        return lambda *inputs: net(*(torch.from_numpy(value).to(device) for value in inputs)).cpu().numpy()

    @cached_property
    def _decoder(self):
        return session("autoencoder", self.threads)

    def pictures(self, x):
        """Pictures [n, 3, S, S] in -1..1 of end points x."""
        x = np.asarray(x, np.float32)
        return np.clip(self._decoder.run(None, {"x": x})[0] if self.name == "latent" else x, -1, 1)


def session(name, threads=0):
    """NAME.onnx in onnxruntime; threads: 0 for all cores."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(HERE / f"{name}.onnx", options, providers=["CPUExecutionProvider"])


def metadata(name):
    """What NAME.safetensors says beside its weights: "words" (number 0: none), or "kinds" of emoji."""
    with (HERE / f"{name}.safetensors").open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        said = json.loads(file.read(size))["__metadata__"]
    return {key: json.loads(value) for key, value in said.items()}


def noise(shape, index, size, seed):
    """Standard normal float32 [size, *shape], the same on every machine for one (seed, index)."""
    return (
        np.random.Generator(np.random.PCG64([seed, index])).standard_normal((size, *shape)).astype(np.float32)
    )
