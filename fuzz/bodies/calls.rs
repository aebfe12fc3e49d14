//! Sequences of calls over the whole C ABI, in any order, with NULL, sizes of structs that were never one, and callbacks
//! that stop, write what is not finite, or call the library themselves. What a call promises is checked after it: no
//! fault of the library, outputs untouched on failure, nothing left behind.

use std::ffi::{CStr, c_void};
use std::path::PathBuf;
use std::ptr;
use std::sync::OnceLock;

use arbitrary::Unstructured;
use lmsd::host::LmsdHost;

use super::abi::*;
use super::rarely;
use super::readers::schedules;
use super::toy::*;

/// Calls in one sequence at most: what is longer finds no more, and takes longer.
const MOST_CALLS: usize = 24;
/// Handles of each kind that live at once.
const SLOTS: usize = 3;

const SOLVES: [&CStr; 10] = [
    c"{}",
    c"{\"nfe\": 2}",
    c"{\"nfe\": 3, \"solver\": \"heun\"}",
    c"{\"nfe\": 4, \"solver\": \"unipc_bh2_3\", \"sigma_end\": 0.1}",
    c"{\"nfe\": 3, \"process\": \"flow\", \"solver\": \"euler\"}",
    c"{\"nfe\": 5, \"sigma_start\": 90, \"afs\": true, \"solver\": \"deis_3\"}",
    c"{\"nfe\": 2, \"grid\": {\"kind\": \"list\", \"sigmas\": [9, 3, 0]}}",
    c"{\"nfe\": 0}",
    c"{\"solver\": \"none\"}",
    c"[1, 2]",
];
const DISTILLS: [&CStr; 6] = [
    c"{\"nfe\": 1, \"trajectories\": 2, \"held_out\": 2, \"teacher_nfe\": 4, \"max_calls\": 60}",
    c"{\"nfe\": 2, \"nfe_from\": 1, \"trajectories\": 2, \"held_out\": 2, \"teacher_nfe\": 6, \"iterations\": 1}",
    c"{\"nfe\": 2, \"objective\": \"trajectory\", \"trajectories\": 2, \"held_out\": 2, \"teacher_nfe\": 6, \"max_calls\": 90}",
    c"{\"nfe\": 1, \"feature_weight\": 0.5, \"trajectories\": 2, \"held_out\": 2, \"teacher_nfe\": 4, \"max_calls\": 60}",
    c"{\"nfe\": 51}",
    c"{\"max_calls\": 0}",
];
const HOSTS: [&CStr; 5] = [
    c"{}",
    c"{\"process\": \"flow\"}",
    c"{\"sigma_max\": 80, \"latent_shape\": [4, 64, 64]}",
    c"{\"unknown\": 1}",
    c"\"\"",
];
const RIVALS: [&CStr; 3] = [
    c"{\"nfe\": 1, \"field\": \"published\"}",
    c"{\"nfe\": 2, \"field\": \"published\", \"process\": \"flow\"}",
    c"{\"nfe\": 101}",
];

/// Where schedules are saved: this process's own folder.
fn folder() -> &'static PathBuf {
    static FOLDER: OnceLock<(PathBuf, tempfile::TempDir)> = OnceLock::new();
    let (path, _) = FOLDER.get_or_init(|| {
        let shared = PathBuf::from("/dev/shm"); // in memory
        let folder =
            if shared.is_dir() { tempfile::tempdir_in(shared) } else { tempfile::tempdir() }.unwrap();
        (folder.path().into(), folder)
    });
    path
}

/// A struct and what may lie behind it, readable for any size that the library reads.
#[repr(C)]
struct Padded<T> {
    value: T,
    rest: [u64; 520],
}

/// The handles that there are, and the bytes that say what is done with them.
struct Play<'a> {
    bytes: Unstructured<'a>,
    toy: &'a Toy,
    schedules: [Option<Owned<Schedule>>; SLOTS],
    /// With a tensor of the shape of theirs.
    samplers: [Option<(Owned<Sampler>, Box<Tensor>)>; SLOTS],
    distilled: [Option<Owned<Distilled>>; 2],
}

