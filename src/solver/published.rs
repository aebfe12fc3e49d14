//! The published samplers, each a function that reads like its paper and one line of [`SOLVERS`].
//!
//! A sampler's states are not tensors but [`Lin`], linear combinations of earlier states and predictions;
//! whenever it asks for `model(x, sigma)` the [`Trace`] notes how x came about, and those notes are the rows
//! of the table. Each works for VE and for flow models.

use super::Solver;
use super::arithmetic::{ddim, exp_moment, factorial, phi, quadrature};
use super::trace::{Lin, Trace};
use crate::schedule::{Process, advance};

/// Name, arXiv id, order of a whole run, one line for people, function. (Multistep methods of order 3 and 4
/// are held at 2 by their first step, which is DDIM's; UniPC's corrector mends that step and adds one order.) A name of a solver that stands
/// before it is marked as such and does not compete.
pub(super) static SOLVERS: &[Solver] = &[
    solver("euler", "2010.02502", 1, "Euler's method, which is DDIM", euler),
    another_name("ddim", "2010.02502", "another name of euler", euler),
    solver("heun", "2206.00364", 2, "Heun's method (EDM)", heun),
    solver(
        "dpm_2",
        "2206.00927",
        2,
        "midpoint rule on the noise prediction (DPM-Solver-2 as in k-diffusion)",
        dpm_2,
    ),
    solver("dpmpp_2s", "2211.01095", 2, "DPM-Solver++(2S): midpoint rule on the data prediction", dpmpp_2s),
    solver("dpmpp_2m", "2211.01095", 2, "DPM-Solver++(2M): two-step, data prediction", |t| dpmpp(t, 2)),
    solver("dpmpp_3m", "2211.01095", 2, "DPM-Solver++(3M): three-step, data prediction", |t| dpmpp(t, 3)),
    another_name("deis_1", "2204.13902", "DEIS of one step, which is DDIM", |t| deis(t, 1)),
    solver("deis_2", "2204.13902", 2, "DEIS: polynomial of degree 1 in log rho through the noise", |t| {
        deis(t, 2)
    }),
    solver("deis_3", "2204.13902", 2, "DEIS: polynomial of degree 2 in log rho through the noise", |t| {
        deis(t, 3)
    }),
    another_name("lms_1", "2206.00364", "Adams-Bashforth on the grid, one step: Euler", |t| lms(t, 1)),
    solver("lms_2", "2206.00364", 2, "Adams-Bashforth on the grid, two steps", |t| lms(t, 2)),
    solver("lms_3", "2206.00364", 2, "Adams-Bashforth on the grid, three steps", |t| lms(t, 3)),
    solver("lms_4", "2206.00364", 2, "Adams-Bashforth on the grid, four steps (LMS)", |t| lms(t, 4)),
    another_name(
        "ipndm_1",
        "2202.09778",
        "Adams-Bashforth as if the grid were uniform, one step: Euler",
        |t| ipndm(t, 1),
    ),
    solver("ipndm_2", "2202.09778", 2, "Adams-Bashforth as if the grid were uniform, two steps", |t| {
        ipndm(t, 2)
    }),
    solver("ipndm_3", "2202.09778", 2, "Adams-Bashforth as if the grid were uniform, three steps", |t| {
        ipndm(t, 3)
    }),
    solver(
        "ipndm_4",
        "2202.09778",
        2,
        "Adams-Bashforth as if the grid were uniform, four steps (iPNDM)",
        |t| ipndm(t, 4),
    ),
    solver(
        "res_multistep",
        "2308.02157",
        2,
        "RES: two-step exponential integrator in -log sigma",
        res_multistep,
    ),
    solver("unipc_bh1_1", "2302.04867", 2, "UniPC of order 1, B(h) = h", |t| unipc(t, 1, Bh::H)),
    solver("unipc_bh1_2", "2302.04867", 3, "UniPC of order 2, B(h) = h", |t| unipc(t, 2, Bh::H)),
    solver("unipc_bh1_3", "2302.04867", 4, "UniPC of order 3, B(h) = h", |t| unipc(t, 3, Bh::H)),
    solver("unipc_bh2_1", "2302.04867", 2, "UniPC of order 1, B(h) = e^h - 1", |t| unipc(t, 1, Bh::Expm1)),
    solver("unipc_bh2_2", "2302.04867", 3, "UniPC of order 2, B(h) = e^h - 1", |t| unipc(t, 2, Bh::Expm1)),
    solver("unipc_bh2_3", "2302.04867", 4, "UniPC of order 3, B(h) = e^h - 1", |t| unipc(t, 3, Bh::Expm1)),
];

const fn solver(
    name: &'static str,
    arxiv: &'static str,
    order: usize,
    about: &'static str,
    run: fn(&mut Trace) -> Lin,
) -> Solver {
    Solver { name, about, arxiv, order, competes: true, run }
}

const fn another_name(
    name: &'static str,
    arxiv: &'static str,
    about: &'static str,
    run: fn(&mut Trace) -> Lin,
) -> Solver {
    Solver { competes: false, ..solver(name, arxiv, 1, about, run) }
}

