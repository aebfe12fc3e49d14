"""How often the classifier names the kind of a picture: of emoji that it was trained on, in new poses; of
emoji that it has never seen; and of what each model draws where it is asked for the name of an emoji.

    python accuracy.py
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "digits"))

import lmsd
import numpy as np
import torch
from common import teacher
from emoji_data import GUIDANCE
from emoji_model import SHAPES, noise
from emoji_problem import problem
from judge import Judge
from stickers import Stickers

PICTURES = 1000
ASKED = 3  # one emoji in so many is drawn
CALLS, BATCH = 100, 16


def drawn(name, emojis):
    """Pictures of a teacher of CALLS calls, by the model of that name."""
    own = problem(name, size=BATCH)
    schedule = teacher(own, CALLS)
    for first in range(0, len(emojis), BATCH):
        words = own.emoji.words([emoji.name for emoji in emojis[first : first + BATCH]])
        x = noise(own.emoji.shape, first, len(words), 9) * np.float32(own.sigma_max)

        def model(x, sigma, words=words):
            return own.emoji.denoise(x, sigma, words, GUIDANCE)

        yield from own.emoji.pictures(lmsd.sample(schedule, x, model))


def main():
    judge = Judge()
    for held_out, words in ((False, "trained on, in new poses"), (True, "never seen")):
        torch.manual_seed(1)
        stickers = Stickers(held_out)
        which = stickers.draw(PICTURES)
        named = judge.kinds(stickers.picture(which, 32).numpy())
        right = sum(stickers.emojis[i].kind == kind for i, kind in zip(which.tolist(), named, strict=True))
        print(f"{len(stickers.emojis)} emoji {words}: {right / PICTURES:.1%} of {PICTURES} pictures")
    asked = Stickers().emojis[::ASKED]
    for name in SHAPES:
        named = judge.kinds(np.stack(list(drawn(name, asked))))
        right = sum(emoji.kind == kind for emoji, kind in zip(asked, named, strict=True))
        print(f"{name}: {right} of {len(asked)} names at guidance {GUIDANCE:g}, teacher of {CALLS} calls")


if __name__ == "__main__":
    main()
