//! A TorchScript network as the model of a run: guidance, precision, and calls in parts that fit into memory.

use std::path::Path;

use lmsd::torch::tch::{self, CModule, Device, IValue, Kind, Tensor};
use lmsd::{Error, Result, Status};

/// `forward(x, sigma)` or `forward(x, sigma, class)` -> denoised.
pub struct Network {
    module: CModule,
    pub device: Device,
    kind: Kind,
    guidance: f64,
    /// Number of classes; the next number means none of them. 0: the network takes no class.
    classes: i64,
    /// Trajectories in a call at most.
    pub part: i64,
    /// Hears of a smaller part.
    pub note: Box<dyn Fn(&str)>,
}

impl Network {
    pub fn load(path: &Path, device: Device, kind: Kind, guidance: f64, classes: i64) -> Result<Self> {
        let io = |e: tch::TchError| {
            let said = Error::from(e).message;
            Error::new(
                Status::Io,
                format!("{} cannot be loaded as a TorchScript model: {said}", path.display()),
            )
        };
        if !path.is_file() {
            return Err(Error::new(Status::Io, format!("there is no model file {}", path.display())));
        }
        if guidance != 1.0 && classes == 0 {
            return Err(Error::argument(format!(
                "guidance is {guidance}, which needs a model that takes a class: say --classes, or --guidance 1 \
                 for a model that has its guidance in it"
            )));
        }
        let mut module = CModule::load_on_device(path, device).map_err(io)?;
        module.f_set_eval()?;
        module.to(device, kind, false);
        let note = Box::new(|text: &str| eprintln!("{text}"));
        Ok(Self { module, device, kind, guidance, classes, part: i64::MAX, note })
    }

    /// The prediction of x0 at `x` [B, ...], noise level `sigma`, guidance included; `labels` [B] where the
    /// network takes classes. Where memory runs out the call is made in halves from then on.
    pub fn denoise(&mut self, x: &Tensor, sigma: f64, labels: &Tensor, denoised: &Tensor) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let batch = x.size()[0];
        let mut from = 0;
        while from < batch {
            let part = self.part.min(batch - from);
            let part_of = |t: &Tensor| -> Result<Tensor> { Ok(t.f_narrow(0, from, part)?) };
            let labels = if self.classes > 0 { part_of(labels)? } else { labels.shallow_clone() };
            match self.call(&part_of(x)?, sigma, &labels) {
                Ok(found) => {
                    let mut to = part_of(denoised)?;
                    if found.size() != to.size() {
                        return Err(Error::tensor(format!(
                            "the model returned shape {:?}; it must be that of x, {:?}",
                            found.size(),
                            to.size()
                        )));
                    }
                    to.f_copy_(&found)?;
                    from += part;
                }
                Err(error) if error.status == Status::OutOfMemory && part > 1 => {
                    self.part = part / 2;
                    (self.note)(&format!(
                        "out of memory with {part} trajectories in a call of the model; going on with {}",
                        self.part
                    ));
                }
                Err(error) => {
                    let message = format!("the model at sigma {sigma}: {}", error.message);
                    return Err(Error::new(error.status, message));
                }
            }
        }
        Ok(())
    }

    fn call(&self, x: &Tensor, sigma: f64, labels: &Tensor) -> Result<Tensor> {
        let guided = self.guidance != 1.0;
        let mut given = x.f_to_kind(self.kind)?;
        let mut classes = labels.shallow_clone();
        if guided {
            given = Tensor::f_cat(&[&given, &given], 0)?;
            classes = Tensor::f_cat(&[labels, &labels.f_full_like(self.classes)?], 0)?;
        }
        let sigmas = Tensor::f_full([given.size()[0]], sigma, (Kind::Float, self.device))?;
        let mut arguments = vec![IValue::Tensor(given), IValue::Tensor(sigmas)];
        if self.classes > 0 {
            arguments.push(IValue::Tensor(classes));
        }
        let found = match self.module.forward_is(&arguments)? {
            IValue::Tensor(found) => found.f_to_kind(Kind::Float)?,
            other => {
                let kind = format!("{other:?}");
                let kind = kind.split('(').next().unwrap_or_default();
                return Err(Error::tensor(format!("the model returned {kind}; it must return one tensor")));
            }
        };
        if !guided {
            return Ok(found);
        }
        let n = x.size()[0];
        let (with, without) = (found.f_narrow(0, 0, n)?, found.f_narrow(0, n, found.size()[0] - n)?);
        Ok(without.f_lerp(&with, self.guidance)?)
    }

    /// Sets how many trajectories a call takes, 1 to `most`, such that the memory in use on the device (of
    /// this process, on the CPU) stays within `budget` bytes: calls of 1, 2, 4, ... are measured, and what a
    /// further doubling would take is estimated from the last one.
    pub fn fit_memory(&mut self, budget: u64, x: &Tensor, sigma: f64, labels: &Tensor) -> Result<()> {
        let most = x.size()[0];
        let denoised = x.f_empty_like()?;
        let call = |network: &mut Self, n: i64| -> Result<u64> {
            network.part = n;
            let labels = if network.classes > 0 { labels.f_narrow(0, 0, n)? } else { labels.shallow_clone() };
            network.denoise(&x.f_narrow(0, 0, n)?, sigma, &labels, &denoised.f_narrow(0, 0, n)?)?;
            memory_used(network.device)
        };
        let mut before = memory_used(self.device)?;
        let mut fitting = 0;
        let mut n = 1;
        while n <= most {
            let used = call(self, n)?;
            if used > budget || self.part < n {
                break;
            }
            fitting = n;
            if n == most || used + 2 * used.saturating_sub(before) > budget {
                break;
            }
            before = used;
            n = (2 * n).min(most);
        }
        if fitting == 0 {
            return Err(Error::new(
                Status::OutOfMemory,
                format!(
                    "--memory is {:.2} GiB, and one trajectory takes this process to {:.2} GiB already",
                    gib(budget),
                    gib(memory_used(self.device)?)
                ),
            ));
        }
        self.part = fitting;
        Ok(())
    }
}

pub fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

/// Bytes: on a GPU what is in use there by anybody, on the CPU the most that this process has had.
fn memory_used(device: Device) -> Result<u64> {
    let unknown = || Error::argument("--memory cannot be measured on this system; use --batch");
    if let Device::Cuda(index) = device {
        type MemGetInfo = unsafe extern "C" fn(*mut usize, *mut usize) -> i32;
        type SetDevice = unsafe extern "C" fn(i32) -> i32;
        tch::Cuda::synchronize(index as i64);
        // SAFETY: functions of the CUDA runtime that libtorch has loaded; looks only at those.
        let (set, info) = unsafe {
            let find = |name: &std::ffi::CStr| libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr());
            (find(c"cudaSetDevice"), find(c"cudaMemGetInfo"))
        };
        if set.is_null() || info.is_null() {
            return Err(unknown());
        }
        let (mut free, mut total) = (0, 0);
        // SAFETY: cudaError_t cudaSetDevice(int), cudaMemGetInfo(size_t *, size_t *).
        let code = unsafe {
            std::mem::transmute::<*mut libc::c_void, SetDevice>(set)(index as i32);
            std::mem::transmute::<*mut libc::c_void, MemGetInfo>(info)(&mut free, &mut total)
        };
        return if code == 0 { Ok((total - free) as u64) } else { Err(unknown()) };
    }
    let status = std::fs::read_to_string("/proc/self/status").map_err(|_| unknown())?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.and_then(|text| text.trim().trim_end_matches(" kB").trim().parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(unknown)
}