/// arXiv 2010.02502 (DDIM), in the coordinates of arXiv 2206.00364.
fn euler(t: &mut Trace) -> Lin {
    let mut x = t.start();
    for n in 0..t.steps() {
        let denoised = t.model(&mut x, t.sigmas[n]);
        x = ddim(&x, &denoised, t.sigmas[n], t.sigmas[n + 1]);
    }
    x
}

/// arXiv 2206.00364, algorithm 1. The last step stays uncorrected: no schedule calls the model at its end.
fn heun(t: &mut Trace) -> Lin {
    let mut x = t.start();
    for n in 0..t.steps() {
        let (sigma, next) = (t.sigmas[n], t.sigmas[n + 1]);
        let denoised = t.model(&mut x, sigma);
        let mut predicted = ddim(&x, &denoised, sigma, next);
        if n + 1 == t.steps() {
            return predicted;
        }
        let denoised_2 = t.model(&mut predicted, next);
        let d = (&x - denoised) / sigma;
        let d_2 = (&predicted - denoised_2) / next;
        x = predicted + (d_2 - d) * (0.5 * (next - sigma));
    }
    x
}

/// arXiv 2206.00927 (DPM-Solver-2) as k-diffusion has it.
fn dpm_2(t: &mut Trace) -> Lin {
    midpoint(t, |x, at, sigma, next| x + (&at.x - &at.denoised) / at.sigma * (next - sigma))
}

/// arXiv 2211.01095, algorithm 1.
fn dpmpp_2s(t: &mut Trace) -> Lin {
    midpoint(t, |x, at, sigma, next| ddim(x, &at.denoised, sigma, next))
}

struct Middle {
    sigma: f64,
    x: Lin,
    denoised: Lin,
}

/// Steps by what the model says in the middle of -log sigma, for flow models too: in their log-SNR there is no
/// middle between 1 and anything else. A step to 0 has none.
fn midpoint(t: &mut Trace, step: impl Fn(&Lin, &Middle, f64, f64) -> Lin) -> Lin {
    let mut x = t.start();
    for n in 0..t.steps() {
        let (sigma, next) = (t.sigmas[n], t.sigmas[n + 1]);
        let denoised = t.model(&mut x, sigma);
        if next == 0.0 {
            return ddim(&x, &denoised, sigma, next);
        }
        let middle = (sigma * next).sqrt();
        let mut x_2 = ddim(&x, &denoised, sigma, middle);
        let denoised = t.model(&mut x_2, middle);
        x = step(&x, &Middle { sigma: middle, x: x_2, denoised }, sigma, next);
    }
    x
}

/// arXiv 2211.01095, algorithm 2 (order 2), and the multistep third order of its code. That is of
/// second order: d2 is half the second derivative, and phi_3 wants it whole.
fn dpmpp(t: &mut Trace, order: usize) -> Lin {
    let mut x = t.start();
    for n in 0..t.steps() {
        let d0 = t.model(&mut x, t.sigmas[n]);
        let h = t.gap(n, n + 1);
        let target = match t.order(n, order) {
            1 => d0,
            2 => {
                let r0 = t.gap(n - 1, n) / h;
                let d1 = (&d0 - t.denoised(n - 1)) / r0;
                d0 + d1 * 0.5
            }
            _ => {
                let (r0, r1) = (t.gap(n - 1, n) / h, t.gap(n - 2, n - 1) / h);
                let d1_0 = (&d0 - t.denoised(n - 1)) / r0;
                let d1_1 = (t.denoised(n - 1) - t.denoised(n - 2)) / r1;
                let d2 = (&d1_0 - &d1_1) / (r0 + r1);
                let d1 = d1_0 + &d2 * r0;
                d0 + d1 * (phi(2, h) / phi(1, h)) + d2 * (phi(3, h) / phi(1, h))
            }
        };
        x = ddim(&x, &target, t.sigmas[n], t.sigmas[n + 1]);
    }
    x
}

/// arXiv 2204.13902 (tAB-DEIS) with the polynomial in log rho, rho = sigma / alpha, that diffusers
/// took: x / alpha gains the integral over rho of the polynomial through the latest noise
/// predictions. Written as what it adds to DDIM, which stays finite at alpha = 0.
fn deis(t: &mut Trace, order: usize) -> Lin {
    let mut x = t.start();
    for n in 0..t.steps() {
        let denoised = t.model(&mut x, t.sigmas[n]);
        let h = t.gap(n, n + 1);
        let order = t.order(n, order);
        // v = log rho_n - log rho, so that rho = rho_n e^-v.
        let nodes: Vec<f64> = (0..order).map(|j| -t.gap(n - j, n)).collect();
        let weights = quadrature(&nodes, |k| exp_moment(k, h));
        let mut next = ddim(&x, &denoised, t.sigmas[n], t.sigmas[n + 1]);
        for (j, w) in weights.iter().enumerate().skip(1) {
            let rho = t.sigmas[n] / t.alpha(n);
            next = next + (t.noise(n) - t.noise(n - j)) * (t.alpha(n + 1) * rho * w);
        }
        x = next;
    }
    x
}

