//! A host in small: tensors of its own or the library's, a model of one line, and failures on request.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;

use lmsd::Status;
use lmsd::call::{Call, Progress};
use lmsd::host::LmsdHost;
use lmsd::tensor::{LmsdDevice, LmsdDtype, LmsdTensor};

use super::abi::{self, *};

/// Checks a status, and that a failure has a sentence.
#[track_caller]
pub fn seen(status: Status) -> i32 {
    let status = status as i32;
    assert!((OK..INTERNAL).contains(&status), "status {status}: {}", last_error());
    assert!(status == OK || !last_error().is_empty(), "status {status} without a sentence");
    status
}

pub fn last_error() -> String {
    unsafe { CStr::from_ptr(lmsd_last_error()) }.to_string_lossy().into_owned()
}

/// The text that the library wrote, freed.
pub fn take_text(text: *mut c_char) -> String {
    let copy = unsafe { CStr::from_ptr(text) }.to_str().expect("the library writes UTF-8").to_string();
    unsafe { lmsd_string_free(text) };
    copy
}

/// Up to the first NUL.
pub fn c_text(bytes: &[u8]) -> CString {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    CString::new(&bytes[..end]).unwrap()
}

/// What is freed when it goes out of scope, or NULL.
pub struct Owned<T>(pub *mut T, unsafe extern "C" fn(*mut T));

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        unsafe { (self.1)(self.0) }
    }
}

pub fn own_schedule(made: *mut Schedule) -> Owned<Schedule> {
    Owned(made, lmsd_schedule_free)
}

pub fn own_sampler(made: *mut Sampler) -> Owned<Sampler> {
    Owned(made, lmsd_sampler_free)
}

pub fn own_distilled(made: *mut Distilled) -> Owned<Distilled> {
    Owned(made, lmsd_distilled_free)
}

/// What an export writes to its `out`: checks that it is written on success and untouched on failure.
#[track_caller]
pub fn out<T>(call: impl FnOnce(*mut *mut T) -> Status) -> Result<*mut T, i32> {
    let untouched = ptr::dangling_mut::<[u64; 2]>().cast::<T>();
    let mut made = untouched;
    match seen(call(&mut made)) {
        OK => {
            assert!(!made.is_null() && made != untouched, "success without a result");
            Ok(made)
        }
        status => {
            assert!(made == untouched, "status {status}, but the output was written");
            Err(status)
        }
    }
}

pub fn read(text: &[u8]) -> Result<Owned<Schedule>, i32> {
    out(|made| unsafe { lmsd_schedule_from_json(text.as_ptr(), text.len(), made) }).map(own_schedule)
}

pub fn write(schedule: &Owned<Schedule>) -> String {
    let text = out(|made| unsafe { lmsd_schedule_to_json(schedule.0, made) });
    take_text(text.expect("a schedule can always be written"))
}

/// The numbers of a schedule, as the ABI gives them, by their bits.
fn numbers(schedule: &Owned<Schedule>) -> Vec<u64> {
    let ends = unsafe { [lmsd_schedule_sigma_start(schedule.0), lmsd_schedule_sigma_end(schedule.0)] };
    let mut all: Vec<f64> = ends.into();
    for index in 0..unsafe { lmsd_schedule_nfe(schedule.0) } {
        let (struct_size, weights) = (size_of::<Node>(), ptr::null());
        let mut node =
            Node { struct_size, sigma: 0.0, scale: 0.0, weights, weight_count: 0, guidance: f64::NAN };
        assert_eq!(seen(unsafe { lmsd_schedule_node(schedule.0, index, &mut node) }), OK);
        all.extend([node.sigma, node.scale, node.guidance]);
        all.extend(unsafe { std::slice::from_raw_parts(node.weights, node.weight_count) });
    }
    all.into_iter().map(f64::to_bits).collect()
}

/// Whatever the library writes it reads, to the same. What is longer than a file may be it refuses.
pub fn round_trip(schedule: &Owned<Schedule>) {
    let text = write(schedule);
    if text.len() as u64 > lmsd::schedule::MAX_FILE_BYTES {
        return;
    }
    let again = read(text.as_bytes()).unwrap_or_else(|_| panic!("{}: {text}", last_error()));
    assert_eq!(numbers(&again), numbers(schedule), "{text}");
    assert_eq!(write(&again), text);
}

/// One failure of a callback.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Fault {
    None,
    Stop(c_int),
    Value(f64),
    /// Calls the library from within.
    Reenter,
}

