//! The built-in tensors: what they compute, against plain loops in float64, and what they refuse.

use std::mem::{offset_of, size_of};
use std::ptr;

use half::{bf16, f16};
use lmsd::tensor::{Cpu, CpuTensor, Dtype, LmsdDevice, LmsdDtype, LmsdTensor, Tensors};
use lmsd::{Error, Status};
use proptest::prelude::*;

const DTYPES: [Dtype; 4] = [Dtype::F32, Dtype::F64, Dtype::F16, Dtype::Bf16];

/// Numbers between -2 and 2 that look random and are always the same.
fn noise(seed: u64, n: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 51) as f64 - 2.0
    };
    (0..n).map(|_| next()).collect()
}

fn tensor(dtype: Dtype, shape: &[i64], seed: u64) -> CpuTensor {
    let n = shape.iter().product::<i64>() as usize;
    CpuTensor::from_f64(dtype, shape, &noise(seed, n)).unwrap()
}

fn tensors(dtype: Dtype, shape: &[i64], count: usize) -> Vec<CpuTensor> {
    (0..count).map(|i| tensor(dtype, shape, i as u64)).collect()
}

fn combine(factors: &[f64], inputs: &[CpuTensor]) -> CpuTensor {
    let mut out = Cpu.alloc(&inputs[0]).unwrap();
    let terms: Vec<_> = factors.iter().copied().zip(inputs).collect();
    Cpu.lincomb(&mut out, &terms).unwrap();
    out
}

fn gram(columns: &[CpuTensor]) -> Vec<f64> {
    Cpu.gram(&columns.iter().collect::<Vec<_>>()).unwrap()
}

/// Half a unit in the last place, relative, of the dtype and of what it is accumulated in.
fn rounding(dtype: Dtype) -> (f64, f64) {
    match dtype {
        Dtype::F64 => (f64::EPSILON, f64::EPSILON),
        Dtype::F32 => (2f64.powi(-24), 2f64.powi(-24)),
        Dtype::F16 => (2f64.powi(-11), 2f64.powi(-24)),
        Dtype::Bf16 => (2f64.powi(-8), 2f64.powi(-24)),
    }
}

/// Checks a combination, element by element, against float64 and the rounding that its dtype allows.
fn check_lincomb(factors: &[f64], inputs: &[CpuTensor], out: &CpuTensor) -> Result<(), TestCaseError> {
    let (own, wide) = rounding(out.dtype());
    let values: Vec<Vec<f64>> = inputs.iter().map(CpuTensor::to_f64).collect();
    for (e, got) in out.to_f64().into_iter().enumerate() {
        let products = || factors.iter().zip(&values).filter(|(f, _)| **f != 0.0).map(|(f, v)| f * v[e]);
        let (want, size): (f64, f64) = (products().sum(), products().map(f64::abs).sum());
        let allowed = own * want.abs() + (factors.len() + 2) as f64 * wide * size + 2f64.powi(-25);
        prop_assert!((got - want).abs() <= allowed, "{out:?} element {e}: {got}, not {want}");
    }
    Ok(())
}

#[test]
fn the_descriptor_has_the_layout_of_dlpack() {
    assert_eq!((size_of::<LmsdDevice>(), size_of::<LmsdDtype>()), (8, 4));
    assert_eq!(
        (offset_of!(LmsdDtype, code), offset_of!(LmsdDtype, bits), offset_of!(LmsdDtype, lanes)),
        (0, 1, 2)
    );
    assert_eq!((offset_of!(LmsdDevice, device_type), offset_of!(LmsdDevice, device_id)), (0, 4));
    if cfg!(target_pointer_width = "64") {
        assert_eq!(size_of::<LmsdTensor>(), 48);
        assert_eq!(offset_of!(LmsdTensor, data), 0);
        assert_eq!(offset_of!(LmsdTensor, device), 8);
        assert_eq!(offset_of!(LmsdTensor, ndim), 16);
        assert_eq!(offset_of!(LmsdTensor, dtype), 20);
        assert_eq!(offset_of!(LmsdTensor, shape), 24);
        assert_eq!(offset_of!(LmsdTensor, strides), 32);
        assert_eq!(offset_of!(LmsdTensor, byte_offset), 40);
    }
}

#[test]
fn a_tensor_describes_itself_wherever_it_is_moved() {
    fn is_send<T: Send + Sync>(_: &T) {}
    for dtype in DTYPES {
        let boxed = Box::new(vec![CpuTensor::zeros(dtype, &[2, 3, 4]).unwrap()]);
        is_send(&boxed);
        let moved = std::thread::spawn(move || boxed.into_iter().next().unwrap()).join().unwrap();
        let d = moved.descriptor();
        assert_eq!((d.ndim, d.device.device_type, d.byte_offset), (3, 1, 0));
        assert_eq!(Dtype::try_from(d.dtype).unwrap(), dtype);
        assert_eq!(d.data.addr() % 64, 0);
        // SAFETY: valid as long as `moved` lives.
        let (shape, strides) =
            unsafe { (std::slice::from_raw_parts(d.shape, 3), std::slice::from_raw_parts(d.strides, 3)) };
        assert_eq!((shape, strides), (&[2, 3, 4][..], &[12, 4, 1][..]));
        assert_eq!(moved.to_f64(), [0.0; 24]);
    }
}

