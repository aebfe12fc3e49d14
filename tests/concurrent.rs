//! The thread rule of the header, done: any number of threads on one schedule, distillations side by side, cancelling
//! from another thread, handles and texts that change threads. `make test-tsan` runs it under ThreadSanitizer.

mod noise;

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::{from_ref, null, null_mut};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use lmsd::call::{Call, Progress};
use lmsd::tensor::{CpuTensor, Dtype};
use lmsd::{Schedule, Status};
use noise::Noise;

type Model = unsafe extern "C" fn(*mut c_void, *const Call, *const c_void, *mut c_void) -> c_int;

/// `lmsd_problem`.
#[repr(C)]
struct Problem {
    struct_size: usize,
    user_data: *mut c_void,
    like: *const c_void,
    begin: unsafe extern "C" fn(*mut c_void, u64, *mut c_void) -> c_int,
    model: Model,
    progress: unsafe extern "C" fn(*mut c_void, *const Progress) -> c_int,
}

unsafe extern "C" {
    fn lmsd_last_error() -> *const c_char;
    fn lmsd_schedule_solve(options: *const c_char, out: *mut *mut c_void) -> Status;
    fn lmsd_schedule_to_json(schedule: *const c_void, out: *mut *mut c_char) -> Status;
    fn lmsd_schedule_nfe(schedule: *const c_void) -> usize;
    fn lmsd_schedule_free(schedule: *mut c_void);
    fn lmsd_string_free(text: *mut c_char);
    fn lmsd_sample(
        schedule: *const c_void,
        host: *const c_void,
        x_t: *const c_void,
        model: Model,
        observer: *const c_void,
        user_data: *mut c_void,
        out: *const c_void,
    ) -> Status;
    fn lmsd_distill(
        options: *const c_char,
        host: *const c_void,
        problem: *const Problem,
        out: *mut *mut c_void,
    ) -> Status;
    fn lmsd_distilled_schedule(distilled: *const c_void, index: usize, out: *mut *mut c_void) -> Status;
    fn lmsd_distilled_free(distilled: *mut c_void);
}

/// A pointer of the library's that may go from thread to thread.
#[derive(Clone, Copy)]
struct Handle(*mut c_void);
// SAFETY: what the header's rule says, and these tests try.
unsafe impl Send for Handle {}
// SAFETY: likewise.
unsafe impl Sync for Handle {}

impl Handle {
    fn get(self) -> *mut c_void {
        self.0
    }
}

fn solve(options: &CStr) -> Result<Handle, Status> {
    let mut schedule = null_mut();
    // SAFETY: a text that ends with a NUL, and room for a pointer.
    match unsafe { lmsd_schedule_solve(options.as_ptr(), &mut schedule) } {
        Status::Ok => Ok(Handle(schedule)),
        other => Err(other),
    }
}

fn error() -> String {
    // SAFETY: a text of this thread, until its next failing call.
    unsafe { CStr::from_ptr(lmsd_last_error()) }.to_str().unwrap().into()
}

/// x0 has a standard deviation of 0.3 and is mostly at 1 and -1.
fn denoised(x: f64, sigma: f64) -> f64 {
    let all = 0.09 + sigma * sigma;
    0.09 / all * x + (1.0 - 0.09 / all) * (x / all).tanh()
}

/// # Safety
/// The tensors are float32, compact, of one shape.
unsafe extern "C" fn model(_: *mut c_void, call: *const Call, x: *const c_void, out: *mut c_void) -> c_int {
    // SAFETY: as promised: as many elements as the shape says, and a call.
    unsafe {
        let (x, out) = (&*x.cast::<lmsd::tensor::LmsdTensor>(), &*out.cast::<lmsd::tensor::LmsdTensor>());
        let count: i64 = std::slice::from_raw_parts(x.shape, x.ndim as usize).iter().product();
        let sigma = (*call).sigma;
        let x = std::slice::from_raw_parts(x.data.cast::<f32>(), count as usize);
        let out = std::slice::from_raw_parts_mut(out.data.cast::<f32>(), count as usize);
        // All of a small tensor, some of a large one.
        let step = x.len().div_ceil(4096);
        out.fill(0.0);
        for i in (0..x.len()).step_by(step) {
            out[i] = denoised(x[i].into(), sigma) as f32;
        }
    }
    0
}

