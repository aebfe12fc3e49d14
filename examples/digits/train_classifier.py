"""Train the digit classifier of `classifier.py` on the training split and write `classifier.safetensors`."""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from classifier import Classifier, statistics
from data import split
from safetensors.numpy import save_file
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from train import augmented


class Net(nn.Module):
    """x [B, 1, 8, 8] -> (class scores [B, 10], features [B, 32])."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 24, 3, padding=1)
        self.conv2 = nn.Conv2d(24, 48, 3, padding=1, stride=2)
        self.hidden = nn.Linear(48 * 16, 32)
        self.output = nn.Linear(32, 10)

    def forward(self, x):
        a = F.silu(self.conv2(F.silu(self.conv1(x + 1))))
        features = torch.tanh(self.hidden(F.dropout(a.flatten(1), 0.3, self.training)))
        return self.output(features), features


def main():
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate; cosine decay to 0")
    parser.add_argument(
        "--noise", type=float, default=0.1, help="standard deviation of the pixel noise added"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--out", type=Path, default=here / "classifier.safetensors")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    (x_train, y_train), (x_held, y_held) = split()
    x, y = torch.from_numpy(x_train), torch.from_numpy(y_train)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=args.lr, weight_decay=0.05)
    for step in tqdm(range(args.steps), desc="classifier", disable=args.quiet):
        optimizer.param_groups[0]["lr"] = args.lr * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        index = torch.randint(len(x), (args.batch,))
        images = augmented(x[index], 0.7)[0]
        scores, _ = net(images + args.noise * torch.randn_like(images))
        loss = F.cross_entropy(scores, y[index], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tensors = {name: value.numpy().astype(np.float16) for name, value in net.state_dict().items()}
    empty = {"mean": np.zeros(32, np.float32), "covariance": np.eye(32, dtype=np.float32)}
    save_file(tensors | empty, args.out)
    # the reference statistics are those of the stored network: numpy, rounded weights
    mean, covariance = statistics(Classifier(args.out).features(x_train))
    save_file(
        tensors | {"mean": mean.astype(np.float32), "covariance": covariance.astype(np.float32)}, args.out
    )
    stored = Classifier(args.out)
    for name, images, labels in (("training", x_train, y_train), ("held-out", x_held, y_held)):
        print(f"{name} accuracy {(stored.predict(images) == labels).mean():.4f}")
    print(f"{sum(value.size for value in tensors.values())} parameters, {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
