//! Online Gauss-Newton: every linearisation is on trajectories that no step has seen before, and leaves
//! behind only its quadratic model, which fades as newer ones come. Sees numbers and a trait of
//! measurements: no schedule, no tensor.
//!
//! The objective is a mean of Euclidean lengths over trajectories. A batch of some ten trajectories has
//! fewer numbers to say than a fit of 25 to 50 unknowns can overfit to; the models of earlier batches
//! hold it back, and cost nothing. Between linearisations the Jacobian follows the trials that are
//! made anyway (Broyden 1965, good update).

use nalgebra::{Cholesky, DMatrix, DVector};

use crate::error::Result;
use crate::memory;

/// The mean distance around a point: its value, gradient, and the Gauss-Newton matrix of the mean of
/// lengths, mean of J^T J / distance.
#[derive(Debug, Clone, PartialEq)]
pub struct Normal {
    pub distance: f64,
    pub gradient: DVector<f64>,
    pub matrix: DMatrix<f64>,
}

/// What one trial says of the Jacobian: J += (end - end predicted) `weights`^T.
#[derive(Debug, Clone, PartialEq)]
pub struct Correction {
    /// The step of the trial, by which the Jacobian predicts the end.
    pub step: Vec<f64>,
    pub weights: Vec<f64>,
}

/// What can be asked of the thing that is fitted.
pub trait Objective {
    /// The nearest point to `point` that exists; None where there is none near.
    fn bounded(&self, point: &[f64]) -> Option<Vec<f64>>;

    /// Linearises at `point` on `trajectories` fresh trajectories (or somewhat more), which stay those of
    /// the calls below. None where something is not finite.
    fn linearise(&mut self, point: &[f64], trajectories: usize) -> Result<Option<Normal>>;

    /// Mean distance at another point, on the same trajectories; infinite where it diverges.
    fn trial(&mut self, point: &[f64]) -> Result<f64>;

    /// The normal equations after the last trial: at its point if that is `accepted`, else where they
    /// were; by a Jacobian to which `correction` was made.
    fn update(&mut self, accepted: bool, correction: Option<&Correction>) -> Result<Normal>;
}

/// Damping of the first step, relative to the diagonal. 0.01 to 0.1 end alike.
const FIRST_DAMPING: f64 = 0.01;
/// Directions that hardly matter are many and together worth much: with 0.01, 0.001, 1e-4, 1e-5 and 1e-6 fits
/// of 8 NFE end at 0.096, 0.090, 0.084, 0.078, 0.078 (digits, guidance 3, 25,000 image-calls).
const LEAST_DAMPING: f64 = 1e-6;
/// By what damping rises after a trial that failed, and falls after one that kept half its promise.
const DAMPING_STEP: f64 = 4.0;
/// Unknowns that hardly matter yet are damped as if they mattered this much of the mean; else noise
/// would send them far away. 0.03 to 0.3 end alike; the worst seeds are better with more.
const DAMPING_FLOOR: f64 = 0.3;
/// Trials on a linearisation, at most: a trial costs a tenth of it. Three are too few where convergence
/// is slow (0.108 against 0.096 at guidance 1), ten gain nothing.
const TRIALS: usize = 6;
const FAILURES: usize = 3;
/// A trial that gains less than this, relatively, is the last one.
const WORTH_A_TRIAL: f64 = 0.004;
/// A trial that ends this many times as far says nothing of the Jacobian.
const FAR: f64 = 20.0;

/// How much the models of all batches before count after batch `index`, from 0: little while the point
/// moves far, more and more as it settles. A fixed 0.4 ends at 0.2515, 0.7 at 0.276, this at 0.2355
/// (digits, guidance 3, 5 NFE).
fn memory(index: usize) -> f64 {
    1.0 - 1.0 / (1.4 + 0.4 * index as f64)
}

/// Trajectories of batch `index`: few while the gradient is large against their noise. Batches of 8 from
/// the first leave 8 NFE a sixth farther at 25,000 image-calls (guidance 1: 0.040 against 0.034), 16 a third.
pub fn trajectories_of(index: usize) -> usize {
    if index < 8 { 4 } else { 8 }
}