fn noise(seed: u64, shape: [i64; 2]) -> CpuTensor {
    let some: Vec<f64> = Noise::of(seed).normals(4096).into_iter().map(|n| 80.0 * n).collect();
    let values: Vec<f64> = some.iter().copied().cycle().take((shape[0] * shape[1]) as usize).collect();
    CpuTensor::from_f64(Dtype::F32, &shape, &values).unwrap()
}

const SMALL: [i64; 2] = [4, 6];
/// Combinations of it take threads.
const LARGE: [i64; 2] = [2, 1 << 19];

fn sample(schedule: Handle, seed: u64, shape: [i64; 2]) -> Vec<f64> {
    let (x_t, out) = (noise(seed, shape), CpuTensor::zeros(Dtype::F32, &shape).unwrap());
    let (from, to) = (from_ref(x_t.descriptor()).cast(), from_ref(out.descriptor()).cast());
    // SAFETY: a schedule that lives, built-in tensors of one shape, a model for them.
    let status = unsafe { lmsd_sample(schedule.get(), null(), from, model, null(), null_mut(), to) };
    assert_eq!(status, Status::Ok, "{}", error());
    out.to_f64()
}

/// Counts the calls of a distillation, and ends it where `stop` is set; at call `wait_at` it waits for that.
#[derive(Default)]
struct Watch {
    calls: AtomicUsize,
    stop: AtomicBool,
    wait_at: Option<usize>,
}

/// # Safety
/// `watch` is one.
unsafe extern "C" fn progress(watch: *mut c_void, _: *const Progress) -> c_int {
    // SAFETY: as promised.
    let watch = unsafe { &*watch.cast::<Watch>() };
    let call = watch.calls.fetch_add(1, Ordering::Relaxed);
    while watch.wait_at == Some(call) && !watch.stop.load(Ordering::Relaxed) {
        thread::yield_now();
    }
    watch.stop.load(Ordering::Relaxed).into()
}

/// # Safety
/// `x_t` is a small tensor.
unsafe extern "C" fn begin(_: *mut c_void, batch: u64, x_t: *mut c_void) -> c_int {
    let values = noise(batch + 1, SMALL).to_f64();
    // SAFETY: as promised.
    let x_t = unsafe {
        let data = (*x_t.cast::<lmsd::tensor::LmsdTensor>()).data;
        std::slice::from_raw_parts_mut(data.cast::<f32>(), values.len())
    };
    x_t.iter_mut().zip(values).for_each(|(to, from)| *to = from as f32);
    0
}

/// The nodes of what is distilled, or how it ended.
fn distill(watch: &Watch) -> Result<Vec<f64>, Status> {
    let like = CpuTensor::zeros(Dtype::F32, &SMALL).unwrap();
    let problem = Problem {
        struct_size: size_of::<Problem>(),
        user_data: from_ref(watch).cast_mut().cast(),
        like: from_ref(like.descriptor()).cast(),
        begin,
        model,
        progress,
    };
    let options = c"{\"nfe\": 2, \"trajectories\": 8, \"held_out\": 4, \"teacher_nfe\": 16}";
    let (mut made, mut schedule, mut text) = (null_mut(), null_mut(), null_mut());
    // SAFETY: a problem as `lmsd_problem` says, and room for pointers.
    unsafe {
        let status = lmsd_distill(options.as_ptr(), null(), &problem, &mut made);
        if status != Status::Ok {
            return Err(status);
        }
        assert_eq!(lmsd_distilled_schedule(made, 0, &mut schedule), Status::Ok);
        lmsd_distilled_free(made);
        assert_eq!(lmsd_schedule_to_json(schedule, &mut text), Status::Ok);
        let read = Schedule::from_json(CStr::from_ptr(text).to_str().unwrap()).unwrap();
        lmsd_string_free(text);
        lmsd_schedule_free(schedule);
        Ok(read
            .nodes()
            .iter()
            .flat_map(|node| [&[node.sigma, node.scale], &node.weights[..]].concat())
            .collect())
    }
}

