//! Few-step sampling of diffusion and flow models by distilled linear multistep solvers.
//!
//! ```text
//! solver:  (name, grid)            -> Schedule             data, JSON on disk
//! sample:  (Schedule, x_T, model)  -> x                    one loop
//! distill: (Config, model, noise)  -> Schedule + report    forward calls only
//! ```
//!
//! Coordinates are those of k-diffusion: a state `x` at noise level `sigma`, and a model that
//! returns `denoised`, its prediction of x0 (guidance included). Knowledge flows one way:
//! error <- schedule <- solver <- field; schedule + tensor + call <- sample <- distill; all <- host <- ffi.

#![deny(unsafe_code)] // but where C, libtorch and memory are: the modules that allow it, below and in tensor.rs

pub mod call;
pub mod distill;
pub mod error;
#[allow(unsafe_code)]
#[cfg(feature = "abi")]
pub mod ffi;
pub mod field;
mod files;
#[allow(unsafe_code)]
pub mod host;
#[allow(unsafe_code)]
#[cfg_attr(not(feature = "abi"), allow(dead_code))]
mod inside;
mod json;
#[allow(unsafe_code)]
#[cfg(feature = "abi")]
pub mod libtorch;
#[cfg_attr(not(feature = "abi"), allow(dead_code))]
mod memory;
pub mod options;
pub mod sample;
pub mod schedule;
#[allow(unsafe_code)]
pub mod sized;
pub mod solver;
pub mod tensor;
#[allow(unsafe_code)]
#[cfg(feature = "torch")]
pub mod torch;

pub use call::{Call, Purpose};
pub use error::{Error, Result, Status};
pub use schedule::{Node, Process, Schedule};
pub use tensor::Tensors;