impl Play<'_> {
    fn byte(&mut self) -> usize {
        usize::from(self.bytes.arbitrary::<u8>().unwrap_or_default())
    }

    fn pick(&mut self, count: usize) -> usize {
        self.byte() % count
    }

    /// One in sixteen.
    fn rarely(&mut self) -> bool {
        self.byte() >= 240
    }

    fn text(&mut self, of: &[&'static CStr]) -> *const std::ffi::c_char {
        if self.rarely() { ptr::null() } else { of[self.pick(of.len())].as_ptr() }
    }

    /// A schedule or NULL.
    fn schedule(&mut self) -> *mut Schedule {
        let slot = self.pick(SLOTS);
        self.schedules[slot].as_ref().map_or(ptr::null_mut(), |owned| owned.0)
    }

    fn keep(&mut self, made: Result<*mut Schedule, i32>) {
        if let Ok(made) = made {
            let made = own_schedule(made);
            round_trip(&made);
            let slot = self.pick(SLOTS);
            self.schedules[slot] = Some(made);
        }
    }

    /// A struct as the library may get it: mostly of its own size.
    fn sized<T>(&mut self, value: T) -> Box<Padded<T>> {
        let mut padded = Box::new(Padded { value, rest: [0; 520] });
        let own = size_of::<T>();
        if self.rarely() {
            let sizes = [0, 1, 8, own - 8, own - 1, own + 8, own + 1, 4096, 4097, usize::MAX];
            let size = sizes[self.pick(sizes.len())];
            padded.rest[0] = self.byte() as u64 % 2;
            unsafe { ptr::from_mut(&mut padded.value).cast::<usize>().write(size) };
        }
        padded
    }

    /// A host's own tensors, or the library's.
    fn host(&mut self) -> Box<Padded<LmsdHost>> {
        let mut host = self.toy.host();
        if self.rarely() {
            match self.pick(4) {
                0 => host.alloc = None,
                1 => host.gram = None,
                2 => host.not_finite = None,
                _ => host.elements = None,
            }
        }
        self.sized(host)
    }

    fn host_or_null(&self, host: &Padded<LmsdHost>) -> *const LmsdHost {
        if self.toy.own_tensors { &host.value } else { ptr::null() }
    }

    /// The tensors that go with the host.
    fn tensor(&mut self) -> Box<Tensor> {
        const SHAPES: [&[i64]; 5] = [&[2, 3], &[1, 1], &[2, 3], &[3, 2, 2], &[1, 17]];
        let (kind, shape, seed) = (2 + self.pick(8) / 5, SHAPES[self.pick(5)], self.pick(4));
        Tensor::new(kind, shape, 80.0, seed as u64)
    }

    fn pointer(&mut self, tensor: &Tensor) -> *mut c_void {
        if self.rarely() { ptr::null_mut() } else { tensor.pointer(self.toy.own_tensors).cast_mut() }
    }

    /// What goes wrong in the next call, and when.
    fn fault(&mut self, within: usize) {
        let fault = match self.pick(8) {
            0 => Fault::Stop(7),
            1 => Fault::Stop(-1),
            2 => Fault::Value([f64::NAN, f64::INFINITY, -f64::INFINITY, 1e300][self.pick(4)]),
            3 => Fault::Reenter,
            _ => Fault::None,
        };
        let at = if self.pick(2) == 0 { self.pick(3) } else { self.pick(within) };
        self.toy.fault.set(fault);
        self.toy.fault_at.set(at);
        self.toy.count.set(0);
    }
}

