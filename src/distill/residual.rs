//! What the distance of a run to the teacher's is made of: its end point, features of that which the host computes, or
//! both; for a fit to trajectories the states on the way too. Knows no unknowns and no fit.
//!
//! Whatever is compared is a list of tensors, its *parts*. A distance is the sum over the parts of their Euclidean
//! lengths, each times its factor.

use std::borrow::Cow;
use std::rc::Rc;

use super::account::Caller;
use super::config::Objective;
use super::evaluator::Evaluator;
use super::{Config, Phase};
use crate::error::{Error, Result, Status};
use crate::sample::{Sampler, Step};
use crate::schedule::Schedule;
use crate::tensor::Tensors;

/// How distances between end points and between their features make one.
#[derive(Debug, Clone, Copy)]
pub struct Mix {
    /// Share of the features, 0 to 1.
    weight: f64,
    /// Root mean square lengths of the teacher's end points and of their features, once they are known. Only a mix
    /// needs them.
    pub units: Option<[f64; 2]>,
}

impl Mix {
    pub fn of(config: &Config) -> Self {
        Self { weight: config.feature_weight.unwrap_or(0.0), units: None }
    }

    /// Whether the end point itself is a part.
    pub fn has_state(self) -> bool {
        self.weight < 1.0
    }

    /// Whether its features are.
    pub fn has_features(self) -> bool {
        self.weight > 0.0
    }

    /// Parts of an end point.
    pub fn parts(self) -> usize {
        usize::from(self.has_state()) + usize::from(self.has_features())
    }

    /// The same with the units that sums of squares over so many trajectories give, one for each part, unless it has
    /// units already.
    pub fn with_units(self, squares: &[f64], trajectories: f64) -> Self {
        match *squares {
            [states, features] if self.units.is_none() => {
                // All zeros: such a part has no distances either.
                let unit = |squares: f64| (squares / trajectories).sqrt().max(f64::MIN_POSITIVE.sqrt());
                Self { units: Some([unit(states), unit(features)]), ..self }
            }
            _ => self,
        }
    }

    /// The factor of each part of an end point: 1 where there is one part, which is measured in its own unit.
    pub fn factors(self) -> Vec<f64> {
        match self.units {
            Some([state, features]) if self.parts() == 2 => {
                vec![(1.0 - self.weight) / state, self.weight / features]
            }
            _ => vec![1.0; self.parts()],
        }
    }
}

/// What the teacher's run on one batch leaves.
pub struct Goal<T> {
    /// Of its end point.
    pub parts: Vec<T>,
    /// Where fits are to trajectories, the way there.
    path: Option<Path<T>>,
}

impl<T> Goal<T> {
    /// How far a state is from the teacher's at its noise level, where that is known.
    fn off_path<B: Tensors<Tensor = T>>(
        &self,
        tensors: &B,
        x: &T,
        sigma: f64,
        sigma_end: f64,
    ) -> Result<Option<T>> {
        let Some(path) = &self.path else { return Ok(None) };
        let mut off = tensors.alloc(x)?;
        let there = path.at(sigma, &self.parts[0], sigma_end).into_iter().map(|(factor, of)| (-factor, of));
        tensors.lincomb(&mut off, &std::iter::once((1.0, x)).chain(there).collect::<Vec<_>>())?;
        Ok(Some(off))
    }
}

/// The teacher's states at its own noise levels, and its predictions there.
struct Path<T> {
    nodes: Vec<(f64, T, T)>,
}

impl<T> Path<T> {
    /// The teacher's state at a noise level, as a combination of what it left: by cubic Hermite interpolation in
    /// sigma, as dx/dsigma = (x - D) / sigma is known at each node. `end` and its noise level: below the last node
    /// the state is on a straight line there, as the teacher's own last step is.
    fn at<'s>(&'s self, sigma: f64, end: &'s T, sigma_end: f64) -> Vec<(f64, &'s T)> {
        let last = self.nodes.len() - 1;
        let below = self.nodes.iter().position(|node| node.0 <= sigma);
        match below {
            Some(0) => {
                // At the teacher's first node or above it: along the slope there.
                let (level, x, denoised) = &self.nodes[0];
                let keep = sigma / level;
                vec![(keep, x), (1.0 - keep, denoised)]
            }
            None => {
                let (level, x, _) = &self.nodes[last];
                let along = (level - sigma) / (level - sigma_end);
                vec![(1.0 - along, x), (along, end)]
            }
            Some(low) => {
                let (from, to) = (&self.nodes[low - 1], &self.nodes[low]);
                let width = to.0 - from.0;
                let t = (sigma - from.0) / width;
                let (values, slopes) = hermite(t);
                let [a, b] = [slopes[0] * width / from.0, slopes[1] * width / to.0];
                vec![(values[0] + a, &from.1), (-a, &from.2), (values[1] + b, &to.1), (-b, &to.2)]
            }
        }
    }
}

