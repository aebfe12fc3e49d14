"""Pictures of schedules, and batches of prompts."""

import lmsd
import pytest
import torch
from fake_comfy import Model, conditioning


def picture(pack, schedule):
    (image,) = pack.run("LmsdReport", schedule=schedule)
    assert image.dtype == torch.float32 and image.ndim == 4 and image.shape[0] == 1 and image.shape[3] == 3
    assert image.min() >= 0 and image.max() == 1  # white paper
    assert (image < 0.5).float().mean() > 0.003, "nothing is drawn"
    return image


@pytest.mark.parametrize("kind", ["edm", "flow"])
def test_a_report_of_a_distilled_schedule(pack, host, kind):
    (schedule,) = pack.run(
        "LmsdDistill",
        model=Model(kind),
        positive=conditioning(0.0),
        negative=conditioning(0.0),
        latent_image={"samples": torch.zeros(1, 4, 2, 2)},
        cfg=1.0,
        name="my model",
        nfe=2,
        trajectories=8,
        batch_size=8,
        compare=True,
    )
    with_gains = picture(pack, schedule)
    file = schedule.to_dict()
    del file["made_by"]["compared"]
    without = picture(pack, lmsd.Schedule.from_json(file))
    assert with_gains.shape == without.shape and not torch.equal(with_gains, without)


RECORDS = {
    "handcrafted": {},
    "no record at all": {"made_by": None, "made_for": None},
    "its own distance only": {"made_by": {"method": "distilled", "distance": 0.1}},
    "a distance and no method": {"made_by": {"distance": 0.1}},
    "a name that is no formula": {"name": "$5 or \\frac{ <b>$ %s"},
}


@pytest.mark.parametrize("changes", RECORDS.values(), ids=RECORDS)
def test_a_report_of_what_a_file_may_leave_out(pack, host, changes):
    file = lmsd.solve("unipc_bh2_3", nfe=5, sigma_end=0.01).to_dict() | changes
    picture(pack, lmsd.Schedule.from_json({k: v for k, v in file.items() if v is not None}))


def test_a_report_of_one_step(pack, host):
    picture(pack, lmsd.solve("euler", nfe=1))


class Clip:
    """A CLIP whose prompts have one chunk of `chunk` tokens for each word."""

    def __init__(self, chunk=4, pooled=True, **extras):
        self.chunk, self.pooled, self.extras = chunk, pooled, extras

    def tokenize(self, text):
        return text.split() or [""]

    def encode_from_tokens_scheduled(self, words):
        rows = [[float(len(word)), float(i)] for i, word in enumerate(words) for _ in range(self.chunk)]
        about = {name: make(words, len(rows)) for name, make in self.extras.items()}
        if self.pooled is not False:
            about["pooled_output"] = torch.full((1, 3), float(len(words))) if self.pooled else None
        return [[torch.tensor([rows]), about]]


def encoded(pack, clip, prompts):
    ((pair,),) = pack.run("LmsdPrompts", clip=clip, prompts=prompts)
    return pair


def test_prompts_become_a_batch(pack, host):
    """Of different lengths: whole repetitions of the tokens, so every cross attention stays what it was."""
    clip = Clip()
    tokens, about = encoded(pack, clip, "a cat\n\n  a  black dog  \nsky\n")
    assert tokens.shape == (3, 4 * 6, 2)
    for row, prompt, times in zip(tokens, ("a cat", "a black dog", "sky"), (3, 2, 6), strict=True):
        ((own, _),) = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
        assert torch.equal(row, own[0].repeat(times, 1))
        query = torch.randn(5, 2)
        attend = torch.nn.functional.scaled_dot_product_attention
        torch.testing.assert_close(attend(query, row, row), attend(query, own[0], own[0]))
    assert about["pooled_output"].tolist() == [[2.0] * 3, [3.0] * 3, [1.0] * 3]


def test_one_prompt_or_none(pack, host):
    for prompts, words in (("a cat", ["a", "cat"]), ("", [""]), ("\n  \n", [""])):
        tokens, about = encoded(pack, Clip(), prompts)
        assert torch.equal(tokens, Clip().encode_from_tokens_scheduled(words)[0][0])
        assert about["pooled_output"].shape == (1, 3)


@pytest.mark.parametrize("pooled", [None, False])
def test_encoders_without_a_pooled_output(pack, host, pooled):
    tokens, about = encoded(pack, Clip(pooled=pooled), "a cat\nsky")
    assert tokens.shape[0] == 2 and about.get("pooled_output") is None


def test_what_an_encoder_says_of_each_prompt_is_batched_too(pack, host):
    """Attention masks repeat with the tokens; numbers are those of all."""

    def mask(words, length):
        return torch.tensor([[1] * (length - 1) + [0]])

    clip = Clip(
        attention_mask=mask, guidance=lambda *_: 3.5, ids=lambda words, _: torch.tensor([[len(words)]])
    )
    tokens, about = encoded(pack, clip, "a cat\nsky")
    assert about["attention_mask"].tolist() == [[1] * 7 + [0], ([1] * 3 + [0]) * 2]
    assert about["attention_mask"].shape == tokens.shape[:2]
    assert about["ids"].tolist() == [[2], [1]] and about["guidance"] == 3.5


def test_prompts_that_cannot_be_one_batch_are_refused(pack, host):
    """A common length would be huge, as of encoders without padding; or other outputs differ in shape."""
    with pytest.raises(ValueError, match="7, 11, 13 tokens.*one batch"):
        encoded(pack, Clip(chunk=1), "\n".join("w " * count for count in (7, 11, 13)))
    clip = Clip(ids=lambda words, _: torch.zeros(1, len(words)))
    with pytest.raises(ValueError, match="ids.*one batch"):
        encoded(pack, clip, "a cat\nsky")


def test_prompts_with_hooks_are_refused(pack, host):
    class Scheduled(Clip):
        def encode_from_tokens_scheduled(self, words):
            return 2 * super().encode_from_tokens_scheduled(words)

    with pytest.raises(ValueError, match="schedule of their own"):
        encoded(pack, Scheduled(), "a cat")