/// The linear multistep method of k-diffusion: the polynomial in sigma through the latest slopes,
/// integrated exactly.
fn lms(t: &mut Trace, order: usize) -> Lin {
    let mut x = t.start();
    for n in 0..t.steps() {
        t.model(&mut x, t.sigmas[n]);
        let step = t.sigmas[n + 1] - t.sigmas[n];
        let nodes: Vec<f64> = (0..order.min(n + 1)).map(|j| t.sigmas[n - j] - t.sigmas[n]).collect();
        let weights = quadrature(&nodes, |k| step.powi(k as i32 + 1) / (k + 1) as f64);
        for (j, w) in weights.iter().enumerate() {
            x = x + t.slope(n - j) * *w;
        }
    }
    x
}

/// arXiv 2202.09778 and 2204.13902 (iPNDM); newest first. A step to 0 takes the prediction, as in
/// ComfyUI, unless `lower_order_final` is off.
const ADAMS_BASHFORTH: [&[f64]; 4] = [
    &[1.0],
    &[3.0 / 2.0, -1.0 / 2.0],
    &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
    &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
];

fn ipndm(t: &mut Trace, order: usize) -> Lin {
    let mut x = t.start();
    for n in 0..t.steps() {
        let denoised = t.model(&mut x, t.sigmas[n]);
        let step = t.sigmas[n + 1] - t.sigmas[n];
        if t.sigmas[n + 1] == 0.0 && t.lower_order_final {
            return denoised;
        }
        for (j, b) in ADAMS_BASHFORTH[order.min(n + 1) - 1].iter().enumerate() {
            x = x + t.slope(n - j) * (step * b);
        }
    }
    x
}

/// arXiv 2308.02157, two-step form: the line through the latest two predictions, integrated exactly
/// in -log sigma, for flow models too, as in ComfyUI.
fn res_multistep(t: &mut Trace) -> Lin {
    t.process = Process::Ve;
    let mut x = t.start();
    for n in 0..t.steps() {
        t.model(&mut x, t.sigmas[n]);
        let h = t.gap(n, n + 1);
        let target = if t.order(n, 2) == 1 {
            t.denoised(n)
        } else {
            let nodes = [0.0, -t.gap(n - 1, n) / h];
            let weights = quadrature(&nodes, |k| phi(k + 1, h) / phi(1, h));
            t.denoised(n) * weights[0] + t.denoised(n - 1) * weights[1]
        };
        x = ddim(&x, &target, t.sigmas[n], t.sigmas[n + 1]);
    }
    x
}

/// The two choices of B(h) in UniPC.
#[derive(Clone, Copy, PartialEq)]
enum Bh {
    H,
    Expm1,
}

/// arXiv 2302.04867 (UniPC, data prediction), predictor and corrector. The corrector uses the next
/// node's prediction, so it costs no call and there is none at the end.
fn unipc(t: &mut Trace, max_order: usize, bh: Bh) -> Lin {
    let mut x = t.start();
    let mut order = 1;
    for n in 0..t.steps() {
        t.model(&mut x, t.sigmas[n]);
        // From flow's sigma = 1, h is infinite: with B(h) = h the corrector has no limit.
        if n > 0 && !(bh == Bh::H && t.gap(n - 1, n).is_infinite()) {
            let (_, g) = advance(t.sigmas[n - 1], t.sigmas[n]);
            let predicted = unipc_target(t, n - 1, order, bh, false);
            let corrected = unipc_target(t, n - 1, order, bh, true);
            x = x + (corrected - predicted) * g;
        }
        order = t.order(n, max_order);
        x = ddim(&x, &unipc_target(t, n, order, bh, false), t.sigmas[n], t.sigmas[n + 1]);
    }
    x
}

/// D_n + B(h)/(e^h - 1) sum_m rho_m (D_m - D_n) / r_m, over earlier nodes and, for the corrector,
/// the next one (r = 1). The rhos make it exact for polynomials, but a single one is 1/2.
fn unipc_target(t: &Trace, n: usize, order: usize, bh: Bh, corrector: bool) -> Lin {
    let h = t.gap(n, n + 1);
    let b = if bh == Bh::H { 1.0 / phi(1, h) } else { 1.0 };
    let mut nodes: Vec<usize> = (1..order).map(|j| n - j).collect();
    let mut r: Vec<f64> = nodes.iter().map(|&m| -t.gap(m, n) / h).collect();
    if corrector {
        nodes.push(n + 1);
        r.push(1.0);
    }
    let rho = match r.len() {
        1 => vec![0.5],
        _ => quadrature(&r, |k| factorial(k + 1) * phi(k + 2, h) / (phi(1, h) * b)),
    };
    let mut target = t.denoised(n);
    for (i, &m) in nodes.iter().enumerate() {
        target = target + (t.denoised(m) - t.denoised(n)) * (b * rho[i] / r[i]);
    }
    target
}
