"""Samples as files: all of the numbers, or a picture of them. Plots as files."""

import struct
import zlib
from pathlib import Path

import numpy as np

import lmsd
from lmsd._files import replacing

from .files import writing


def check(path: str, shape: tuple[int, ...]) -> None:
    """Refuses what `write` could not, before there is work to lose. `shape`: of one sample."""
    suffix = Path(path).suffix
    if suffix not in (".npy", ".png"):
        raise lmsd.Error(f"--out is {path}; it must end in .npy or .png")
    if suffix == ".png" and not (len(shape) == 3 and shape[0] in (1, 3)):
        raise lmsd.Error(
            f"the samples have shape {list(shape)}; a picture needs 1 or 3 channels, height, width; use .npy"
        )
    check_folder(path)


def write(path: str, images: np.ndarray) -> None:
    """`images` [N, ...] float32: .npy as they are; .png a grid of them, with pixels in [-1, 1]."""
    with writing(path), replacing(path) as stream:
        if Path(path).suffix == ".npy":
            np.save(stream, images)
        else:
            stream.write(png(tiled(images)))


def tiled(images: np.ndarray) -> np.ndarray:
    """[N, C, H, W] in [-1, 1] -> uint8 [rows * H, columns * W, C], nearly square, the rest black."""
    count, channels, height, width = images.shape
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    tiles = np.full((rows * columns, channels, height, width), -1.0, np.float32)
    tiles[:count] = images
    grid = tiles.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    pixels = grid.reshape(rows * height, columns * width, channels)
    return np.clip(np.rint((pixels + 1) * 127.5), 0, 255).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, 1 or 3] as a PNG file."""
    height, width, channels = pixels.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)  # 0: a line as it is
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def check_plot(path: str | None) -> None:
    """Refuses a plot that `save_plot` could not write: without matplotlib, or of a kind that it has not."""
    if path is None:
        return
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError:
        raise lmsd.Error("--png needs matplotlib: pip install matplotlib") from None
    suffix = Path(path).suffix.removeprefix(".")
    if suffix not in FigureCanvasAgg.get_supported_filetypes():
        raise lmsd.Error(f"--png is {path}; it must end in .png, .pdf or .svg")
    check_folder(path)


def check_folder(path: str) -> None:
    """Refuses a file in a folder that is not there."""
    if not Path(path).parent.is_dir():
        raise lmsd.Error(f"there is no folder {Path(path).parent} for {Path(path).name}", lmsd.Status.IO)


def save_plot(figure, path: str) -> None:
    """Writes a figure of `lmsd.plots`."""
    with writing(path), replacing(path) as stream:
        figure.savefig(stream, dpi=150, format=Path(path).suffix[1:])
    print(f"picture: {path}")