/// What callbacks are given as their user data.
pub struct Toy {
    /// Whether tensors are a host's own.
    pub own_tensors: bool,
    pub sigma_max: f64,
    /// Fails at call `fault_at` of the model, of `begin`, of the observer or of the host's tensors.
    pub fault: Cell<Fault>,
    pub fault_at: Cell<usize>,
    pub count: Cell<usize>,
    /// Model calls after which `progress` asks to stop.
    pub patience: usize,
    /// Tensors of the host's that are there.
    pub live: Cell<isize>,
    features: RefCell<Option<Box<Tensor>>>,
}

impl Toy {
    pub fn new(own_tensors: bool, sigma_max: f64, patience: usize) -> Self {
        let (fault, fault_at, count, live) =
            (Cell::new(Fault::None), Cell::new(0), Cell::new(0), Cell::new(0));
        Self { own_tensors, sigma_max, fault, fault_at, count, patience, live, features: RefCell::new(None) }
    }

    pub fn data(&self) -> *mut c_void {
        ptr::from_ref(self).cast_mut().cast()
    }

    /// The failure that is due now.
    fn due(&self) -> Fault {
        let at = self.count.replace(self.count.get() + 1);
        if at == self.fault_at.get() { self.fault.get() } else { Fault::None }
    }

    fn stop(&self) -> c_int {
        match self.due() {
            Fault::Stop(code) => code,
            Fault::Reenter => {
                reenter();
                0
            }
            _ => 0,
        }
    }

    pub fn host(&self) -> LmsdHost {
        LmsdHost {
            struct_size: size_of::<LmsdHost>(),
            user_data: self.data(),
            alloc: Some(alloc),
            release: Some(release),
            lincomb: Some(lincomb),
            gram: Some(gram),
            batch: Some(batch),
            error: None,
            alloc_many: None,
            elements: Some(elements),
            not_finite: Some(not_finite),
        }
    }

    pub fn problem(&self, like: &Tensor) -> Problem {
        Problem {
            struct_size: size_of::<Problem>(),
            user_data: self.data(),
            like: like.pointer(self.own_tensors),
            begin: Some(begin),
            model: Some(model),
            progress: Some(progress),
            rank: 0,
            ranks: 1,
            sum: None,
            error: None,
            features: None,
        }
    }
}

/// From within a callback: what every host may do.
fn reenter() {
    let schedule = out(|made| unsafe { lmsd_schedule_solve(c"{\"nfe\": 2}".as_ptr(), made) });
    let schedule = own_schedule(schedule.expect("these options are fine"));
    let toy = Toy::new(false, 80.0, 0);
    let x = Tensor::new(2, &[1, 2], 80.0, 7);
    let to = Tensor::new(2, &[1, 2], 0.0, 7);
    let x_t = x.pointer(false);
    let status = unsafe {
        lmsd_sample(schedule.0, ptr::null(), x_t, Some(model), None, toy.data(), to.pointer(false).cast_mut())
    };
    assert_eq!(seen(status), OK);
    assert_eq!(seen(unsafe { lmsd_schedule_from_json(c"{".as_ptr().cast(), 1, &mut ptr::null_mut()) }), 2);
}

const DTYPES: [(u8, u8); 4] = [(2, 16), (2, 32), (2, 64), (4, 16)];

/// A tensor of either kind: the library's descriptor, and a host's own, which is this struct.
#[repr(C)]
pub struct Tensor {
    descriptor: LmsdTensor,
    pub shape: Vec<i64>,
    pub dtype: (u8, u8),
    /// 8 bytes an element, whatever the dtype.
    bytes: Vec<u64>,
}

impl Tensor {
    /// `kind`: 0 float16, 1 float32, 2 float64, 3 bfloat16. Normal noise times `sigma`.
    pub fn new(kind: usize, shape: &[i64], sigma: f64, seed: u64) -> Box<Self> {
        let dtype = DTYPES[kind % DTYPES.len()];
        let elements = shape.iter().product::<i64>() as usize;
        let descriptor = LmsdTensor {
            data: ptr::null_mut(),
            device: LmsdDevice { device_type: 1, device_id: 0 },
            ndim: shape.len() as i32,
            dtype: LmsdDtype { code: dtype.0, bits: dtype.1, lanes: 1 },
            shape: ptr::null(),
            strides: ptr::null(),
            byte_offset: 0,
        };
        let mut tensor =
            Box::new(Self { descriptor, shape: shape.to_vec(), dtype, bytes: vec![0; elements] });
        tensor.descriptor.shape = tensor.shape.as_ptr();
        tensor.descriptor.data = tensor.bytes.as_mut_ptr().cast();
        let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let values: Vec<f64> = (0..elements).map(|_| sigma * normal(&mut state)).collect();
        set(&tensor.descriptor, &values);
        tensor
    }