impl Play<'_> {
    fn make(&mut self) {
        match self.pick(4) {
            0 | 1 => {
                let options = self.text(&SOLVES);
                let made = out(|made| unsafe { lmsd_schedule_solve(options, made) });
                self.keep(made);
            }
            2 => {
                let (from, sigma) = (self.schedule(), [80.0, 10.0, 1.0, 1e-3, f64::NAN, -1.0][self.pick(6)]);
                let made = out(|made| unsafe { lmsd_schedule_start_at(from, sigma, made) });
                self.keep(made);
            }
            _ => self.read_spoilt(),
        }
    }

    /// The text of a schedule, with one byte changed.
    fn read_spoilt(&mut self) {
        let from = self.schedule();
        let Ok(text) = out(|made| unsafe { lmsd_schedule_to_json(from, made) }) else { return };
        let mut text = take_text(text).into_bytes();
        let at = (self.byte() << 8 | self.byte()) % text.len();
        if self.pick(2) == 0 {
            text[at] = self.byte() as u8;
        }
        let made = if self.rarely() {
            out(|made| unsafe { lmsd_schedule_from_json(ptr::null(), 3, made) })
        } else {
            out(|made| unsafe { lmsd_schedule_from_json(text.as_ptr(), text.len(), made) })
        };
        self.keep(made);
    }

    fn look(&mut self) {
        let schedule = self.schedule();
        let nfe = unsafe { lmsd_schedule_nfe(schedule) };
        let sigmas = unsafe { (lmsd_schedule_sigma_start(schedule), lmsd_schedule_sigma_end(schedule)) };
        assert_eq!(nfe == 0, schedule.is_null());
        assert!(unsafe { lmsd_schedule_is_guided(schedule) } == 0 || !schedule.is_null());
        assert_eq!(schedule.is_null(), sigmas.0.is_nan() && sigmas.1.is_nan());
        let index = if self.rarely() { usize::MAX } else { self.pick(6) };
        let node = Node {
            struct_size: size_of::<Node>(),
            sigma: -1.0,
            scale: 0.0,
            weights: ptr::null(),
            weight_count: 0,
            guidance: f64::NAN,
        };
        let mut node = self.sized(node);
        let to = if self.rarely() { ptr::null_mut() } else { &mut node.value };
        let status = seen(unsafe { lmsd_schedule_node(schedule, index, to) });
        assert_eq!(status == OK, node.value.sigma != -1.0);
        let host = self.text(&HOSTS);
        seen(unsafe { lmsd_schedule_check(schedule, host) });
    }

    fn files(&mut self) {
        let (schedule, place) = (self.schedule(), self.pick(5));
        let name = ["a.json", "b.json", "", "no/such/folder.json", "a.json/"][place];
        let path = c_text(folder().join(name).to_str().unwrap().as_bytes());
        let path = if self.rarely() { ptr::null() } else { path.as_ptr() };
        let saved = seen(unsafe { lmsd_schedule_save(schedule, path) }) == OK;
        let loaded = out(|made| unsafe { lmsd_schedule_load(path, made) }).map(own_schedule);
        assert!(!saved || loaded.is_ok(), "what was saved cannot be loaded: {}", last_error());
        if let (true, Ok(loaded)) = (saved, loaded) {
            let text = out(|made| unsafe { lmsd_schedule_to_json(schedule, made) }).map(take_text);
            assert_eq!(text, Ok(write(&loaded)));
        }
    }

    /// Texts of the library itself.
    fn texts(&mut self) {
        let given = match self.pick(64) {
            0 => out(|made| unsafe { lmsd_solvers(made) }),
            1 => out(|made| unsafe { lmsd_options(made) }),
            2 => {
                let options = self.text(&RIVALS);
                out(|made| unsafe { lmsd_rivals(options, made) })
            }
            _ => Err(0),
        };
        if let Ok(text) = given {
            serde_json::from_str::<serde_json::Value>(&take_text(text)).expect("JSON");
        }
        assert_eq!(unsafe { lmsd_abi_version() }, 2);
        let version = unsafe { CStr::from_ptr(lmsd_version()) };
        assert_eq!(version.to_str(), Ok(env!("CARGO_PKG_VERSION")));
        let library = self.text(&[c"/no/such/library.so", c"liblmsd_torch_2_11.so"]);
        let mut host = ptr::null();
        // Miri has no loader.
        if !cfg!(miri) {
            let status = seen(unsafe { lmsd_torch_host(library, &mut host) });
            assert!(status == WRONG_STATE && host.is_null(), "this process has no libtorch");
        }
        for status in [unsafe { lmsd_solvers(ptr::null_mut()) }, unsafe { lmsd_options(ptr::null_mut()) }] {
            assert_eq!(seen(status), 1);
        }
        unsafe { lmsd_string_free(ptr::null_mut()) };
    }

    fn operations(&mut self) {
        let host = self.host();
        self.fault(2);
        let (x, y, to) = (self.tensor(), self.tensor(), self.tensor());
        // A host's own tensors are all of one shape, by its promise.
        let (y, to) = if self.toy.own_tensors || self.pick(4) > 0 { (x.like(), x.like()) } else { (y, to) };
        let terms = [self.pointer(&x).cast_const(), self.pointer(&y).cast_const()];
        let to = self.pointer(&to);
        let mut count = self.pick(3);
        if self.rarely() {
            count = usize::MAX;
        }
        // A host's tensors may not be NULL in a list: the library refuses that.
        let host = self.host_or_null(&host);
        let factors = [f64::NAN, 0.0, 1.0, -2.5].map(|factor| if self.rarely() { factor } else { 1.0 });
        seen(unsafe { lmsd_lincomb(host, count, factors.as_ptr(), terms.as_ptr(), to) });
        let batch = x.shape[0] as usize;
        let length = if self.rarely() { self.pick(9) } else { batch * count.min(2) * count.min(2) };
        let mut gram = vec![0.0; length.max(4 * batch)];
        seen(unsafe { lmsd_gram(host, count, terms.as_ptr(), length, gram.as_mut_ptr()) });
        seen(unsafe { lmsd_gram(host, 1, ptr::null(), length, gram.as_mut_ptr()) });
    }
}

