//! A small linear combination asks for no memory. In a binary of its own, for its allocator counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use lmsd::tensor::{Cpu, CpuTensor, Dtype, Tensors};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: the system's allocator, counted; counting asks for no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as promised to this function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as promised to this function.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn a_small_lincomb_allocates_nothing() {
    for dtype in [Dtype::F32, Dtype::F64, Dtype::F16, Dtype::Bf16] {
        let inputs: Vec<_> = (0..12).map(|_| CpuTensor::zeros(dtype, &[1, 4, 64, 63]).unwrap()).collect();
        let terms: Vec<_> = inputs.iter().map(|t| (0.5, t)).collect();
        let mut out = Cpu.alloc(&inputs[0]).unwrap();
        for count in 0..=terms.len() {
            let before = ALLOCATIONS.get();
            Cpu.lincomb(&mut out, &terms[..count]).unwrap();
            assert_eq!(ALLOCATIONS.get(), before, "{dtype}, {count} terms");
        }
    }
}
