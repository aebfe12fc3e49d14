//! A run leaves no memory of libtorch behind. In a binary of its own, for it looks at the whole process.

#![cfg(target_os = "linux")]

use lmsd::sample::sample;
use lmsd::solver::{Spec, solve};
use lmsd::tensor::{CpuTensor, Dtype, Tensors};
use lmsd::torch::Torch;
use lmsd::torch::tch::{Device, Kind, Tensor};

/// Bytes of this process in memory.
fn resident() -> i64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    4096 * pages.split(' ').nth(1).unwrap().parse::<i64>().unwrap()
}

#[test]
fn ten_thousand_steps_leave_no_memory_behind() {
    let schedule = solve(&Spec { solver: "dpmpp_2m".into(), nfe: 1000, ..Spec::default() }).unwrap();
    for (dtype, kind) in [(Dtype::F32, Kind::Float), (Dtype::Bf16, Kind::BFloat16)] {
        let memory = CpuTensor::zeros(dtype, &[4, 2048]).unwrap();
        let torch = Torch::new(Device::Cpu, kind).unwrap();
        // A weight that could be trained: where gradients are kept, they hold every tensor of the run.
        let weight = Tensor::full([1], 0.5, (kind, Device::Cpu)).set_requires_grad(true);
        // The memory in use at the end of a run, before it is freed.
        let run = || {
            // SAFETY: `memory` lives; nothing else uses it meanwhile.
            let x_t = unsafe { torch.view(memory.descriptor()) }.unwrap();
            let (mut calls, mut last) = (0, 0);
            let end = sample(torch, &schedule, &x_t, |x, _, denoised| {
                *denoised = x.f_mul(&weight)?;
                calls += 1;
                if calls == 1000 {
                    last = resident();
                }
                Ok(())
            })
            .unwrap();
            torch.gram(&[&x_t, &end]).unwrap();
            last
        };
        let start = resident();
        let first = run() - start;
        let more = (0..9).map(|_| run()).max().unwrap() - start - first;
        // A tensor a step would be 32 MB in the first run, and 300 MB more.
        println!("{dtype}: {first} bytes at the end of the first run, {more} more in nine others");
        assert!(first < 16 << 20 && more < 4 << 20, "{dtype}: {first} bytes in the first run, {more} more");
    }
}