impl Play<'_> {
    /// The library's loop; and the host's own, which ends in the same place.
    fn sample(&mut self) {
        let (host, x) = (self.host(), self.tensor());
        let (schedule, to) = (self.schedule(), x.like());
        self.fault(12);
        let host = self.host_or_null(&host);
        let model = if self.rarely() { None } else { Some(model as Model) };
        let observer = if self.pick(2) == 0 { None } else { Some(observer as Observer) };
        let in_place = self.pick(3) == 0;
        let x_t = self.pointer(&x);
        let end = if in_place { x_t } else { self.pointer(&to) };
        let (before, untouched) = (x.values(), to.values());
        let data = self.toy.data();
        let status = seen(unsafe { lmsd_sample(schedule, host, x_t, model, observer, data, end) });
        if self.toy.fault.get() == Fault::Stop(7) && self.toy.count.get() > self.toy.fault_at.get() {
            assert_eq!(status, STOPPED);
        }
        let left = if in_place { x.values() } else { to.values() };
        // A host whose own lincomb fails may have written already.
        if status != OK && !(self.toy.own_tensors && status == STOPPED) {
            assert_eq!(left, if in_place { before } else { untouched }, "written on failure");
        } else if status == OK && self.toy.fault.get() != Fault::Value(1e300) {
            assert!(left.iter().all(|value| value.is_finite()));
            if !in_place && matches!(self.toy.fault.get(), Fault::None | Fault::Reenter) {
                self.steps_agree(schedule, host, &x, &left);
            }
        }
    }

    /// Step form against run form: float64 to rounding, float32 and below to theirs.
    fn steps_agree(&mut self, schedule: *const Schedule, host: *const LmsdHost, x: &Tensor, end: &[f64]) {
        self.toy.fault.set(Fault::None);
        let own = self.toy.own_tensors;
        let made = out(|made| unsafe { lmsd_sampler_new(schedule, host, x.pointer(own), made) });
        let sampler = own_sampler(made.expect("it could be sampled"));
        let (state, denoised) = (x.like(), x.like());
        let (state_at, denoised_at) = (state.pointer(own).cast_mut(), denoised.pointer(own).cast_mut());
        let nfe = unsafe { lmsd_schedule_nfe(schedule) };
        for index in 0..nfe {
            assert_eq!(unsafe { lmsd_sampler_index(sampler.0) }, index);
            let mut sigma = f64::NAN;
            assert_eq!(seen(unsafe { lmsd_sampler_next(sampler.0, &mut sigma, state_at) }), OK);
            let mut call = lmsd::Call::alone(sigma, lmsd::Purpose::Sample);
            (call.node, call.nfe) = (index, nfe);
            assert_eq!(unsafe { model(self.toy.data(), &call, state_at, denoised_at) }, 0);
            assert_eq!(seen(unsafe { lmsd_sampler_step(sampler.0, denoised_at) }), OK);
        }
        let mut sigma = f64::NAN;
        assert_eq!(seen(unsafe { lmsd_sampler_next(sampler.0, &mut sigma, state_at) }), WRONG_STATE);
        assert_eq!(seen(unsafe { lmsd_sampler_step(sampler.0, denoised_at) }), WRONG_STATE);
        assert_eq!(seen(unsafe { lmsd_sampler_result(sampler.0, state_at) }), OK);
        let size = end.iter().fold(1.0f64, |a, b| a.max(b.abs()));
        for (a, b) in state.values().iter().zip(end) {
            assert!((a - b).abs() <= 1e-3 * size, "by steps {a}, in one run {b}");
        }
    }

    fn steps(&mut self) {
        let (slot, from) = (self.pick(SLOTS), self.pick(SLOTS));
        if self.pick(4) == 0 {
            let (host, x, schedule) = (self.host(), self.tensor(), self.schedule());
            self.fault(3);
            let (host, x_t) = (self.host_or_null(&host), self.pointer(&x));
            let made = out(|made| unsafe { lmsd_sampler_new(schedule, host, x_t, made) });
            if let Ok(made) = made {
                self.samplers[slot] = Some((own_sampler(made), x));
            }
            return;
        }
        if self.pick(6) == 0 {
            let sampler = self.samplers[from].as_ref().map_or(ptr::null_mut(), |(sampler, _)| sampler.0);
            if let Ok(made) = out(|made| unsafe { lmsd_sampler_copy(sampler, made) }) {
                let like = self.samplers[from].as_ref().unwrap().1.like();
                let copy = (own_sampler(made), like);
                self.samplers[slot] = Some(copy);
            }
            return;
        }
        self.one_step(slot);
    }

    fn one_step(&mut self, slot: usize) {
        self.fault(3);
        let (what, null, other, value) = (self.pick(5), self.rarely(), self.rarely(), self.pick(8));
        let stranger = self.tensor();
        let nothing = (ptr::null_mut(), stranger.like());
        let (sampler, mut x) = self.samplers[slot].as_ref().map_or(nothing, |(s, x)| (s.0, x.like()));
        if other && !self.toy.own_tensors {
            x = stranger; // of another shape, perhaps: the built-in tensors are checked
        }
        let at = if null { ptr::null_mut() } else { x.pointer(self.toy.own_tensors).cast_mut() };
        let index = unsafe { lmsd_sampler_index(sampler) };
        let mut sigma = -1.0;
        let status = seen(match what {
            0 => unsafe {
                lmsd_sampler_next(sampler, if value == 0 { ptr::null_mut() } else { &mut sigma }, at)
            },
            1 | 2 => unsafe { lmsd_sampler_step(sampler, at) },
            3 => unsafe { lmsd_sampler_set_state(sampler, at) },
            _ => unsafe { lmsd_sampler_result(sampler, at) },
        });
        assert_eq!(sigma != -1.0, what == 0 && status == OK);
        let went = usize::from(matches!(what, 1 | 2) && status == OK);
        assert_eq!(unsafe { lmsd_sampler_index(sampler) }, index + went);
    }

    fn distill(&mut self) {
        let (host, like) = (self.host(), Tensor::new(2, &[2, 2], 0.0, 0));
        self.fault(80);
        let mut problem = self.toy.problem(&like);
        if self.pick(3) == 0 {
            problem.features = Some(features);
        }
        if self.rarely() {
            match self.pick(4) {
                0 => problem.begin = None,
                1 => problem.ranks = [2, usize::MAX, 0][self.pick(3)],
                2 => problem.like = ptr::null(),
                _ => problem.rank = 9,
            }
        }
        let problem = self.sized(problem);
        let (options, host) = (self.text(&DISTILLS), self.host_or_null(&host));
        let made = out(|made| unsafe { lmsd_distill(options, host, &problem.value, made) });
        if let Ok(made) = made {
            let distilled = own_distilled(made);
            assert!(!schedules(&distilled).is_empty());
            let slot = self.pick(2);
            self.distilled[slot] = Some(distilled);
        }
    }

    fn after_distilling(&mut self) {
        let slot = self.pick(2);
        let distilled = self.distilled[slot].as_ref().map_or(ptr::null_mut(), |owned| owned.0);
        let index = if self.rarely() { usize::MAX } else { self.pick(3) };
        let made = out(|made| unsafe { lmsd_distilled_schedule(distilled, index, made) });
        assert_eq!(made.is_ok(), index < unsafe { lmsd_distilled_count(distilled) });
        self.keep(made);
        let report = out(|made| unsafe { lmsd_distilled_report(distilled, made) }).map(take_text);
        assert_eq!(report.is_ok(), !distilled.is_null());
        if self.pick(4) == 0 {
            self.distilled[slot] = None;
        }
    }

    fn compare(&mut self) {
        let (host, like) = (self.host(), Tensor::new(2, &[2, 2], 0.0, 0));
        self.fault(40);
        let problem = self.toy.problem(&like);
        let problem = self.sized(problem);
        let all = [self.schedule().cast_const(), self.schedule().cast_const()];
        let host = self.host_or_null(&host);
        let count = if self.rarely() { [0, usize::MAX][self.pick(2)] } else { 1 + self.pick(2) };
        let mut distances = [-1.0; 2];
        let options = c"{\"held_out\": 2, \"teacher_nfe\": 8}".as_ptr();
        let to = if self.rarely() { ptr::null_mut() } else { distances.as_mut_ptr() };
        let status = seen(unsafe { lmsd_compare(options, host, &problem.value, count, all.as_ptr(), to) });
        assert_eq!(distances[0] != -1.0, status == OK);
    }

    fn free(&mut self) {
        let slot = self.pick(SLOTS);
        match self.pick(3) {
            0 => self.schedules[slot] = None,
            1 => self.samplers[slot] = None,
            _ => unsafe {
                lmsd_schedule_free(ptr::null_mut());
                lmsd_sampler_free(ptr::null_mut());
                lmsd_distilled_free(ptr::null_mut());
            },
        }
    }
}

