"""What is published of Stable Diffusion 1.5 under this protocol, to set beside a run of the same settings."""

# PSNR to the teacher in dB, by network calls
STABLE_DIFFUSION = {
    "multistep DPM": {5: 20.6, 8: 23.2, 10: 25.1, 12: 26.8},
    "the best learned solver": {5: 20.8, 8: 23.4, 10: 25.3, 12: 26.7},
}
SOURCE = (
    "published for Stable Diffusion 1.5, guidance 3, a 40-step multistep DPM teacher, captions of its own; "
    "as collected in this project's plan of the comparison"
)
GUIDANCE, STEPS, SIZE, WIDTH = 3.0, 40, 64, 768


def lines(pipe, guidance: float, steps: int, size: tuple[int | None, int | None]) -> list[str]:
    """The published points in words, where the settings are theirs; else nothing."""
    if not matches(pipe, guidance, steps, size):
        return []
    found = []
    for name, points in STABLE_DIFFUSION.items():
        figures = ", ".join(f"{points[nfe]:.1f} dB at {nfe}" for nfe in points)
        found.append(f"published, {name}: {figures} calls")
    return [*found, f"({SOURCE})"]


def matches(pipe, guidance: float, steps: int, size: tuple[int | None, int | None]) -> bool:
    """Whether this is a network of the kind of Stable Diffusion 1.5, at 512x512 and with the settings."""
    unet = getattr(getattr(pipe, "unet", None), "config", {})
    kind = (
        type(pipe).__name__ == "StableDiffusionPipeline"
        and unet.get("cross_attention_dim") == WIDTH
        and unet.get("sample_size") == SIZE
        and pipe.scheduler.config.get("prediction_type", "epsilon") == "epsilon"
    )
    return kind and guidance == GUIDANCE and steps == STEPS and set(size) <= {None, 8 * SIZE}