#[test]
fn lincomb_is_the_sum_of_its_terms() {
    for dtype in DTYPES {
        for n in [1, 2, 63, 64, 65, 127, 1000, 4097] {
            let inputs = tensors(dtype, &[1, n], 9);
            for count in 1..=9 {
                let factors = noise(77, count);
                let out = combine(&factors, &inputs[..count]);
                check_lincomb(&factors, &inputs, &out).unwrap();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 3 } else { 200 }, failure_persistence: None, ..Default::default() })]

    #[test]
    fn lincomb_is_right_for_any_size_and_any_factors(
        dtype in prop::sample::select(&DTYPES[..]),
        shape in prop::collection::vec(1i64..8, 1..5),
        factors in prop::collection::vec(prop_oneof![Just(0.0), -3.0..3.0f64], 1..12),
    ) {
        let inputs = tensors(dtype, &shape, factors.len());
        check_lincomb(&factors, &inputs, &combine(&factors, &inputs))?;
    }
}

/// Threads, writes past the caches and the blocks' ends must not show in the result: a large
/// combination equals the same done piece by piece, bit for bit, also in memory that is only aligned
/// to its elements.
#[test]
#[cfg_attr(miri, ignore = "too large")]
fn a_large_lincomb_equals_small_ones() {
    let factors = [0.3, -1.1, 0.0, 0.7];
    for dtype in DTYPES {
        for n in [3_000_000 / dtype.size(), 9_000_001 / dtype.size()] {
            let inputs = tensors(dtype, &[n as i64], 4);
            let mut out = CpuTensor::zeros(dtype, &[n as i64 + 1]).unwrap();
            let mut shifted = part(&out, 1, n);
            let terms: Vec<_> = factors.iter().copied().zip(&inputs).collect();
            Cpu.lincomb(&mut shifted, &terms).unwrap();

            let mut pieces = Vec::new();
            for start in (0..n).step_by(12_345) {
                let length = 12_345.min(n - start);
                let inputs: Vec<_> = inputs.iter().map(|t| part(t, start, length)).collect();
                pieces.extend(combine(&factors, &inputs).to_f64());
            }
            assert!(shifted.to_f64() == pieces, "{dtype}, {n} elements");
            drop(shifted);
            assert_eq!(out.to_f64()[0], 0.0, "the element before the view is not the view's");
            Cpu.lincomb(&mut out, &[]).unwrap();
            assert!(out.to_f64().iter().all(|&v| v == 0.0));
        }
    }
}

/// A view of some elements of a tensor, which must outlive it.
fn part(tensor: &CpuTensor, start: usize, length: usize) -> CpuTensor {
    let shape = [length as i64];
    let part = LmsdTensor {
        ndim: 1,
        shape: shape.as_ptr(),
        strides: ptr::null(),
        byte_offset: (start * tensor.dtype().size()) as u64,
        ..*tensor.descriptor()
    };
    // SAFETY: within the tensor's memory; the tests use it by one name at a time.
    unsafe { CpuTensor::view(&part) }.unwrap()
}

#[test]
fn a_term_with_factor_zero_is_absent() {
    for dtype in DTYPES {
        let inputs = [tensor(dtype, &[70], 1), CpuTensor::from_f64(dtype, &[70], &[f64::NAN; 70]).unwrap()];
        assert_eq!(combine(&[1.0, 0.0], &inputs).to_f64(), inputs[0].to_f64());
        assert!(combine(&[1.0, 1.0], &inputs).to_f64().iter().all(|v| v.is_nan()));
        assert_eq!(combine(&[0.0, 0.0], &inputs).to_f64(), [0.0; 70]);
        assert_eq!(combine(&[], &inputs).to_f64(), [0.0; 70]);
    }
}