/// The bytes say which calls are made.
pub fn calls(data: &[u8]) {
    let distils = rarely(data, 64);
    let mut bytes = Unstructured::new(data);
    let own_tensors = bytes.arbitrary::<u8>().unwrap_or_default() % 2 == 1;
    let toy = Toy::new(own_tensors, 80.0, 120);
    let mut play = Play {
        bytes,
        toy: &toy,
        schedules: Default::default(),
        samplers: Default::default(),
        distilled: Default::default(),
    };
    // Something to begin with: most calls want a schedule.
    let options = SOLVES[play.pick(6)].as_ptr();
    play.schedules[0] = out(|made| unsafe { lmsd_schedule_solve(options, made) }).ok().map(own_schedule);
    for _ in 0..MOST_CALLS {
        if play.bytes.is_empty() {
            break;
        }
        match play.byte() % 32 {
            0..8 => play.make(),
            8..10 => play.look(),
            10 => play.files(),
            11 => play.texts(),
            12..14 => play.operations(),
            14..20 => play.sample(),
            20..27 => play.steps(),
            27 if distils => play.distill(),
            28..30 => play.after_distilling(),
            30 if distils => play.compare(),
            _ => play.free(),
        }
    }
    drop(play);
    assert_eq!(toy.live.get(), 0, "tensors of the host's that were not released");
}