/// The quadratic model that a batch left behind.
#[derive(Debug, Clone)]
struct Past {
    point: DVector<f64>,
    normal: Normal,
    /// In trajectories.
    weight: f64,
}

impl Past {
    /// Change of the model's value from its own point to `point`.
    fn change(&self, point: &DVector<f64>) -> f64 {
        let by = point - &self.point;
        self.normal.gradient.dot(&by) + 0.5 * by.dot(&(&self.normal.matrix * &by))
    }
}

/// What a batch did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Batch {
    /// Distance on its trajectories before it was fitted to them: no fit has seen them.
    pub fresh: f64,
    /// And after.
    pub fitted: f64,
}

/// Square matrices that a batch makes at a time, at most.
const MATRICES: usize = 12;

/// A fit in work.
#[derive(Debug, Clone)]
pub struct Online {
    pub point: Vec<f64>,
    past: Vec<Past>,
    damping: f64,
    /// Batches so far.
    pub batches: usize,
}

impl Online {
    pub fn new(point: Vec<f64>) -> Self {
        Self { point, past: Vec::new(), damping: FIRST_DAMPING, batches: 0 }
    }

    /// One linearisation on fresh trajectories, and the steps that it gives. None where it was not finite:
    /// the point stays.
    pub fn batch(&mut self, on: &mut dyn Objective) -> Result<Option<Batch>> {
        memory::room(MATRICES * size_of::<f64>() * self.point.len().pow(2))?;
        let size = trajectories_of(self.batches);
        let index = self.batches;
        self.batches += 1;
        let Some(normal) = on.linearise(&self.point, size)? else { return Ok(None) };
        let fresh = normal.distance;
        let own = size as f64;
        let (point, normal) = self.steps(on, normal, own)?;
        // A batch of failures must not tie the next one's hands.
        self.damping = self.damping.min(1.0);
        let fitted = normal.distance;
        self.point = point.as_slice().to_vec();
        self.past.push(Past { point, normal, weight: own });
        self.past.iter_mut().for_each(|past| past.weight *= memory(index));
        self.past.retain(|past| past.weight > 1e-3);
        Ok(Some(Batch { fresh, fitted }))
    }

    /// Damped steps from a linearisation, which counts as `own` trajectories: where they end, and the normal
    /// equations there.
    fn steps(
        &mut self,
        on: &mut dyn Objective,
        mut normal: Normal,
        own: f64,
    ) -> Result<(DVector<f64>, Normal)> {
        let total = own + self.past.iter().map(|past| past.weight).sum::<f64>();
        let mut point = DVector::from_column_slice(&self.point);
        let mut failures = 0;
        for _ in 0..TRIALS {
            let (gradient, matrix) = self.model(&point, &normal, own, total);
            let scale = scales(&matrix);
            let wanted = solve(&gradient, &matrix, &scale, self.damping)
                .and_then(|step| on.bounded((&point + step).as_slice()))
                .map(DVector::from_vec);
            let mut accepted = false;
            if let Some(there) = wanted.filter(|there| *there != point) {
                let step = &there - &point;
                let promised = -(gradient.dot(&step) + 0.5 * step.dot(&(&matrix * &step)));
                let distance = on.trial(there.as_slice())?;
                let before = normal.distance;
                let gain = (own * (before - distance) + self.prior(&point) - self.prior(&there)) / total;
                accepted = gain > 0.0;
                let correction = (distance < FAR * before).then(|| corrected(&step, &scale));
                normal = on.update(accepted, correction.as_ref())?;
                if accepted {
                    point = there;
                    if gain > 0.5 * promised {
                        self.damping = (self.damping / DAMPING_STEP).max(LEAST_DAMPING);
                    }
                    if gain < WORTH_A_TRIAL * before {
                        break;
                    }
                }
            }
            if !accepted {
                self.damping *= DAMPING_STEP;
                failures += 1;
                if failures == FAILURES {
                    break;
                }
            }
        }
        Ok((point, normal))
    }

