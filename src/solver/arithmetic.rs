//! The arithmetic of exponential integrators and of multistep rules.

use super::trace::Lin;
use crate::schedule::advance;

/// The first-order step: exact if the prediction did not change.
pub(super) fn ddim(x: &Lin, denoised: &Lin, sigma: f64, next: f64) -> Lin {
    let (r, g) = advance(sigma, next);
    x * r + denoised * g
}

/// phi_k(-h) of exponential integrators: phi_0 = e^-h, phi_{k+1}(z) = (phi_k(z) - 1/k!) / z. h >= 0.
pub(super) fn phi(k: usize, h: f64) -> f64 {
    if h < 1.0 {
        let mut term = 1.0 / factorial(k);
        let mut sum = term;
        for j in 1..20 {
            term *= -h / (j + k) as f64;
            sum += term;
        }
        return sum;
    }
    (0..k).fold((-h).exp(), |value, j| (1.0 / factorial(j) - value) / h)
}

/// The integral of v^k e^-v from 0 to h; h may be infinite.
pub(super) fn exp_moment(k: usize, h: f64) -> f64 {
    if h < 1.0 {
        let term = |j: usize| (-h).powi(j as i32) / (factorial(j) * (k + 1 + j) as f64);
        return h.powi(k as i32 + 1) * (0..20).map(term).sum::<f64>();
    }
    let end = |k: usize| if h.is_infinite() { 0.0 } else { h.powi(k as i32) * (-h).exp() };
    (1..=k).fold(1.0 - end(0), |value, j| j as f64 * value - end(j))
}

pub(super) fn factorial(k: usize) -> f64 {
    (1..=k).map(|i| i as f64).product()
}

/// Weights over `nodes` of the rule exact for every polynomial they determine, given the integral
/// of v^k: the integral of each Lagrange polynomial.
pub(super) fn quadrature(nodes: &[f64], moment: impl Fn(usize) -> f64) -> Vec<f64> {
    let integral = |j: usize| {
        let mut poly = vec![1.0]; // lowest power first
        for (_, v) in nodes.iter().enumerate().filter(|(i, _)| *i != j) {
            let scale = nodes[j] - v;
            poly.push(0.0);
            for k in (0..poly.len()).rev() {
                let lower = if k > 0 { poly[k - 1] } else { 0.0 };
                poly[k] = (lower - v * poly[k]) / scale;
            }
        }
        poly.iter().enumerate().map(|(k, c)| c * moment(k)).sum()
    };
    (0..nodes.len()).map(integral).collect()
}
