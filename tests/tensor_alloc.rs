//! A small linear combination asks for no memory. In a binary of its own, whose `malloc` counts; glibc alone has another
//! name for its own.
#![cfg(all(target_os = "linux", target_env = "gnu"))]

use std::cell::Cell;
use std::ffi::c_void;

use lmsd::tensor::{Cpu, CpuTensor, Dtype, Tensors};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

unsafe extern "C" {
    fn __libc_malloc(size: usize) -> *mut c_void;
    fn __libc_calloc(count: usize, size: usize) -> *mut c_void;
}

fn count() {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
}

/// # Safety
/// As C has it.
#[unsafe(no_mangle)]
unsafe extern "C" fn malloc(size: usize) -> *mut c_void {
    count();
    // SAFETY: takes any size.
    unsafe { __libc_malloc(size) }
}

/// # Safety
/// As C has it.
#[unsafe(no_mangle)]
unsafe extern "C" fn calloc(count_of: usize, size: usize) -> *mut c_void {
    count();
    // SAFETY: takes any size.
    unsafe { __libc_calloc(count_of, size) }
}

#[test]
fn a_small_lincomb_allocates_nothing() {
    for dtype in [Dtype::F32, Dtype::F64, Dtype::F16, Dtype::Bf16] {
        let before = ALLOCATIONS.get();
        let inputs: Vec<_> = (0..12).map(|_| CpuTensor::zeros(dtype, &[1, 4, 64, 63]).unwrap()).collect();
        assert!(ALLOCATIONS.get() >= before + 24, "nothing is counted");
        let terms: Vec<_> = inputs.iter().map(|t| (0.5, t)).collect();
        let mut out = Cpu.alloc(&inputs[0]).unwrap();
        for count in 0..=terms.len() {
            let before = ALLOCATIONS.get();
            Cpu.lincomb(&mut out, &terms[..count]).unwrap();
            assert_eq!(ALLOCATIONS.get(), before, "{dtype}, {count} terms");
        }
    }
}
