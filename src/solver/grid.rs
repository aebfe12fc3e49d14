//! Grids of noise levels. Knows no solver.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

pub(super) const SIGMA_RANGE: std::ops::RangeInclusive<f64> = 1e-9..=1e6;
/// Neighbours on a grid differ by more than this, relatively.
const CLOSEST: f64 = 1e-12;

/// How the noise levels are spread from the first node to the end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Grid {
    /// Uniform in sigma^(1/rho) (arXiv 2206.00364). 0 < rho <= 100.
    Karras {
        /// Above 0, at most 100; 7 by default.
        #[serde(default = "seven")]
        rho: f64,
    },
    /// Uniform in log sigma; others call it exponential, or polyexponential with rho 1.
    Log {},
    /// Uniform in sigma.
    Linear {},
    /// sigma = shift t / (1 + (shift - 1) t), uniform in t (arXiv 2403.03206). Sigmas are at most 1.
    Flow {
        /// 1 by default, which is uniform in sigma.
        #[serde(default = "one")]
        shift: f64,
    },
    /// As given, first node to end.
    List {
        /// Decreasing, one more than model calls.
        sigmas: Vec<f64>,
    },
}

fn seven() -> f64 {
    7.0
}

fn one() -> f64 {
    1.0
}

impl Grid {
    /// In words, such as "karras rho=7".
    pub fn describe(&self) -> String {
        match self {
            Self::Karras { rho } => format!("karras rho={rho}"),
            Self::Log {} => "log".into(),
            Self::Linear {} => "linear".into(),
            Self::Flow { shift } => format!("flow shift={shift}"),
            Self::List { sigmas } => format!("list of {}", sigmas.len()),
        }
    }

    /// `steps + 1` decreasing noise levels. Above 0 they run from `first` to `end`. If `end` is 0,
    /// `steps` of them run from `first` to `sigma_min` and 0 follows (k-diffusion's convention),
    /// save on a flow grid, which is uniform all the way. Both ends are exact.
    pub fn sigmas(&self, steps: usize, first: f64, sigma_min: f64, end: f64) -> Result<Vec<f64>> {
        if steps == 0 {
            return Err(Error::argument("a grid of 0 steps has no first sigma"));
        }
        if let Self::List { sigmas } = self {
            if sigmas.len() != steps + 1 {
                return Err(Error::argument(format!(
                    "the grid lists {} sigmas; {steps} steps need {}, the end included",
                    sigmas.len(),
                    steps + 1
                )));
            }
            return decreasing(sigmas.clone());
        }
        let zero_follows = self.needs_sigma_min(end);
        let (last, count) = if zero_follows { (sigma_min, steps - 1) } else { (end, steps) };
        let between = |u: f64, a: f64, b: f64| a + u * (b - a);
        let at = |u: f64| match *self {
            Self::Karras { rho } => between(u, first.powf(1.0 / rho), last.powf(1.0 / rho)).powf(rho),
            Self::Log {} => between(u, first.ln(), last.ln()).exp(),
            Self::Linear {} => between(u, first, last),
            Self::Flow { shift } => {
                let time = |sigma: f64| sigma / (shift - (shift - 1.0) * sigma);
                let t = between(u, time(first), time(last));
                shift * t / (1.0 + (shift - 1.0) * t)
            }
            Self::List { .. } => f64::NAN,
        };
        let mut sigmas: Vec<f64> = (0..=count).map(|i| at(i as f64 / count as f64)).collect();
        sigmas[count] = last;
        sigmas[0] = first;
        if zero_follows {
            sigmas.push(0.0);
        }
        decreasing(sigmas)
    }

    /// The same spread of noise levels in `steps` steps: a list is interpolated, in log sigma, by position.
    pub fn in_steps(&self, steps: usize) -> Self {
        let Self::List { sigmas } = self else { return self.clone() };
        let zero_follows = sigmas.last() == Some(&0.0);
        let above = &sigmas[..sigmas.len() - usize::from(zero_follows)];
        let count = steps + 1 - usize::from(zero_follows);
        if sigmas.len() == steps + 1 || above.is_empty() || count == 0 {
            return self.clone();
        }
        let at = |i: usize| {
            let place = (above.len() - 1) as f64 * i as f64 / (count - 1).max(1) as f64;
            let (low, part) = (place as usize, place.fract());
            let next = above[(low + 1).min(above.len() - 1)];
            if part == 0.0 { above[low] } else { (above[low].ln() * (1.0 - part) + next.ln() * part).exp() }
        };
        let end = zero_follows.then_some(0.0);
        Self::List { sigmas: (0..count).map(at).chain(end).collect() }
    }

    /// Whether the grid has a level at sigma_min before it ends at 0.
    pub(super) fn needs_sigma_min(&self, end: f64) -> bool {
        end == 0.0 && !matches!(self, Self::Flow { .. } | Self::List { .. })
    }

    pub(super) fn check(&self) -> Result<()> {
        match *self {
            Self::Karras { rho } if !(rho > 0.0 && rho <= 100.0) => Err(Error::argument(format!(
                "rho of the karras grid is {rho}; it must be above 0, at most 100"
            ))),
            Self::Flow { shift } if !(1e-3..=1e3).contains(&shift) => {
                Err(Error::argument(format!("shift of the flow grid is {shift}; it must be 1e-3 to 1e3")))
            }
            _ => Ok(()),
        }
    }
}

fn decreasing(sigmas: Vec<f64>) -> Result<Vec<f64>> {
    let last = sigmas.len() - 1;
    for (i, &sigma) in sigmas.iter().enumerate() {
        if !(SIGMA_RANGE.contains(&sigma) || (sigma == 0.0 && i == last)) {
            return Err(Error::argument(format!(
                "sigma {i} of the grid is {sigma}; it must be 1e-9 to 1e6, or 0 at the end"
            )));
        }
        if i > 0 && sigma >= sigmas[i - 1] * (1.0 - CLOSEST) {
            let before = sigmas[i - 1];
            return Err(Error::argument(format!(
                "sigma {i} of the grid is {sigma}, after {before}; sigmas must decrease"
            )));
        }
    }
    Ok(sigmas)
}