    /// What the models of all batches before say of a point, but for a constant.
    fn prior(&self, point: &DVector<f64>) -> f64 {
        self.past.iter().map(|past| past.weight * past.change(point)).sum()
    }

    /// Gradient and matrix of the batch and all models before it, at `point`.
    fn model(
        &self,
        point: &DVector<f64>,
        normal: &Normal,
        own: f64,
        total: f64,
    ) -> (DVector<f64>, DMatrix<f64>) {
        let mut gradient = &normal.gradient * own;
        let mut matrix = &normal.matrix * own;
        for past in &self.past {
            let there = &past.normal.gradient + &past.normal.matrix * (point - &past.point);
            gradient += there * past.weight;
            matrix += &past.normal.matrix * past.weight;
        }
        (gradient / total, matrix / total)
    }
}

fn scales(matrix: &DMatrix<f64>) -> DVector<f64> {
    let diagonal = matrix.diagonal();
    let floor = DAMPING_FLOOR * diagonal.mean();
    diagonal.map(|d| d.max(floor))
}

/// The step of (matrix + damping scale) step = -gradient.
fn solve(
    gradient: &DVector<f64>,
    matrix: &DMatrix<f64>,
    scale: &DVector<f64>,
    damping: f64,
) -> Option<DVector<f64>> {
    let damped = matrix + DMatrix::from_diagonal(&(scale * damping));
    Cholesky::new(damped).map(|c| c.solve(&-gradient)).filter(|step| step.iter().all(|s| s.is_finite()))
}

