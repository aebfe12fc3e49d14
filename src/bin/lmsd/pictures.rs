//! Samples as files: all of the numbers, or a picture of them.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use lmsd::torch::tch::{Kind, Tensor};
use lmsd::{Error, Result, Status};

/// Refuses what [`write`] could not, before there is work to lose.
pub fn check(path: &Path, shape: &[i64]) -> Result<()> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("npy") => Ok(()),
        Some("png") if matches!(shape, [1 | 3, _, _]) => Ok(()),
        Some("png") => Err(Error::argument(format!(
            "the samples have shape {shape:?}; a picture needs 1 or 3 channels, height, width; use .npy"
        ))),
        _ => Err(Error::argument(format!("--out is {}; it must end in .npy or .png", path.display()))),
    }
}

/// `images` [N, ...]: .npy as they are; .png a grid of pixels in [-1, 1].
pub fn write(path: &Path, images: &Tensor) -> Result<()> {
    if path.extension().is_some_and(|e| e == "npy") {
        return images
            .f_contiguous()?
            .write_npy(path)
            .map_err(|e| Error::new(Status::Io, format!("{}: {}", path.display(), Error::from(e).message)));
    }
    let size = images.size();
    let (n, channels, height, width) = (size[0], size[1], size[2], size[3]);
    let columns = (n as f64).sqrt().ceil() as i64;
    let rows = (n + columns - 1) / columns;
    let blank =
        Tensor::f_full([rows * columns - n, channels, height, width], -1.0, (Kind::Float, images.device()))?;
    let grid = Tensor::f_cat(&[images, &blank], 0)?
        .f_reshape([rows, columns, channels, height, width])?
        .f_permute([0, 3, 1, 4, 2])?
        .f_add_scalar(1.0)?
        .f_mul_scalar(127.5)?
        .f_round()?
        .f_clamp(0.0, 255.0)?
        .f_to_kind(Kind::Uint8)?
        .f_contiguous()?;
    let mut pixels = vec![0u8; grid.numel()];
    let length = pixels.len();
    grid.f_copy_data(&mut pixels, length)?;

    let io = |e: String| Error::new(Status::Io, format!("{}: {e}", path.display()));
    let file = BufWriter::new(File::create(path).map_err(|e| io(e.to_string()))?);
    let mut encoder = png::Encoder::new(file, (columns * width) as u32, (rows * height) as u32);
    encoder.set_color(if channels == 1 { png::ColorType::Grayscale } else { png::ColorType::Rgb });
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(|e| io(e.to_string()))?;
    writer.write_image_data(&pixels).map_err(|e| io(e.to_string()))
}
