//! The symbols that the published samplers run on, and the notes that become a table's rows.
//! Knows no sampler.

use std::borrow::Borrow;
use std::ops::{Add, Div, Mul, Sub};

use crate::error::{Error, Result, Status};
use crate::memory;
use crate::schedule::{Node, Process, advance};

/// A linear combination of [X_0, D_0, X_1, D_1, ...]: the states that the model was called on, and
/// its predictions there. Shorter ones end in zeros.
#[derive(Debug, Clone)]
pub(super) struct Lin(Vec<f64>);

impl Lin {
    fn unit(index: usize) -> Self {
        if memory::is_short() {
            return Self(Vec::new()); // what comes of it is given up in `finish`
        }
        let mut v = vec![0.0; index + 1];
        v[index] = 1.0;
        Self(v)
    }

    fn plus(&self, scale: f64, other: &Lin) -> Self {
        if memory::is_short() {
            return Self(Vec::new());
        }
        let at = |v: &Lin, i: usize| v.0.get(i).copied().unwrap_or(0.0);
        Self((0..self.0.len().max(other.0.len())).map(|i| at(self, i) + scale * at(other, i)).collect())
    }
}

macro_rules! operators {
    ($($lin:ty),*) => {$(
        impl<R: Borrow<Lin>> Add<R> for $lin {
            type Output = Lin;
            fn add(self, other: R) -> Lin {
                self.plus(1.0, other.borrow())
            }
        }
        impl<R: Borrow<Lin>> Sub<R> for $lin {
            type Output = Lin;
            fn sub(self, other: R) -> Lin {
                self.plus(-1.0, other.borrow())
            }
        }
        impl Mul<f64> for $lin {
            type Output = Lin;
            fn mul(self, factor: f64) -> Lin {
                Lin(self.0.iter().map(|v| v * factor).collect())
            }
        }
        impl Div<f64> for $lin {
            type Output = Lin;
            fn div(self, divisor: f64) -> Lin {
                Lin(self.0.iter().map(|v| v / divisor).collect())
            }
        }
    )*};
}

operators!(Lin, &Lin);

/// What a sampler sees of the world, and the notes taken while it runs.
pub(super) struct Trace {
    pub process: Process,
    pub sigmas: Vec<f64>,
    pub lower_order_final: bool,
    /// Noise level of each call.
    called: Vec<f64>,
    /// X_{n+1} - r X_n over D_0, ..., D_n.
    rows: Vec<Vec<f64>>,
    fault: Option<Error>,
}

impl Trace {
    pub fn new(process: Process, sigmas: Vec<f64>, lower_order_final: bool) -> Self {
        Self { process, sigmas, lower_order_final, called: Vec::new(), rows: Vec::new(), fault: None }
    }

    pub fn steps(&self) -> usize {
        self.sigmas.len() - 1
    }

    pub fn start(&self) -> Lin {
        Lin::unit(0)
    }

    /// Calls the model at x, which becomes a symbol: what it was made of is now a row of the table.
    pub fn model(&mut self, x: &mut Lin, sigma: f64) -> Lin {
        let n = self.called.len();
        if n > 0 {
            self.note(x, sigma);
        }
        self.called.push(sigma);
        *x = Lin::unit(2 * n);
        self.denoised(n)
    }

    /// Model calls so far.
    pub fn calls(&self) -> usize {
        self.called.len()
    }

    /// The prediction D_n of call n.
    pub fn denoised(&self, n: usize) -> Lin {
        Lin::unit(2 * n + 1)
    }

    /// (X_n - D_n) / sigma_n, which is dx/dsigma.
    pub fn slope(&self, n: usize) -> Lin {
        (Lin::unit(2 * n) - self.denoised(n)) / self.called[n]
    }

    /// The noise that the prediction at call n implies: x = alpha D + sigma noise.
    pub fn noise(&self, n: usize) -> Lin {
        (Lin::unit(2 * n) - self.denoised(n) * self.alpha(n)) / self.called[n]
    }

    /// Factor of x0 in the state at grid point n.
    pub fn alpha(&self, n: usize) -> f64 {
        if self.process == Process::Flow { 1.0 - self.sigmas[n] } else { 1.0 }
    }

    /// lambda_to - lambda_from, lambda = log(alpha / sigma), for grid points from <= to. Infinite where a
    /// flow model starts at 1, and where sigma ends at 0.
    pub fn gap(&self, from: usize, to: usize) -> f64 {
        let (a, b) = (self.sigmas[from], self.sigmas[to]);
        if from == to {
            return 0.0;
        }
        let ve = ((a - b) / b).ln_1p();
        if self.process == Process::Flow { ve + ((a - b) / (1.0 - a)).ln_1p() } else { ve }
    }

    /// The order that a multistep method in lambda can have at step n: as much history as there is,
    /// as many steps as are left if so wished, and nothing across an infinite gap, where the
    /// interpolating polynomial tends to one through fewer points.
    pub fn order(&self, n: usize, most: usize) -> usize {
        let mut order = most.min(n + 1);
        if self.lower_order_final {
            order = order.min(self.steps() - n);
        }
        if self.gap(n, n + 1).is_infinite() {
            return 1;
        }
        while order > 1 && self.gap(n + 1 - order, n).is_infinite() {
            order -= 1;
        }
        order
    }

    /// Rewrites x over the newest state and the predictions, and keeps the latter as a row. States stay
    /// symbols until here, so that small steps lose nothing to cancellation.
    fn note(&mut self, x: &Lin, sigma: f64) {
        if memory::is_short() {
            return;
        }
        let n = self.called.len() - 1;
        let mut v = x.0.clone();
        v.resize(2 * n + 2, 0.0);
        for m in 0..n {
            let (r, _) = advance(self.called[m], self.called[m + 1]);
            let share = v[2 * m] / r; // X_m = (X_{m+1} - row_m) / r
            if share != 0.0 {
                v[2 * m + 2] += share;
                self.rows[m].iter().enumerate().for_each(|(k, b)| v[2 * k + 1] -= share * b);
            }
        }
        let (r, _) = advance(self.called[n], sigma);
        let size = v.iter().fold(1.0, |a: f64, b| a.max(b.abs()));
        let holds = (v[2 * n] - r).abs() <= 1e-9 * size; // not for NaN
        if !holds && self.fault.is_none() {
            let text = format!("node {n} keeps {} of its state instead of {r}", v[2 * n]);
            self.fault = Some(Error::new(Status::Internal, text));
        }
        self.rows.push((0..=n).map(|k| v[2 * k + 1]).collect());
    }

    pub fn finish(mut self, x: &Lin) -> Result<Vec<Node>> {
        let end = self.sigmas[self.steps()];
        self.note(x, end);
        memory::check()?;
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        self.called.push(end);
        let node = |(n, row): (usize, &Vec<f64>)| {
            memory::check()?;
            let (_, g) = advance(self.called[n], self.called[n + 1]);
            let mut weights: Vec<f64> = row.iter().rev().map(|b| b / g).collect();
            let negligible = 1e-15 * weights.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
            while weights.len() > 1 && weights[weights.len() - 1].abs() <= negligible {
                weights.pop();
            }
            Ok(Node::new(self.called[n], weights))
        };
        self.rows.iter().enumerate().map(node).collect()
    }
}
