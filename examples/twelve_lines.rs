//! A published solver's schedule, an analytic model, four samples.

use lmsd::sample::sample;
use lmsd::solver::{Spec, solve};
use lmsd::tensor::{Cpu, CpuTensor, Dtype, Tensors};

fn main() -> lmsd::Result<()> {
    let schedule = solve(&Spec { solver: "dpmpp_2m".into(), nfe: 8, ..Spec::default() })?;
    // Noise of standard deviation 80.
    let x_t = CpuTensor::from_f64(Dtype::F32, &[4, 1], &[-60.0, -20.0, 20.0, 60.0])?;
    let mean = CpuTensor::from_f64(Dtype::F32, &[4, 1], &[1.0; 4])?;
    // The exact prediction of x0 where x0 is 1, with a standard deviation of 0.5.
    let x = sample(Cpu, &schedule, &x_t, |x, sigma, denoised| {
        let variance = 0.25 + sigma * sigma;
        Cpu.lincomb(denoised, &[(0.25 / variance, x), (sigma * sigma / variance, &mean)])
    })?;
    println!("{:.4?}", x.to_f64());
    Ok(())
}
