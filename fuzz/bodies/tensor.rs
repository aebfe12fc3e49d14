//! Descriptors of tensors: any numbers in them, over a real buffer. The library takes exactly those that describe compact
//! memory of a kind it knows, and reads and writes nothing beside it.

use std::ffi::c_void;
use std::ptr;

use arbitrary::Unstructured;
use lmsd::tensor::{LmsdDevice, LmsdDtype, LmsdTensor};

use super::abi::*;
use super::toy::{Owned, Toy, get, model, out, own_sampler, own_schedule, seen, set};

/// Of the buffer, in bytes.
const ROOM: usize = 256;
/// What stands in it where no tensor is.
const MARK: u8 = 0x3c;

/// As long as they are said to be; no Box, whose address may not be kept where it is moved.
struct Described {
    tensor: LmsdTensor,
    shape: Vec<i64>,
    strides: Option<Vec<i64>>,
    buffer: Vec<u64>,
}

fn size(u: &mut Unstructured) -> i64 {
    const ODD: [i64; 8] = [0, -1, i64::MAX, i64::MIN, 1 << 32, 1 << 62, (1 << 61) + 1, 3037000500];
    match u.arbitrary::<u8>().unwrap_or_default() {
        byte @ 0..200 => i64::from(byte % 6),
        byte @ 200..248 => ODD[usize::from(byte) % ODD.len()],
        _ => u.arbitrary().unwrap_or_default(),
    }
}

fn described(u: &mut Unstructured) -> Described {
    let mut byte = || u.arbitrary::<u8>().unwrap_or_default();
    let ndim = match byte() {
        b @ 0..200 => i32::from(b % 5),
        b @ 200..240 => i32::from(b) - 208,
        b => [-1, i32::MIN, i32::MAX, 33, 32, 31][usize::from(b) % 6],
    };
    let (code, bits, lanes) = match byte() {
        b @ 0..220 => [(2, 16, 1), (2, 32, 1), (2, 64, 1), (4, 16, 1)][usize::from(b) % 4],
        b => (b % 6, [8, 16, 32, 64, 0, 128][usize::from(byte()) % 6], u16::from(byte() % 3)),
    };
    let device_type = if byte() < 240 { 1 } else { i32::from(byte()) - 2 };
    let offset = match byte() {
        b @ 0..220 => u64::from(b % 8) * 4,
        b @ 220..240 => u64::from(b),
        b => [u64::MAX, 1 << 63, u64::MAX - 7, 1 << 48][usize::from(b) % 4],
    };
    let (no_data, no_shape, with_strides) = (byte() == 255, byte() == 255, byte() % 2 == 0);
    let entries = if (0..=32).contains(&ndim) { ndim as usize } else { 0 };
    let shape: Vec<i64> = (0..entries).map(|_| size(u)).collect();
    let strides: Option<Vec<i64>> = with_strides.then(|| {
        let mut strides = vec![1i64; entries];
        for d in (1..entries).rev() {
            strides[d - 1] = strides[d].wrapping_mul(shape[d]);
        }
        if u.arbitrary::<u8>().unwrap_or_default() > 160 && entries > 0 {
            let at = u.arbitrary::<u8>().unwrap_or_default() as usize % entries;
            strides[at] = size(u);
        }
        strides
    });
    let mut buffer = vec![u64::from_ne_bytes([MARK; 8]); ROOM / 8];
    let tensor = LmsdTensor {
        data: if no_data { ptr::null_mut() } else { buffer.as_mut_ptr().cast() },
        device: LmsdDevice { device_type, device_id: 0 },
        ndim,
        dtype: LmsdDtype { code, bits, lanes },
        shape: if no_shape { ptr::null() } else { shape.as_ptr() },
        strides: strides.as_ref().map_or(ptr::null(), |strides| strides.as_ptr()),
        byte_offset: offset,
    };
    Described { tensor, shape, strides, buffer }
}

impl Described {
    /// Where in the buffer it lies, if the library should take it; Err if it would lie beyond, which no host may say.
    fn place(&self) -> Result<Option<(usize, usize)>, ()> {
        let t = &self.tensor;
        let kind = matches!((t.dtype.code, t.dtype.bits), (2, 16 | 32 | 64) | (4, 16)) && t.dtype.lanes == 1;
        let null = t.data.is_null() || t.shape.is_null();
        if !kind || null || t.device.device_type != 1 || !(1..=32).contains(&t.ndim) {
            return Ok(None);
        }
        if self.shape.iter().any(|n| *n < 1) {
            return Ok(None);
        }
        let width = i128::from(t.dtype.bits / 8);
        let product = self.shape.iter().try_fold(width, |total, n| total.checked_mul(i128::from(*n)));
        let Some(bytes) = product.filter(|bytes| *bytes <= isize::MAX as i128) else { return Ok(None) };
        if let Some(strides) = &self.strides {
            let mut next = 1i128;
            for (n, stride) in self.shape.iter().zip(strides.iter()).rev() {
                if *n != 1 && i128::from(*stride) != next {
                    return Ok(None);
                }
                next *= i128::from(*n);
            }
        }
        let end = t.data.addr() as i128 + i128::from(t.byte_offset) + bytes;
        let first = t.data.addr() as i128 + i128::from(t.byte_offset);
        if end > usize::MAX as i128 || first % width != 0 {
            return Ok(None);
        }
        if i128::from(t.byte_offset) + bytes > ROOM as i128 {
            return Err(());
        }
        Ok(Some((t.byte_offset as usize, bytes as usize)))
    }

