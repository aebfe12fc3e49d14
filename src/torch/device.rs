//! Devices of libtorch: how descriptors and messages name them, and which this process can reach.

use std::sync::atomic::{AtomicU64, Ordering};

use tch::Device;

use crate::error::{Error, Result};
use crate::tensor::LmsdTensor;

/// DLPack's numbers for the memory of CUDA and ROCm; libtorch calls both CUDA.
const DEVICES_CUDA: [i32; 2] = [2, 10];

/// Where a descriptor says its memory is.
pub fn device_of(tensor: &LmsdTensor) -> Option<Device> {
    match (tensor.device.device_type, usize::try_from(tensor.device.device_id)) {
        (crate::tensor::DEVICE_CPU, _) => Some(Device::Cpu),
        (cuda, Ok(index)) if DEVICES_CUDA.contains(&cuda) => Some(Device::Cuda(index)),
        _ => None,
    }
}

/// A device, as messages name it.
pub fn name(device: Device) -> String {
    match device {
        Device::Cpu => "the CPU".into(),
        Device::Cuda(index) => format!("CUDA device {index}"),
        Device::Mps | Device::Vulkan => format!("{device:?}"),
    }
}

/// CUDA devices that were reached, a bit for each of the first: every operation of a C host asks.
static REACHED: AtomicU64 = AtomicU64::new(0);

/// Refuses a CUDA device that this process cannot reach, and says why.
pub fn check_cuda(index: usize) -> Result<()> {
    let bit = u32::try_from(index).ok().and_then(|index| 1u64.checked_shl(index)).unwrap_or(0);
    if REACHED.load(Ordering::Relaxed) & bit != 0 {
        return Ok(());
    }
    let refuse = |why: String| Err(Error::argument(format!("CUDA device {index} is asked for, but {why}")));
    let opened = open_cuda();
    if !tch::Cuda::is_available() {
        return refuse(match opened {
            Err(why) => format!("libtorch's CUDA library cannot be loaded: {why}"),
            Ok(()) => "libtorch finds no CUDA device; is there one, and its driver?".into(),
        });
    }
    let count = tch::Cuda::device_count();
    if i64::try_from(index).is_ok_and(|index| index < count) {
        REACHED.fetch_or(bit, Ordering::Relaxed);
        return Ok(());
    }
    refuse(format!("there are {count}, counted from 0"))
}

/// Loads libtorch's CUDA library, which the linker leaves out of programs that call nothing in it. It
/// stays loaded.
#[cfg(target_os = "linux")]
fn open_cuda() -> std::result::Result<(), String> {
    use std::error::Error;

    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: the library of the libtorch that is loaded already; its constructors register operations.
    let opened = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) };
    let reason = |e: libloading::Error| e.source().map_or_else(|| e.to_string(), |source| source.to_string());
    opened.map(std::mem::forget).map_err(reason)
}

#[cfg(not(target_os = "linux"))]
fn open_cuda() -> std::result::Result<(), String> {
    Ok(())
}