/// The cubic on [0, 1] with given values and slopes at its ends: the coefficients of the values and of the slopes.
fn hermite(t: f64) -> ([f64; 2], [f64; 2]) {
    let rise = t * t * (3.0 - 2.0 * t);
    ([1.0 - rise, rise], [t * (1.0 - t).powi(2), t * t * (t - 1.0)])
}

impl<B: Tensors> Evaluator<'_, B> {
    /// The parts of an end point on the current batch.
    pub fn parts(&mut self, end: B::Tensor) -> Result<Vec<B::Tensor>> {
        let features = if self.mix.has_features() { Some(self.features(&end)?) } else { None };
        let state = self.mix.has_state().then_some(end);
        Ok(state.into_iter().chain(features).collect())
    }

    /// Runs the teacher on the current batch.
    pub fn teach(
        &mut self,
        teacher: &Schedule,
        index: u64,
        x_t: &B::Tensor,
        keeps_path: bool,
    ) -> Result<Rc<Goal<B::Tensor>>> {
        let phase = std::mem::replace(&mut self.account.progress.phase, Phase::Teacher);
        let tensors = self.tensors;
        let mut path = keeps_path.then_some(Path { nodes: Vec::new() });
        let mut keep = |step: &Step<B::Tensor>| {
            if let Some(path) = &mut path {
                path.nodes.push((step.sigma, tensors.copy(step.x)?, tensors.copy(step.denoised)?));
            }
            Ok(())
        };
        let mut run = Sampler::new(tensors, Cow::Borrowed(teacher), x_t)?;
        run.run(&mut |x, call, denoised| self.call(Caller::Teacher, x, call, denoised), &mut keep)
            .map_err(|e| Error::new(e.status, format!("the teacher on batch {index}: {}", e.message)))?;
        let end = tensors.copy(run.state())?; // the run's own memory goes
        drop(run);
        let parts = self.parts(end)?;
        self.check_finite(index, &parts)?;
        self.account.progress.phase = phase;
        Ok(Rc::new(Goal { parts, path }))
    }

    /// Refuses features that are not finite where the end point is.
    fn check_finite(&self, index: u64, parts: &[B::Tensor]) -> Result<()> {
        let Some(features) = parts.last().filter(|_| self.mix.has_features()) else { return Ok(()) };
        let squares = self.tensors.gram(&[features])?;
        let Some(b) = squares.iter().position(|s| !s.is_finite()) else { return Ok(()) };
        let message = format!(
            "features of the teacher's end point on batch {index}, trajectory {b}, are not finite; they must be \
             where the end point is"
        );
        Err(Error::new(Status::NonFinite, message))
    }

    /// Goes on to the end of a run, and takes the residual of what it passes: a vector for each part. Of a run that
    /// branched from another one, those of the last parts, which alone are different.
    pub fn residual(&mut self, goal: &Goal<B::Tensor>, run: Sampler<&B>) -> Result<Vec<B::Tensor>> {
        let tensors = self.tensors;
        let mut run = run.unchecked();
        let mut residual = Vec::new();
        let sigma_end = run.schedule().sigma_end();
        let mut passed = |step: &Step<B::Tensor>| {
            if step.index > 0 {
                residual.extend(goal.off_path(tensors, step.x, step.sigma, sigma_end)?);
            }
            Ok(())
        };
        run.run(&mut |x, call, denoised| self.call(Caller::Student, x, call, denoised), &mut passed)?;
        residual.extend(self.end_residual(goal, run.into_state())?);
        Ok(residual)
    }

    /// That of a whole run of `schedule` which is over, with its state at each node.
    pub fn residual_of(
        &mut self,
        goal: &Goal<B::Tensor>,
        schedule: &Schedule,
        states: &[B::Tensor],
        end: B::Tensor,
    ) -> Result<Vec<B::Tensor>> {
        let mut residual = Vec::new();
        for (node, x) in states.iter().enumerate().skip(1) {
            residual.extend(goal.off_path(self.tensors, x, schedule.sigma(node), schedule.sigma_end())?);
        }
        residual.extend(self.end_residual(goal, end)?);
        Ok(residual)
    }

    /// That of an end point alone.
    pub fn end_residual(&mut self, goal: &Goal<B::Tensor>, end: B::Tensor) -> Result<Vec<B::Tensor>> {
        let parts = self.parts(end)?;
        parts.iter().zip(&goal.parts).map(|(a, b)| self.difference(a, b)).collect()
    }

    /// The factor of each part of a residual of a schedule with so many nodes: a mean over the states at its nodes,
    /// where fits are to trajectories.
    pub fn factors(&self, nfe: usize) -> Vec<f64> {
        let mut factors = self.mix.factors();
        if self.config.objective == Objective::Trajectory {
            let each = factors[0] / nfe as f64;
            factors.splice(0..1, std::iter::repeat_n(each, nfe));
        }
        factors
    }

    /// Sum over the batch's trajectories of the lengths of a residual.
    pub fn summed_length(&self, residual: &[B::Tensor], factors: &[f64]) -> Result<f64> {
        let mut sum = 0.0;
        for (part, factor) in residual.iter().zip(factors) {
            sum += factor * self.summed_norm(part)?;
        }
        Ok(sum)
    }

    /// Sum of the norms of the batch's trajectories.
    pub fn summed_norm(&self, of: &B::Tensor) -> Result<f64> {
        Ok(self.tensors.gram(&[of])?.into_iter().map(f64::sqrt).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Cpu, CpuTensor, Dtype};

    fn tensor(value: f64) -> CpuTensor {
        CpuTensor::from_f64(Dtype::F64, &[1, 1], &[value]).unwrap()
    }

    /// A path of x(sigma) whose predictions are what its slope says, interpolated at `sigma`.
    fn interpolated(x: fn(f64) -> f64, slope: fn(f64) -> f64, levels: &[f64], sigma: f64) -> f64 {
        let node = |s: &f64| (*s, tensor(x(*s)), tensor(x(*s) - s * slope(*s)));
        let path = Path { nodes: levels.iter().map(node).collect() };
        let end = tensor(x(0.0));
        let mut out = tensor(0.0);
        Cpu.lincomb(&mut out, &path.at(sigma, &end, 0.0)).unwrap();
        out.to_f64()[0]
    }

    #[test]
    fn a_path_of_third_degree_is_exact_between_its_nodes_and_a_smooth_one_of_fourth_order() {
        let cubic: fn(f64) -> f64 = |s| 1.0 - 2.0 * s + 0.3 * s * s - 0.1 * s * s * s;
        let slope: fn(f64) -> f64 = |s| -2.0 + 0.6 * s - 0.3 * s * s;
        for sigma in [4.0, 3.1, 2.0, 1.7, 1.0] {
            let found = interpolated(cubic, slope, &[4.0, 2.0, 1.0], sigma);
            assert!((found - cubic(sigma)).abs() < 1e-12, "{sigma}: {found}");
        }
        let error = |h: f64| {
            let levels = [1.0 + h, 1.0];
            (interpolated(f64::sin, f64::cos, &levels, 1.0 + h / 2.0) - (1.0 + h / 2.0).sin()).abs()
        };
        assert!(error(0.4) / error(0.2) > 12.0);
    }

    #[test]
    fn below_its_last_node_a_path_goes_straight_to_the_end() {
        let found = interpolated(|s| 5.0 + s * s, |s| 2.0 * s, &[2.0, 1.0], 0.5);
        assert!((found - 5.5).abs() < 1e-12, "{found}");
    }

    #[test]
    fn each_part_of_a_mix_counts_in_its_own_unit() {
        let config = |weight| Config { feature_weight: Some(weight), ..Config::default() };
        assert_eq!(Mix::of(&config(0.0)).factors(), [1.0]);
        assert_eq!(Mix::of(&config(1.0)).with_units(&[4.0], 1.0).factors(), [1.0]);
        let mix = Mix::of(&config(0.25)).with_units(&[8.0, 200.0], 2.0);
        assert_eq!(mix.factors(), [0.75 / 2.0, 0.25 / 10.0]);
        // Units that are known stay.
        assert_eq!(mix.with_units(&[1.0, 1.0], 1.0).factors(), mix.factors());
    }
}