    pub fn like(&self) -> Box<Self> {
        let kind = DTYPES.iter().position(|dtype| *dtype == self.dtype).unwrap();
        Self::new(kind, &self.shape, 0.0, 0)
    }

    /// As a call takes it.
    pub fn pointer(&self, own: bool) -> *const c_void {
        if own { ptr::from_ref(self).cast() } else { ptr::from_ref(&self.descriptor).cast() }
    }

    pub fn values(&self) -> Vec<f64> {
        get(&self.descriptor)
    }
}

fn uniform(state: &mut u64) -> f64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 11) as f64 / (1u64 << 53) as f64
}

fn normal(state: &mut u64) -> f64 {
    let radius = (-2.0 * (1.0 - uniform(state)).ln()).sqrt();
    radius * (std::f64::consts::TAU * uniform(state)).cos()
}

fn count(of: &LmsdTensor) -> usize {
    unsafe { std::slice::from_raw_parts(of.shape, of.ndim as usize) }.iter().product::<i64>() as usize
}

pub fn get(of: &LmsdTensor) -> Vec<f64> {
    let at = |i: usize| unsafe {
        match (of.dtype.code, of.dtype.bits) {
            (2, 64) => *of.data.cast::<f64>().add(i),
            (2, 32) => f64::from(*of.data.cast::<f32>().add(i)),
            (2, 16) => (*of.data.cast::<half::f16>().add(i)).to_f64(),
            _ => (*of.data.cast::<half::bf16>().add(i)).to_f64(),
        }
    };
    (0..count(of)).map(at).collect()
}

pub fn set(of: &LmsdTensor, values: &[f64]) {
    for (i, value) in values.iter().enumerate() {
        unsafe {
            match (of.dtype.code, of.dtype.bits) {
                (2, 64) => *of.data.cast::<f64>().add(i) = *value,
                (2, 32) => *of.data.cast::<f32>().add(i) = *value as f32,
                (2, 16) => *of.data.cast::<half::f16>().add(i) = half::f16::from_f64(*value),
                _ => *of.data.cast::<half::bf16>().add(i) = half::bf16::from_f64(*value),
            }
        }
    }
}

unsafe fn toy<'a>(user_data: *mut c_void) -> &'a Toy {
    unsafe { &*user_data.cast::<Toy>() }
}

/// What a callback was given: the descriptor is a host tensor's first field.
unsafe fn described<'a>(tensor: *const c_void) -> &'a LmsdTensor {
    unsafe { &*tensor.cast::<LmsdTensor>() }
}

/// E[x0 | x] for data at -1 and 1 with standard deviation 0.3.
pub fn denoise(x: f64, sigma: f64) -> f64 {
    let (own, noise) = (0.09, sigma * sigma);
    (own * x + noise * (x / (own + noise)).tanh()) / (own + noise)
}

pub unsafe extern "C" fn model(
    data: *mut c_void,
    call: *const Call,
    x: *const c_void,
    to: *mut c_void,
) -> c_int {
    let (toy, call) = unsafe { (toy(data), &*call) };
    assert!(call.struct_size == size_of::<Call>() && call.sigma > 0.0 && call.sigma.is_finite());
    assert!(call.node < call.nfe.max(1));
    let (x, to) = unsafe { (described(x), described(to)) };
    let mut values: Vec<f64> = get(x).into_iter().map(|x| denoise(x, call.sigma)).collect();
    match toy.due() {
        Fault::Stop(code) => return code,
        Fault::Value(value) => values[0] = value,
        Fault::Reenter => reenter(),
        Fault::None => {}
    }
    set(to, &values);
    0
}

pub unsafe extern "C" fn observer(data: *mut c_void, step: *const abi::Step) -> c_int {
    let step = unsafe { &*step };
    assert!(step.struct_size == size_of::<abi::Step>() && step.index < step.nfe && step.sigma > 0.0);
    assert!(!step.x.is_null() && !step.denoised.is_null() && step.model_sigma > 0.0);
    unsafe { toy(data) }.stop()
}