    fn pointer(&mut self) -> *mut c_void {
        ptr::from_mut(&mut self.tensor).cast()
    }

    /// Its memory, with `byte_offset` 0.
    fn plain(&self, (offset, _): (usize, usize)) -> LmsdTensor {
        LmsdTensor { data: self.tensor.data.wrapping_byte_add(offset), byte_offset: 0, ..self.tensor }
    }

    /// Nothing was written beside it.
    fn clean(&self, place: Option<(usize, usize)>) -> bool {
        let bytes: Vec<u8> = self.buffer.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let (from, length) = place.unwrap_or_default();
        bytes.iter().enumerate().all(|(i, byte)| (from..from + length).contains(&i) || *byte == MARK)
    }
}

/// One tensor alone: every call that takes one takes it or refuses it, whatever the call.
fn alone(input: &mut Described, place: Option<(usize, usize)>) {
    let x = input.pointer();
    let mut factor = 2.0;
    let twin_memory = vec![0u64; ROOM / 8 + 1];
    let memory = twin_memory.as_ptr().cast_mut().cast();
    let mut twin = LmsdTensor { data: memory, byte_offset: 0, ..input.tensor };
    if place.is_none() {
        twin.strides = ptr::null();
    }
    let to = ptr::from_mut(&mut twin).cast::<c_void>();
    let taken = seen(unsafe { lmsd_lincomb(ptr::null(), 1, &factor, [x.cast_const()].as_ptr(), to) }) == OK;
    assert_eq!(taken, place.is_some(), "{:?} {:?} {:?}", input.tensor, input.shape, input.strides);
    if let Some(place) = place {
        let (twice, once) = (get(&twin), get(&input.plain(place)));
        assert!(twice.iter().zip(&once).all(|(a, b)| *a == 2.0 * b), "{twice:?} {once:?}");
        factor = 0.0;
        assert_eq!(
            seen(unsafe { lmsd_lincomb(ptr::null(), 1, &factor, [x.cast_const()].as_ptr(), x) }),
            3,
            "overlap"
        );
    }
    let batch = if place.is_some() { input.shape[0] as usize } else { 1 };
    let mut gram = vec![-1.0; batch];
    let found = unsafe { lmsd_gram(ptr::null(), 1, [x.cast_const()].as_ptr(), batch, gram.as_mut_ptr()) };
    assert_eq!(seen(found) == OK, place.is_some());
    assert!(gram.iter().all(|g| if taken { *g >= 0.0 } else { *g == -1.0 }));
}

/// Sampling in place, and step by step.
fn sampled(input: &mut Described, place: Option<(usize, usize)>) {
    thread_local! {
        static SCHEDULE: Owned<Schedule> = {
            let made = out(|made| unsafe { lmsd_schedule_solve(c"{\"nfe\": 3}".as_ptr(), made) });
            own_schedule(made.expect("these options are fine"))
        };
    }
    SCHEDULE.with(|schedule| sampled_with(schedule, input, place));
}

fn sampled_with(schedule: &Owned<Schedule>, input: &mut Described, place: Option<(usize, usize)>) {
    let x = input.pointer();
    if let Some(place) = place {
        let plain = input.plain(place);
        set(&plain, &vec![1.0; get(&plain).len()]);
    }
    let toy = Toy::new(false, 80.0, 0);
    let made = out(|made| unsafe { lmsd_sampler_new(schedule.0, ptr::null(), x, made) }).map(own_sampler);
    assert_eq!(made.is_ok(), place.is_some());
    if let Ok(sampler) = made {
        let mut sigma = 0.0;
        assert_eq!(seen(unsafe { lmsd_sampler_next(sampler.0, &mut sigma, x) }), OK);
        assert_eq!(seen(unsafe { lmsd_sampler_step(sampler.0, x) }), OK);
        assert_eq!(seen(unsafe { lmsd_sampler_result(sampler.0, x) }), OK);
    }
    let run = unsafe { lmsd_sample(schedule.0, ptr::null(), x, Some(model), None, toy.data(), x) };
    assert_eq!(seen(run) == OK, place.is_some());
}

/// The bytes describe two tensors.
pub fn tensor(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let (mut first, mut second) = (described(&mut u), described(&mut u));
    let (Ok(place), Ok(other)) = (first.place(), second.place()) else { return };
    alone(&mut first, place);
    sampled(&mut first, place);
    assert!(first.clean(place));
    // One combined with the other, and both in one inner product.
    let (x, to) = (first.pointer(), second.pointer());
    let alike = place.is_some()
        && other.is_some()
        && (first.tensor.dtype, &first.shape) == (second.tensor.dtype, &second.shape);
    let combined =
        unsafe { lmsd_lincomb(ptr::null(), 2, [1.0, 0.5].as_ptr(), [x.cast_const(); 2].as_ptr(), to) };
    assert_eq!(seen(combined) == OK, alike);
    let batch = if alike { first.shape[0] as usize } else { 1 };
    let mut gram = vec![-1.0; 4 * batch];
    let both = [x.cast_const(), to.cast_const()];
    let found = unsafe { lmsd_gram(ptr::null(), 2, both.as_ptr(), gram.len(), gram.as_mut_ptr()) };
    assert_eq!(seen(found) == OK, alike);
    assert!(first.clean(place) && second.clean(other));
}
