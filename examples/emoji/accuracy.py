"""How often the classifier names the kind of a real picture: of emoji that it was trained on, in new poses,
and of emoji that it has never seen.

    python accuracy.py
"""

import torch
from judge import Judge
from stickers import Stickers

PICTURES = 1000


def main():
    judge = Judge()
    for held_out, words in ((False, "trained on, in new poses"), (True, "never seen")):
        torch.manual_seed(1)
        stickers = Stickers(held_out)
        which = stickers.draw(PICTURES)
        named = judge.kinds(stickers.picture(which, 32).numpy())
        right = sum(stickers.emojis[i].kind == kind for i, kind in zip(which.tolist(), named, strict=True))
        print(f"{len(stickers.emojis)} emoji {words}: {right / PICTURES:.1%} of {PICTURES} pictures")


if __name__ == "__main__":
    main()
