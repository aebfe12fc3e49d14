"""Workflows of the digits model in ComfyUI's API format, by node names that tests can refer to."""


def ksampler(
    prediction="edm",
    text="0,1,2,3,4,5,6,7,8,9",
    batch=10,
    steps=8,
    seed=1,
    cfg=3.0,
    sampler="euler",
    scheduler="karras",
    denoise=1.0,
    video=False,
    delay_ms=0,
):
    """Model, prompts, latent, KSampler, decode, save."""
    return base(prediction, text, batch, video, delay_ms) | {
        "sample": node(
            "KSampler",
            model=("model", 0),
            positive=("positive", 0),
            negative=("negative", 0),
            latent_image=("latent", 0),
            seed=seed,
            steps=steps,
            cfg=cfg,
            sampler_name=sampler,
            scheduler=scheduler,
            denoise=denoise,
        )
    }


def custom(*given, **options):
    """The same through CFGGuider and SamplerCustomAdvanced; replace "sampler" and "sigmas" as needed."""
    nodes = ksampler(*given, **options)
    told = nodes["sample"]["inputs"]
    links = {name: told[name] for name in ("model", "positive", "negative")}
    levels = {name: told[name] for name in ("scheduler", "steps", "denoise")}
    return nodes | {
        "guider": node("CFGGuider", cfg=told["cfg"], **links),
        "noise": node("RandomNoise", noise_seed=told["seed"]),
        "sampler": node("KSamplerSelect", sampler_name=told["sampler_name"]),
        "sigmas": node("BasicScheduler", model=("model", 0), **levels),
        "sample": node(
            "SamplerCustomAdvanced",
            noise=("noise", 0),
            guider=("guider", 0),
            sampler=("sampler", 0),
            sigmas=("sigmas", 0),
            latent_image=("latent", 0),
        ),
    }


def base(prediction="edm", text="0,1,2,3,4,5,6,7,8,9", batch=10, video=False, delay_ms=0):
    """Everything but the sampler, which is to be called "sample"."""
    return {
        "model": node("DigitsModel", prediction=prediction, video=video, delay_ms=delay_ms),
        "positive": node("DigitsPrompt", text=text),
        "negative": node("DigitsPrompt", text=""),
        "latent": node("DigitsLatent", batch=batch, video=video),
        "decode": node("DigitsDecode", samples=("sample", 0)),
        "save": node("SaveImage", images=("decode", 0), filename_prefix="digits"),
    }


def node(kind, **inputs):
    """A node; a link is (name of a node, output)."""
    inputs = {name: list(value) if isinstance(value, tuple) else value for name, value in inputs.items()}
    return {"class_type": kind, "inputs": inputs}