/// Every float16 and every bfloat16 there is, times 1 and times 1/3, rounds as `half` rounds.
#[test]
#[cfg_attr(miri, ignore = "slow")]
fn half_precision_rounds_to_the_nearest() {
    let values = |of: &dyn Fn(u16) -> f64| (0..=u16::MAX).map(of).collect::<Vec<_>>();
    for (dtype, all, round) in [
        (
            Dtype::F16,
            values(&|b| f16::from_bits(b).to_f64()),
            (|v| f16::from_f32(v).to_f64()) as fn(f32) -> f64,
        ),
        (Dtype::Bf16, values(&|b| bf16::from_bits(b).to_f64()), |v| bf16::from_f32(v).to_f64()),
    ] {
        let input = [CpuTensor::from_f64(dtype, &[1 << 16], &all).unwrap()];
        for factor in [1.0, 1.0 / 3.0, 1e4] {
            let got = combine(&[factor], &input).to_f64();
            for (v, got) in all.iter().zip(got) {
                let want = round(factor as f32 * *v as f32);
                assert!(
                    got == want || got.is_nan() && want.is_nan(),
                    "{dtype} {factor} * {v}: {got}, not {want}"
                );
            }
        }
    }
}

#[test]
fn lincomb_refuses_unlike_terms_and_its_own_output() {
    let mut out = tensor(Dtype::F32, &[2, 4], 0);
    let like = tensor(Dtype::F32, &[2, 4], 1);
    for (other, named) in [
        (tensor(Dtype::F64, &[2, 4], 0), "float64 [2, 4]"),
        (tensor(Dtype::F32, &[4, 2], 0), "float32 [4, 2]"),
        (tensor(Dtype::F32, &[2, 4, 1], 0), "float32 [2, 4, 1]"),
    ] {
        let e = Cpu.lincomb(&mut out, &[(1.0, &like), (1.0, &other)]).unwrap_err();
        says(&e, &["term 1", named, "float32 [2, 4]"]);
        let e = Cpu.gram(&[&like, &other]).unwrap_err();
        says(&e, &["column 1", named, "float32 [2, 4]"]);
    }
    let (mut first, second) = (part(&out, 0, 5), part(&out, 4, 4));
    let second = part(&second, 0, 4);
    let e = Cpu.lincomb(&mut first, &[(1.0, &part(&out, 3, 5)), (1.0, &second)]).unwrap_err();
    says(&e, &["term 0 overlaps the output"]);
    let mut first = part(&out, 0, 4);
    Cpu.lincomb(&mut first, &[(2.0, &second)]).unwrap();
    assert_eq!(first.to_f64(), second.to_f64().iter().map(|v| 2.0 * v).collect::<Vec<_>>());
}

#[test]
fn gram_holds_the_inner_products_of_each_trajectory() {
    let long = if cfg!(miri) { 300 } else { 40_001 };
    for dtype in DTYPES {
        for shape in [vec![1], vec![5, 1], vec![3, 65], vec![2, 4, 8, 8], vec![2, 257], vec![2, long]] {
            for k in [1, 2, 3, 4, 10] {
                let columns = tensors(dtype, &shape, k);
                let values: Vec<_> = columns.iter().map(CpuTensor::to_f64).collect();
                let n = values[0].len() / shape[0] as usize;
                let got = gram(&columns);
                assert_eq!(got.len(), shape[0] as usize * k * k);
                for (at, got) in got.iter().enumerate() {
                    let (b, i, j) = (at / (k * k), at / k % k, at % k);
                    let both = values[i].iter().zip(&values[j]).skip(b * n).take(n);
                    let want: f64 = both.map(|(x, y)| x * y).sum();
                    assert!(
                        (got - want).abs() <= 1e-13 * 4.0 * n as f64,
                        "{dtype} {shape:?} {k}: {got}, not {want}"
                    );
                }
            }
        }
    }
    assert!(Cpu.gram(&[]).unwrap().is_empty());
}

#[test]
#[cfg_attr(miri, ignore = "slow")]
fn gram_has_the_same_bits_with_any_number_of_threads() {
    for (shape, k) in [(vec![64, 64], 27), (vec![3, 100_003], 7), (vec![1, 1_200_000], 3)] {
        let columns = tensors(Dtype::F32, &shape, k);
        let bits = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let gram = pool.install(|| gram(&columns));
            for (at, v) in gram.iter().enumerate() {
                let (b, i, j) = (at / (k * k), at / k % k, at % k);
                assert_eq!(v.to_bits(), gram[(b * k + j) * k + i].to_bits(), "not symmetric");
            }
            gram.into_iter().map(f64::to_bits).collect::<Vec<_>>()
        };
        let one = bits(1);
        for threads in [1, 2, 3, 8] {
            assert!(bits(threads) == one, "{shape:?}, {threads} threads");
        }
    }
}

/// A descriptor of the given memory, and what a test then makes wrong in it.
fn describe(data: &mut [f32], shape: &[i64]) -> LmsdTensor {
    LmsdTensor {
        data: data.as_mut_ptr().cast(),
        device: LmsdDevice { device_type: 1, device_id: 0 },
        ndim: shape.len() as i32,
        dtype: LmsdDtype { code: 2, bits: 32, lanes: 1 },
        shape: shape.as_ptr(),
        strides: ptr::null(),
        byte_offset: 0,
    }
}