unsafe extern "C" fn begin(data: *mut c_void, batch: u64, x_t: *mut c_void) -> c_int {
    let toy = unsafe { toy(data) };
    let x_t = unsafe { described(x_t) };
    let mut state = batch.wrapping_add(3).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let values: Vec<f64> = (0..count(x_t)).map(|_| toy.sigma_max * normal(&mut state)).collect();
    set(x_t, &values);
    toy.stop()
}

unsafe extern "C" fn progress(data: *mut c_void, progress: *const Progress) -> c_int {
    let progress = unsafe { &*progress };
    assert_eq!(progress.struct_size, size_of::<Progress>());
    c_int::from(progress.calls as usize >= unsafe { toy(data) }.patience)
}

/// The batch, squared.
pub unsafe extern "C" fn features(data: *mut c_void, x: *const c_void, to: *mut *mut c_void) -> c_int {
    let toy = unsafe { toy(data) };
    let code = toy.stop();
    if code != 0 {
        return code; // before anything is made: it would not be taken
    }
    let of = unsafe { described(x) };
    let shape = unsafe { std::slice::from_raw_parts(of.shape, of.ndim as usize) };
    let made = Tensor::new(2, shape, 0.0, 0);
    set(&made.descriptor, &get(of).iter().map(|v| v * v).collect::<Vec<_>>());
    if toy.own_tensors {
        toy.live.set(toy.live.get() + 1);
        unsafe { *to = Box::into_raw(made).cast() };
    } else {
        unsafe { *to = made.pointer(false).cast_mut() };
        *toy.features.borrow_mut() = Some(made);
    }
    0
}

unsafe extern "C" fn alloc(data: *mut c_void, like: *const c_void, to: *mut *mut c_void) -> c_int {
    let toy = unsafe { toy(data) };
    if let Fault::Stop(code) = toy.due() {
        return code;
    }
    toy.live.set(toy.live.get() + 1);
    let like = unsafe { &*like.cast::<Tensor>() };
    unsafe { *to = Box::into_raw(like.like()).cast() };
    0
}

unsafe extern "C" fn release(data: *mut c_void, tensor: *mut c_void) {
    let toy = unsafe { toy(data) };
    toy.live.set(toy.live.get() - 1);
    drop(unsafe { Box::from_raw(tensor.cast::<Tensor>()) });
}

unsafe extern "C" fn lincomb(
    data: *mut c_void,
    to: *mut c_void,
    count: usize,
    factors: *const f64,
    terms: *const *const c_void,
) -> c_int {
    assert!(count > 0);
    let to = unsafe { described(to) };
    let mut sum = vec![0.0; self::count(to)];
    for i in 0..count {
        let (factor, term) = unsafe { (*factors.add(i), described(*terms.add(i))) };
        assert!(!ptr::eq(term, to), "an input is the output");
        if factor != 0.0 {
            sum.iter_mut().zip(get(term)).for_each(|(sum, value)| *sum += factor * value);
        }
    }
    set(to, &sum);
    unsafe { toy(data) }.stop()
}

unsafe extern "C" fn gram(
    data: *mut c_void,
    count: usize,
    columns: *const *const c_void,
    to: *mut f64,
) -> c_int {
    let columns: Vec<_> = (0..count).map(|i| unsafe { described(*columns.add(i)) }).collect();
    let rows = unsafe { *columns[0].shape } as usize;
    let values: Vec<Vec<f64>> = columns.iter().map(|column| get(column)).collect();
    let each = values[0].len() / rows;
    for b in 0..rows {
        let part = |i: usize| &values[i][b * each..(b + 1) * each];
        for i in 0..count {
            for j in 0..count {
                let product = part(i).iter().zip(part(j)).map(|(x, y)| x * y).sum();
                unsafe { *to.add((b * count + i) * count + j) = product };
            }
        }
    }
    unsafe { toy(data) }.stop()
}

unsafe extern "C" fn batch(_: *mut c_void, tensor: *const c_void) -> usize {
    unsafe { *described(tensor).shape as usize }
}

unsafe extern "C" fn elements(_: *mut c_void, tensor: *const c_void) -> usize {
    count(unsafe { described(tensor) })
}

unsafe extern "C" fn not_finite(data: *mut c_void, tensor: *const c_void, trajectory: *mut usize) -> c_int {
    let tensor = unsafe { described(tensor) };
    let (values, rows) = (get(tensor), unsafe { *tensor.shape } as usize);
    let found = values.iter().position(|value| !value.is_finite());
    unsafe { *trajectory = found.map_or(rows, |at| at / (values.len() / rows)) };
    unsafe { toy(data) }.stop()
}
