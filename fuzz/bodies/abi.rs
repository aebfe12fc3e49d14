//! include/lmsd.h by hand, as a host in C sees it: plain numbers and pointers, which Rust's types would not let be wrong.
//! A test compares the names with the header.

use std::ffi::{c_char, c_int, c_void};

use lmsd::Status;
use lmsd::call::{Call, Progress};
use lmsd::host::LmsdHost;

#[repr(C)]
pub struct Schedule([u8; 0]);
#[repr(C)]
pub struct Sampler([u8; 0]);
#[repr(C)]
pub struct Distilled([u8; 0]);

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Node {
    pub struct_size: usize,
    pub sigma: f64,
    pub scale: f64,
    pub weights: *const f64,
    pub weight_count: usize,
    pub guidance: f64,
}

#[repr(C)]
pub struct Step {
    pub struct_size: usize,
    pub index: usize,
    pub nfe: usize,
    pub sigma: f64,
    pub model_sigma: f64,
    pub x: *const c_void,
    pub denoised: *const c_void,
}

pub type Model = unsafe extern "C" fn(*mut c_void, *const Call, *const c_void, *mut c_void) -> c_int;
pub type Observer = unsafe extern "C" fn(*mut c_void, *const Step) -> c_int;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Problem {
    pub struct_size: usize,
    pub user_data: *mut c_void,
    pub like: *const c_void,
    pub begin: Option<unsafe extern "C" fn(*mut c_void, u64, *mut c_void) -> c_int>,
    pub model: Option<Model>,
    pub progress: Option<unsafe extern "C" fn(*mut c_void, *const Progress) -> c_int>,
    pub rank: usize,
    pub ranks: usize,
    pub sum: Option<unsafe extern "C" fn(*mut c_void, usize, *mut f64) -> c_int>,
    pub error: Option<unsafe extern "C" fn(*mut c_void, *mut *const c_char) -> c_int>,
    pub features: Option<unsafe extern "C" fn(*mut c_void, *const c_void, *mut *mut c_void) -> c_int>,
}

pub const OK: i32 = 0;
pub const STOPPED: i32 = 5;
pub const WRONG_STATE: i32 = 8;
/// A fault of the library: no input may bring it about.
pub const INTERNAL: i32 = 10;

macro_rules! exports {
    ($(fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)?;)+) => {
        unsafe extern "C" { $(pub fn $name($($arg: $type),*) $(-> $out)?;)+ }
        #[allow(dead_code)] // for the test of this list
        pub const NAMES: &[&str] = &[$(stringify!($name)),+];
    };
}

exports! {
    fn lmsd_abi_version() -> u32;
    fn lmsd_version() -> *const c_char;
    fn lmsd_last_error() -> *const c_char;
    fn lmsd_string_free(text: *mut c_char);
    fn lmsd_schedule_solve(options: *const c_char, out: *mut *mut Schedule) -> Status;
    fn lmsd_schedule_from_json(json: *const u8, length: usize, out: *mut *mut Schedule) -> Status;
    fn lmsd_schedule_load(path: *const c_char, out: *mut *mut Schedule) -> Status;
    fn lmsd_schedule_save(schedule: *const Schedule, path: *const c_char) -> Status;
    fn lmsd_schedule_to_json(schedule: *const Schedule, out: *mut *mut c_char) -> Status;
    fn lmsd_schedule_nfe(schedule: *const Schedule) -> usize;
    fn lmsd_schedule_sigma_start(schedule: *const Schedule) -> f64;
    fn lmsd_schedule_sigma_end(schedule: *const Schedule) -> f64;
    fn lmsd_schedule_node(schedule: *const Schedule, index: usize, out: *mut Node) -> Status;
    fn lmsd_schedule_start_at(schedule: *const Schedule, sigma: f64, out: *mut *mut Schedule) -> Status;
    fn lmsd_schedule_check(schedule: *const Schedule, host: *const c_char) -> Status;
    fn lmsd_schedule_is_guided(schedule: *const Schedule) -> c_int;
    fn lmsd_schedule_free(schedule: *mut Schedule);
    fn lmsd_solvers(out: *mut *mut c_char) -> Status;
    fn lmsd_options(out: *mut *mut c_char) -> Status;
    fn lmsd_rivals(options: *const c_char, out: *mut *mut c_char) -> Status;
    fn lmsd_torch_host(library: *const c_char, out: *mut *const LmsdHost) -> Status;
    fn lmsd_lincomb(
        host: *const LmsdHost, count: usize, factors: *const f64, terms: *const *const c_void, out: *mut c_void,
    ) -> Status;
    fn lmsd_gram(
        host: *const LmsdHost, count: usize, columns: *const *const c_void, length: usize, out: *mut f64,
    ) -> Status;
    fn lmsd_sample(
        schedule: *const Schedule, host: *const LmsdHost, x_t: *const c_void, model: Option<Model>,
        observer: Option<Observer>, user_data: *mut c_void, out: *mut c_void,
    ) -> Status;
    fn lmsd_sampler_new(
        schedule: *const Schedule, host: *const LmsdHost, x_t: *const c_void, out: *mut *mut Sampler,
    ) -> Status;
    fn lmsd_sampler_copy(sampler: *const Sampler, out: *mut *mut Sampler) -> Status;
    fn lmsd_sampler_index(sampler: *const Sampler) -> usize;
    fn lmsd_sampler_next(sampler: *const Sampler, sigma: *mut f64, x: *mut c_void) -> Status;
    fn lmsd_sampler_step(sampler: *mut Sampler, denoised: *const c_void) -> Status;
    fn lmsd_sampler_set_state(sampler: *mut Sampler, x: *const c_void) -> Status;
    fn lmsd_sampler_result(sampler: *const Sampler, out: *mut c_void) -> Status;
    fn lmsd_sampler_free(sampler: *mut Sampler);
    fn lmsd_distill(
        options: *const c_char, host: *const LmsdHost, problem: *const Problem, out: *mut *mut Distilled,
    ) -> Status;
    fn lmsd_distilled_count(distilled: *const Distilled) -> usize;
    fn lmsd_distilled_schedule(distilled: *const Distilled, index: usize, out: *mut *mut Schedule) -> Status;
    fn lmsd_distilled_report(distilled: *const Distilled, out: *mut *mut c_char) -> Status;
    fn lmsd_distilled_free(distilled: *mut Distilled);
    fn lmsd_compare(
        options: *const c_char, host: *const LmsdHost, problem: *const Problem, count: usize,
        schedules: *const *const Schedule, distances: *mut f64,
    ) -> Status;
}