#[test]
fn eight_threads_on_one_schedule_get_what_one_gets() {
    let schedule = solve(c"{\"nfe\": 6}").unwrap();
    let alone: Vec<_> =
        (0..3).map(|seed| (sample(schedule, seed, SMALL), sample(schedule, seed, LARGE))).collect();
    thread::scope(|scope| {
        for number in 0..8u64 {
            let alone = &alone;
            scope.spawn(move || {
                for turn in 0..12 {
                    let seed = (number + turn) % 3;
                    assert!(sample(schedule, seed, SMALL) == alone[seed as usize].0);
                }
                let seed = number % 3;
                assert!(sample(schedule, seed, LARGE) == alone[seed as usize].1);
                // Each thread's error is its own.
                let options = std::ffi::CString::new(format!("{{\"nfe\": {}}}", 2000 + number)).unwrap();
                assert_eq!(solve(&options).err(), Some(Status::InvalidArgument));
                thread::yield_now();
                assert!(error().contains(&format!("nfe is {}", 2000 + number)), "{}", error());
            });
        }
    });
    // SAFETY: of this library, freed once; no thread uses it any more.
    unsafe { lmsd_schedule_free(schedule.get()) }
}

#[test]
fn distillations_side_by_side_are_as_alone_and_one_is_cancelled_by_another_thread() {
    let alone_calls = Watch::default();
    let alone = distill(&alone_calls).unwrap();
    let all = alone_calls.calls.into_inner();
    let schedule = solve(c"{\"nfe\": 5}").unwrap();
    let sampled = sample(schedule, 1, SMALL);
    let cancelled = Watch { wait_at: Some(all / 3), ..Watch::default() };
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(distill(&Watch::default()) == Ok(alone.clone())));
        }
        for _ in 0..3 {
            scope.spawn(|| (0..20).for_each(|_| assert!(sample(schedule, 1, SMALL) == sampled)));
        }
        let ended = scope.spawn(|| distill(&cancelled));
        while cancelled.calls.load(Ordering::Relaxed) <= all / 3 && !ended.is_finished() {
            thread::yield_now();
        }
        cancelled.stop.store(true, Ordering::Relaxed);
        // The best so far, where there is one.
        assert!(matches!(ended.join().unwrap(), Ok(_) | Err(Status::Stopped)));
    });
    assert!(cancelled.calls.into_inner() < all, "it was not ended");
    // SAFETY: of this library, freed once.
    unsafe { lmsd_schedule_free(schedule.get()) }
}

#[test]
fn handles_and_texts_are_freed_on_other_threads() {
    for _ in 0..20 {
        let schedule = thread::spawn(|| solve(c"{\"nfe\": 4}").unwrap()).join().unwrap();
        let text = thread::spawn(move || {
            let mut text = null_mut();
            // SAFETY: a schedule that lives, and room for a pointer.
            assert_eq!(unsafe { lmsd_schedule_to_json(schedule.get(), &mut text) }, Status::Ok);
            Handle(text.cast())
        });
        let text = text.join().unwrap();
        // SAFETY: of this library, each freed once.
        unsafe {
            assert_eq!(lmsd_schedule_nfe(schedule.get()), 4);
            lmsd_schedule_free(schedule.get());
            lmsd_string_free(text.get().cast());
        }
    }
}