fn says(error: &Error, words: &[&str]) {
    assert_eq!(error.status, Status::InvalidTensor, "{error}");
    for word in words {
        assert!(error.message.contains(word), "'{error}' does not say '{word}'");
    }
}

#[test]
fn a_view_shares_the_callers_memory() {
    let mut memory: Vec<f32> = (0..13).map(|i| i as f32).collect();
    let shape = [2, 1, 6];
    // A dimension of size 1 may have any stride.
    let strides = [6, -99, 1];
    let mut d = describe(&mut memory, &shape);
    (d.strides, d.byte_offset) = (strides.as_ptr(), 4);
    // SAFETY: 13 numbers, of which 1 to 12; nothing else uses them while a view of them is used.
    let mut view = unsafe { CpuTensor::view(&d) }.unwrap();
    assert_eq!(view.shape(), [2, 1, 6]);
    assert_eq!(view.to_f64(), (1..13).map(f64::from).collect::<Vec<_>>());
    assert_eq!(view.descriptor().data, d.data.wrapping_byte_add(4));

    let ones = CpuTensor::from_f64(Dtype::F32, &shape, &[1.0; 12]).unwrap();
    Cpu.lincomb(&mut view, &[(3.0, &ones)]).unwrap();
    drop(view);
    assert_eq!(memory[0], 0.0);
    assert_eq!(memory[1..], [3.0; 12]);
}

#[test]
fn a_view_refuses_what_it_cannot_read() {
    let mut memory = [0f32; 24];
    let good = describe(&mut memory, &[2, 3, 4]);
    let refused = |words: &[&str], change: &dyn Fn(&mut LmsdTensor)| {
        let mut d = good;
        change(&mut d);
        // SAFETY: what a test makes wrong is refused before it is used.
        says(&unsafe { CpuTensor::view(&d) }.unwrap_err(), words);
    };
    // SAFETY: 24 numbers.
    assert!(unsafe { CpuTensor::view(&good) }.is_ok());

    refused(&["null data"], &|d| d.data = ptr::null_mut());
    refused(&["device of DLPack type 2", "CPU"], &|d| d.device.device_type = 2);
    let supported = ["float16, float32, float64", "bfloat16"];
    refused(&[&["code 0 and 32 bits"], &supported[..]].concat(), &|d| d.dtype.code = 0);
    refused(&[&["code 2 and 8 bits"], &supported[..]].concat(), &|d| d.dtype.bits = 8);
    refused(&["code 4 and 32 bits"], &|d| d.dtype.code = 4);
    refused(&["4 lanes"], &|d| d.dtype.lanes = 4);
    refused(&["0 dimensions", "1 to 32"], &|d| d.ndim = 0);
    refused(&["-1 dimensions"], &|d| d.ndim = -1);
    refused(&["33 dimensions"], &|d| d.ndim = 33);
    refused(&["shape is null"], &|d| d.shape = ptr::null());
    refused(&["dimension 1", "[2, 0, 4]", "is 0"], &|d| d.shape = [2, 0, 4].as_ptr());
    refused(&["dimension 2", "is -4"], &|d| d.shape = [2, 3, -4].as_ptr());
    refused(&["address space"], &|d| d.shape = [i64::MAX, 3, 4].as_ptr());
    refused(&["address space"], &|d| d.shape = [1 << 31, 1 << 30, 1].as_ptr());
    refused(&["byte_offset", "address space"], &|d| d.byte_offset = u64::MAX);
    refused(&["byte_offset", "address space"], &|d| d.byte_offset = u64::MAX - d.data.addr() as u64);
    refused(&["not a multiple of 4", "float32", "aligned copy"], &|d| d.byte_offset = 2);
    refused(&["not a multiple of 4"], &|d| d.data = d.data.wrapping_byte_add(1));
    for strides in [[1, 2, 6], [24, 8, 2], [12, 0, 1], [-12, 4, 1]] {
        refused(&["contiguous", &format!("{strides:?}"), "[12, 4, 1]"], &|d| d.strides = strides.as_ptr());
    }
}

#[test]
#[cfg_attr(miri, ignore = "asks for too much")]
fn a_tensor_that_does_not_fit_is_an_error() {
    let e = CpuTensor::zeros(Dtype::F32, &[1 << 60]).unwrap_err();
    assert_eq!(e.status, Status::OutOfMemory);
    says(&CpuTensor::zeros(Dtype::F32, &[1 << 61]).unwrap_err(), &["address space"]);
    says(&CpuTensor::zeros(Dtype::F32, &[]).unwrap_err(), &["0 dimensions"]);
    says(&CpuTensor::zeros(Dtype::F32, &[0]).unwrap_err(), &["1 or more"]);
    says(&CpuTensor::from_f64(Dtype::F32, &[2], &[1.0; 3]).unwrap_err(), &["3 values", "2 elements"]);
}
