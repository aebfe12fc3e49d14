"""Pipelines for the tests of lmsd.diffusers: the trained digits, and stock ones of small random networks."""

import sys
from pathlib import Path

import lmsd
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[3] / "examples" / "diffusers"))
torch.set_num_threads(1)

from digits_pipeline import betas, digits_pipeline  # noqa: E402, F401

LABELS = [{"class_labels": label} for label in range(10)]
QUICK = {"teacher_nfe": 12, "iterations": 3, "trajectories": 8, "held_out": 8, "batch_size": 8}
STOCK = ("stable_diffusion", "stable_diffusion_3", "flux", "cogview4", "flux2")
SIZE = {"cogview4": 16}  # height and width, else 8


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def table(solver="euler", **options):
    """A published solver's schedule that does not say what range it was made for."""
    file = lmsd.solve(solver, **options).to_dict()
    del file["made_for"]
    return lmsd.Schedule.from_json(file)


def euler_of(scheduler):
    """What an Euler scheduler of diffusers was last set to do, as a schedule."""
    sigmas, process = scheduler.sigmas.double(), "flow" if "shift" in scheduler.config else "ve"
    return table(nfe=len(sigmas) - 1, grid=sigmas.tolist(), process=process, sigma_end=0.0)


def small_unet(channels=4):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=8,
        in_channels=channels,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        norm_num_groups=4,
        attention_head_dim=4,
    )


def small_vae(channels=4):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8,),
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=8,
        shift_factor=0.1,
        scaling_factor=1.5,
    )


def embeds(*shape, prefix=""):
    """Embeddings of a prompt and of a negative one, by default of 3 tokens of width 8."""
    found = torch.randn(2, *(shape or (3, 8)))
    return {f"{prefix}prompt_embeds": found[0], f"negative_{prefix}prompt_embeds": found[1]}


FLUX = {  # what the networks of Flux and Flux 2 have in common
    "patch_size": 1,
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 8,
}


def stable_diffusion(kind="StableDiffusionPipeline", channels=4):
    """(pipeline, its arguments for one image): epsilon, classifier-free guidance."""
    import diffusers
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing="leading",
    )
    absent = dict.fromkeys(["text_encoder", "tokenizer", "safety_checker", "feature_extractor"])
    pipeline = getattr(diffusers, kind)(
        unet=small_unet(channels),
        vae=small_vae(),
        scheduler=scheduler,
        **absent,
        requires_safety_checker=False,
    )
    return pipeline, embeds()


def stable_diffusion_3():
    """The same: flow, static shift, classifier-free guidance."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        out_channels=4,
    )
    names = [f"{kind}{n}" for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")]
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        vae=small_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        **dict.fromkeys(names),
    )
    return pipeline, embeds() | embeds(8, prefix="pooled_")


def flux():
    """The same: flow, shift by image size, guidance as an input of the network, packed latents."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        **FLUX,
        pooled_projection_dim=8,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=True,
    )
    names = [f"{kind}{n}" for kind in ("text_encoder", "tokenizer") for n in ("", "_2")]
    pipeline = FluxPipeline(
        transformer=transformer,
        vae=small_vae(1),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        **dict.fromkeys(names),
    )
    return pipeline, {"prompt_embeds": torch.randn(3, 8), "pooled_prompt_embeds": torch.randn(8)}


def wan(boundary_ratio=0.875):
    """Wan 2.2: flow, static shift, a network for high and one for low noise, video latents."""
    from diffusers import (
        AutoencoderKLWan,
        FlowMatchEulerDiscreteScheduler,
        WanPipeline,
        WanTransformer3DModel,
    )

    def transformer():
        return WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=8,
            freq_dim=16,
            ffn_dim=16,
            num_layers=1,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=32,
        )

    vae = AutoencoderKLWan(
        base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    second = {} if boundary_ratio is None else {"transformer_2": transformer()}
    pipeline = WanPipeline(
        transformer=transformer(),
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        tokenizer=None,
        text_encoder=None,
        boundary_ratio=boundary_ratio,
        **second,
    )
    return pipeline, embeds()


def image_to_image():
    """Stable Diffusion from an image."""
    pipeline, one = stable_diffusion("StableDiffusionImg2ImgPipeline")
    return pipeline, {**one, "image": torch.rand(3, 8, 8)}


def inpainting(channels=9):
    """Stable Diffusion that fills half of an image, which is an input of a network of 9 channels."""
    pipeline, one = stable_diffusion("StableDiffusionInpaintPipeline", channels)
    mask = torch.zeros(1, 8, 8)
    mask[..., 4:] = 1
    return pipeline, {**one, "image": torch.rand(3, 8, 8), "mask_image": mask}


def inpainting_by_blending():
    """The same with a network of 4 channels: the known half is put back after each step."""
    return inpainting(channels=4)


def cogview4():
    """Flow; the pipeline passes timesteps and sigmas, and the linear shift."""
    from diffusers import CogView4Pipeline, CogView4Transformer2DModel, FlowMatchEulerDiscreteScheduler

    transformer = CogView4Transformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=4,
        out_channels=4,
        text_embed_dim=8,
        time_embed_dim=8,
        condition_dim=4,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        base_shift=0.25,
        max_shift=0.75,
        base_image_seq_len=256,
        use_dynamic_shifting=True,
        time_shift_type="linear",
    )
    pipeline = CogView4Pipeline(
        transformer=transformer, vae=small_vae(), scheduler=scheduler, text_encoder=None, tokenizer=None
    )
    return pipeline, embeds()


def flux2():
    """Flow; the pipeline packs the latents that it is given."""
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2Pipeline,
        Flux2Transformer2DModel,
    )

    transformer = Flux2Transformer2DModel(
        **FLUX,
        axes_dims_rope=[4, 4, 4, 4],
    )
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(4,),
        layers_per_block=1,
        latent_channels=1,
        norm_num_groups=1,
        sample_size=8,
    )
    pipeline = Flux2Pipeline(
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        text_encoder=None,
        tokenizer=None,
    )
    return pipeline, {"prompt_embeds": torch.randn(3, 8)}


def dit():
    """Epsilon and a variance; the pipeline keeps its latents twice, and scaled."""
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    transformer = DiTTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=4,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,
        norm_num_groups=4,
    )
    scheduler = DDIMScheduler(clip_sample=False)
    return DiTPipeline(transformer=transformer, vae=small_vae(), scheduler=scheduler), {
        "class_labels": torch.tensor(3)
    }


def stock(name):
    """(pipeline, arguments for one image, arguments for a batch of two) by name; needs transformers."""
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    pipeline, one = globals()[name]()
    for module in pipeline.components.values():
        if isinstance(module, torch.nn.Module):
            module.eval().requires_grad_(False)
    for name, weight in getattr(pipeline, "transformer", torch.nn.Module()).named_parameters():
        if "proj_out" in name or "norm" in name:  # made zero or one: nothing would depend on anything
            torch.nn.init.normal_(weight, std=0.5)
    two = {name: torch.stack([value, 0.5 * value]) for name, value in one.items()}
    return quiet(pipeline), one, two