/// Broyden's correction, in the metric of the damping.
fn corrected(step: &DVector<f64>, scale: &DVector<f64>) -> Correction {
    let scaled = step.component_mul(scale);
    let length = step.dot(&scaled);
    Correction { step: step.as_slice().to_vec(), weights: (scaled / length).as_slice().to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Trajectories whose end is linear in the unknowns: mean over i of |A_i x - b_i|.
    struct Linear {
        /// For each trajectory, rows of A and b.
        ends: Vec<(DMatrix<f64>, DVector<f64>)>,
        /// Unknown 0 stays below this.
        bound: f64,
        next: usize,
        now: Vec<usize>,
        point: DVector<f64>,
        tried: DVector<f64>,
        trials: usize,
    }

    fn noise(state: &mut u64) -> f64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    impl Linear {
        /// `spread`: of the b_i about A_i `best`; `shape` maps unknowns to what the ends see.
        fn new(best: &[f64], spread: f64, shape: impl Fn(usize, usize, f64) -> f64) -> Self {
            let mut state = 5;
            let best = DVector::from_column_slice(best);
            let k = best.len();
            let ends = (0..400).map(|_| {
                let a = DMatrix::from_fn(12, k, |i, j| shape(i, j, noise(&mut state)));
                let b = &a * &best + DVector::from_fn(12, |_, _| spread * noise(&mut state));
                (a, b)
            });
            let zero = DVector::zeros(k);
            let (point, tried) = (zero.clone(), zero);
            Self { ends: ends.collect(), bound: f64::INFINITY, next: 0, now: vec![], point, tried, trials: 0 }
        }

        fn distance(&self, of: &[usize], x: &DVector<f64>) -> f64 {
            of.iter().map(|&i| (&self.ends[i].0 * x - &self.ends[i].1).norm()).sum::<f64>() / of.len() as f64
        }

        fn normal(&self) -> Normal {
            let k = self.point.len();
            let mut normal =
                Normal { distance: 0.0, gradient: DVector::zeros(k), matrix: DMatrix::zeros(k, k) };
            for &i in &self.now {
                let (a, b) = &self.ends[i];
                let r = a * &self.point - b;
                let part = 1.0 / (r.norm() * self.now.len() as f64);
                normal.distance += r.norm() / self.now.len() as f64;
                normal.gradient += a.transpose() * &r * part;
                normal.matrix += a.transpose() * a * part;
            }
            normal
        }
    }

    impl Objective for Linear {
        fn bounded(&self, point: &[f64]) -> Option<Vec<f64>> {
            let mut point = point.to_vec();
            point[0] = point[0].min(self.bound);
            Some(point)
        }

        fn linearise(&mut self, point: &[f64], trajectories: usize) -> Result<Option<Normal>> {
            self.now = (self.next..self.next + trajectories).map(|i| i % self.ends.len()).collect();
            self.next += trajectories;
            self.point = DVector::from_column_slice(point);
            Ok(Some(self.normal()).filter(|normal| normal.distance.is_finite()))
        }

        fn trial(&mut self, point: &[f64]) -> Result<f64> {
            self.trials += 1;
            self.tried = DVector::from_column_slice(point);
            Ok(self.distance(&self.now, &self.tried))
        }

        fn update(&mut self, accepted: bool, _: Option<&Correction>) -> Result<Normal> {
            if accepted {
                self.point = self.tried.clone();
            }
            Ok(self.normal())
        }
    }

    /// Distances over all trajectories: of the fit after so many batches, and of `best`.
    fn fitted(on: &mut Linear, batches: usize, best: &[f64]) -> (f64, f64, Vec<f64>) {
        let mut fit = Online::new(vec![0.0; best.len()]);
        for _ in 0..batches {
            fit.batch(on).unwrap().unwrap();
        }
        let all: Vec<usize> = (0..on.ends.len()).collect();
        let at = |x: &[f64]| on.distance(&all, &DVector::from_column_slice(x));
        (at(&fit.point), at(best), fit.point)
    }

    #[test]
    fn noise_between_batches_averages_out() {
        let best = [1.0, -2.0, 0.5, 3.0];
        let mut on = Linear::new(&best, 1.0, |_, _, v| v);
        let (few, least, _) = fitted(&mut on, 2, &best);
        let (many, ..) = fitted(&mut on, 12, &best);
        assert!(many < few && many < 1.01 * least, "{few} {many} {least}");
    }

    #[test]
    fn what_can_be_met_is_met() {
        let best = [1.0, -2.0, 0.5];
        let mut on = Linear::new(&best, 0.0, |_, _, v| v);
        let (end, _, point) = fitted(&mut on, 8, &best);
        assert!(end < 1e-3, "{end} at {point:?}");
    }

    #[test]
    fn a_redundant_unknown_stays_near_and_one_without_effect_where_it_was() {
        // Unknowns 0 and 1 do the same, 2 does nothing.
        let shape = |i: usize, j: usize, _: f64| [((i % 5) as f64) - 2.0, ((i % 5) as f64) - 2.0, 0.0][j];
        let mut on = Linear::new(&[1.0, 1.0, 0.0], 0.2, shape);
        let (end, least, point) = fitted(&mut on, 8, &[1.0, 1.0, 0.0]);
        assert!(end < 1.02 * least && point[2] == 0.0, "{end} {least} {point:?}");
        assert!((point[0] + point[1] - 2.0).abs() < 0.1 && (point[0] - point[1]).abs() < 1e-6, "{point:?}");
    }

    #[test]
    fn a_bound_is_kept_and_the_rest_fitted() {
        let mut on = Linear::new(&[5.0, 2.0], 0.0, |i, j, _| if i % 2 == j { 1.0 } else { 0.0 });
        on.bound = 1.0;
        let (.., point) = fitted(&mut on, 10, &[5.0, 2.0]);
        assert!(point[0] == 1.0 && (point[1] - 2.0).abs() < 0.02, "{point:?}");
    }

    #[test]
    fn what_is_not_finite_ends_a_batch_and_nothing_else() {
        let mut on = Linear::new(&[1.0], 0.1, |_, _, v| v);
        on.ends[0].1[0] = f64::NAN;
        let mut fit = Online::new(vec![0.0]);
        assert_eq!(fit.batch(&mut on).unwrap(), None);
        assert_eq!((fit.point[0], on.trials), (0.0, 0));
        assert!(fit.batch(&mut on).unwrap().is_some() && fit.point[0] > 0.5);
    }
}
