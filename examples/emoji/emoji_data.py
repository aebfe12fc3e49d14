"""The pictures that the emoji models are trained on, and the words that describe them.

Pictures of Noto Emoji (Apache-2.0) come with the npm package `emoji-datasource-google` (MIT), which `fetch`
downloads; no picture is kept in the repository. Faces, hearts, animals, plants and food are used: flags and
symbols have names that say little about what is seen, and people and things of all kinds would be too much
for a network of this size. One emoji in twenty, chosen by its name, is held out and never trained on.

An emoji is shown as a sticker: turned by up to 8 degrees, 85 to 100 % of the picture in size, moved by up to
2 of 64 pixels, mirrored where its name allows, on a ground of one pale colour or two. So a prompt has many
pictures, as the prompts of large models have.
"""

import hashlib
import json
import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PACKAGE = "emoji-datasource-google@16.0.0"
FOLDER = Path(__file__).parents[2] / "build" / "emoji"
CATEGORIES = ("Smileys & Emotion", "Animals & Nature", "Food & Drink")
HELD_OUT = 20  # one in so many
NO_EMOJI = (
    "blue apple|green cat|crying tiger|smiling banana|red whale|pink frog|yellow bird face|grinning melon|"
    "orange fish|purple heart face|angry bear|winking fox|cheese hamburger|fire whale|orange flower|"
    "sleeping dog|blue butterfly|green grapes|hot pot|chocolate ice cream|crying monkey|kissing rabbit|"
    "black spider face|star eyes|cold penguin|strawberry cake|lemon tree|cow face with hearts|red bread|"
    "white cherries|brown owl|green heart eyes|sweet potato face|dragon fruit|small blue elephant|"
    "sleepy cat|tea with lemon|spiral shell face|baby horse|rice cookie"
).split("|")
WORDS = 8  # of a prompt that a network sees
GUIDANCE = 3.0  # scale of classifier-free guidance, unless another is asked for
SHIFT = 3.0  # of the flow model's noise levels
NOISE_WORDS = {"with", "of", "and", "in", "the", "on", "a", "an", "for", "to"}
FACING = {"left", "right", "pointing", "anticlockwise", "clockwise"}  # names that a mirror would make wrong


@dataclass(frozen=True)
class Emoji:
    """One emoji: what it is called, what kind of thing it is, and its pictures (skin tones are variants)."""

    name: str
    words: tuple  # of the name
    kind: str  # sub-category, for example "food-fruit"
    images: tuple  # file names

    @property
    def kind_words(self):
        return tuple(words_of(self.kind))

    @property
    def held_out(self):
        return int(hashlib.sha256(self.name.encode()).hexdigest(), 16) % HELD_OUT == 0

    @property
    def mirrors(self):
        return not FACING & set(self.words)


def words_of(text):
    """'Grinning cat, please' -> ['grinning', 'cat', 'please']; small words are dropped."""
    return [word for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in NOISE_WORDS]


def fetch(folder=FOLDER):
    """Downloads the package with npm unless it is there; returns its folder."""
    package = folder / "package"
    if not (package / "emoji.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        name = subprocess.run(
            ["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, capture_output=True, text=True
        ).stdout.split()[-1]
        with tarfile.open(folder / name) as archive:
            wanted = [
                m
                for m in archive.getmembers()
                if m.name.startswith(("package/img/google/64/", "package/emoji.json"))
            ]
            archive.extractall(folder, wanted, filter="data")
        (folder / name).unlink()
    return package


def emojis(package=None):
    """All emoji of the categories above that have a picture, in the order of the package."""
    found = []
    for entry in json.loads(((package or fetch()) / "emoji.json").read_text()):
        if entry["category"] not in CATEGORIES or not entry["has_img_google"]:
            continue
        variants = [v["image"] for v in entry.get("skin_variations", {}).values() if v["has_img_google"]]
        names = entry["name"] + " " + " ".join(entry["short_names"]).replace("_", " ")
        words = tuple(dict.fromkeys(words_of(names)))
        found.append(Emoji(entry["name"].lower(), words, entry["subcategory"], (entry["image"], *variants)))
    return found


def pictures(found, package=None):
    """All images, uint8 [n, 4, 64, 64] (RGB, opacity); where each emoji's begin [len(found) + 1]."""
    from PIL import Image

    folder = (package or fetch()) / "img" / "google" / "64"
    rows, starts = [], [0]
    for emoji in found:
        for name in emoji.images:
            with Image.open(folder / name) as picture:
                rows.append(np.asarray(picture.convert("RGBA")).transpose(2, 0, 1))
        starts.append(len(rows))
    return np.stack(rows), np.array(starts)


def vocabulary(found):
    """The words of the emoji that are trained on, sorted; word 0 is none."""
    words = {word for emoji in found if not emoji.held_out for word in (*emoji.words, *emoji.kind_words)}
    return ["", *sorted(words)]


def write_prompts(folder=Path(__file__).parent):
    """prompts_test.txt: names of held-out emoji with a known word, and things that there are no emoji of.

    prompts_fit.txt: names of the emoji trained on, and half as many mixtures of a word of one and a word of
    another: the network meets both kinds in use.
    """
    found = emojis()
    known = set(vocabulary(found))
    names = [[e.name for e in found if e.held_out == out and known & set(words_of(e.name))] for out in (0, 1)]
    tested = [*names[1], *NO_EMOJI]
    rng = np.random.default_rng(0)
    pairs = (rng.choice(names[0], 2, replace=False) for _ in range(len(names[0]) // 2))
    mixed = {" ".join(str(rng.choice(words_of(name))) for name in pair) for pair in pairs}
    taken = {frozenset(words_of(name)) for name in tested}
    mixed = [text for text in sorted(mixed) if frozenset(text.split()) not in taken]
    for name, prompts in (("fit", [*names[0], *mixed]), ("test", tested)):
        (folder / f"prompts_{name}.txt").write_text("\n".join(prompts) + "\n")


if __name__ == "__main__":
    write_prompts()
