//! The teacher: a published solver at as few calls as its own error allows, and its recorded run,
//! which tells of handcrafted schedules and of grids what no further model call is needed for.

use std::borrow::Cow;

use super::account::Caller;
use super::evaluator::Evaluator;
use super::journal::{Key, Kind};
use super::measure::{Rows, with_schedule};
use super::residual::Mix;
use super::{Config, Phase};
use crate::error::Result;
use crate::sample::Sampler;
use crate::schedule::Schedule;
use crate::solver::{self, Spec};
use crate::tensor::Tensors;

/// Calls of the run that is recorded.
pub const COARSE: usize = 20;
/// Calls of the run that its error is measured by.
pub const FINE: usize = 40;
/// The teacher of a comparison, where none is asked for: its own error is a hundredth of that of 8 calls.
pub const OF_COMPARISONS: usize = 50;
/// How the error falls with the number of calls: deis_3 from 20 to 50 calls, by 15 on two networks.
const ORDER: f64 = 2.5;
/// The teacher's own error is at most this much of the student's.
const SHARE: f64 = 0.1;
/// What a fit makes of the best handcrafted distance, to be on the safe side.
const STUDENT: f64 = 0.45;
const LEAST: usize = 16;
const MOST: usize = 100;

/// The teacher's schedule at so many calls.
pub fn schedule(config: &Config, nfe: usize) -> Result<Schedule> {
    let spec = config.levels().spec();
    let grid = config.teacher_grid.as_ref().map(|grid| grid.in_steps(nfe));
    solver::solve(&Spec { solver: config.teacher().into(), nfe, grid, ..spec })
}

/// A recorded run. All of it is linear in [x_T, D_0, ..., D_{n-1}] of each trajectory, so their inner
/// products say all there is to say of lengths.
pub struct Recording {
    pub schedule: Schedule,
    /// Coefficients of the states at each node, and of the end, over the basis.
    pub states: Vec<Vec<f64>>,
    /// Inner products of the basis, a square matrix for each trajectory.
    pub grams: Vec<Vec<f64>>,
    /// Mean distance of the recorded run's end to a finer one's.
    pub error: f64,
    /// What distances are made of, with the units of a mix.
    pub mix: Mix,
}

impl Recording {
    /// Number of vectors in the basis.
    pub fn basis(&self) -> usize {
        self.schedule.nfe() + 1
    }

    /// Mean length over the trajectories of a combination of the basis.
    pub fn length(&self, of: &[f64]) -> f64 {
        let square = |gram: &Vec<f64>| -> f64 {
            let rows = gram.chunks_exact(of.len()).zip(of);
            rows.map(|(row, a)| a * row.iter().zip(of).map(|(g, b)| g * b).sum::<f64>()).sum()
        };
        self.grams.iter().map(|gram| square(gram).max(0.0).sqrt()).sum::<f64>() / self.grams.len() as f64
    }

    /// Root mean square of the data.
    pub fn deviation(&self) -> f64 {
        let mut noise = vec![0.0; self.basis()];
        noise[0] = 1.0;
        let data = &self.states[self.schedule.nfe()];
        self.schedule.sigma_start() * self.length(data) / self.length(&noise)
    }

    /// Calls that the teacher needs where the best handcrafted schedule ends at `handcrafted`.
    pub fn teacher_nfe(&self, config: &Config, nfe: usize, handcrafted: f64) -> usize {
        if let Some(given) = config.teacher_nfe {
            return given;
        }
        let wanted = SHARE * STUDENT * handcrafted;
        let calls = COARSE as f64 * (self.error / wanted).powf(1.0 / ORDER);
        let calls = if calls.is_finite() { calls.ceil() as usize } else { FINE };
        calls.clamp(LEAST.max(2 * nfe), MOST.max(2 * nfe))
    }
}

/// Records the teacher on `batches`, and keeps the end points of a finer run of it there: that of
/// `config.teacher_nfe` calls, or of [`FINE`].
pub fn record<B: Tensors>(eval: &mut Evaluator<B>, batches: &[u64]) -> Result<Recording> {
    let coarse = schedule(eval.config, COARSE)?;
    let fine = schedule(eval.config, eval.config.teacher_nfe.unwrap_or(FINE))?;
    let (basis, parts) = (COARSE + 1, eval.mix.parts());
    let one = basis * basis + 2 * parts;
    let width = eval.batch * one;
    eval.account.progress.phase = Phase::Teacher;
    let measure = |eval: &mut Evaluator<B>| {
        let mut rows = Rows::new(batches.len(), width)?;
        for (place, index) in eval.own(batches) {
            let x_t = eval.begin(index)?;
            let tensors = eval.tensors;
            let goal = eval.teacher_end(&fine, index, &x_t)?;
            let mut predictions = Vec::with_capacity(COARSE);
            let mut run = Sampler::new(tensors, Cow::Borrowed(&coarse), &x_t)?;
            run.run(&mut |x, call, denoised| eval.call(Caller::Teacher, x, call, denoised), &mut |step| {
                predictions.push(tensors.copy(step.denoised)?);
                Ok(())
            })?;
            let all: Vec<&B::Tensor> = std::iter::once(&x_t).chain(&predictions).collect();
            let gram = tensors.gram(&all)?;
            let end = tensors.copy(run.state())?;
            let residual = eval.end_residual(&goal, end)?;
            let squares =
                |of: &[B::Tensor]| of.iter().map(|part| tensors.gram(&[part])).collect::<Result<Vec<_>>>();
            let (missed, lengths) = (squares(&residual)?, squares(&goal.parts)?);
            for (b, row) in rows.of(place).chunks_exact_mut(one).enumerate() {
                let (own, rest) = row.split_at_mut(basis * basis);
                own.copy_from_slice(&gram[b * basis * basis..][..basis * basis]);
                let each = missed.iter().map(|of| of[b].sqrt()).chain(lengths.iter().map(|of| of[b]));
                rest.iter_mut().zip(each).for_each(|(value, of)| *value = of);
            }
            eval.keep_end(index, goal);
        }
        Ok(rows)
    };
    let key = Key::of(Kind::Record).and_all(batches.iter().copied());
    let key = with_schedule(with_schedule(key, &coarse), &fine);
    if eval.knows(&key) {
        eval.lose_ends(batches);
    }
    let values = eval.recorded(Kind::Record, key, measure, batches.len() * width, |rows| rows.values)?;
    let each: Vec<&[f64]> = values.chunks_exact(one).collect();
    let sums = |part: usize| each.iter().map(|row| row[basis * basis + part]).sum::<f64>();
    let sums: Vec<f64> = (0..2 * parts).map(sums).collect();
    let count = each.len() as f64;
    let mix = eval.mix.with_units(&sums[parts..], count);
    Ok(Recording {
        states: (0..=COARSE).map(|n| padded(coarse.expand(n), basis)).collect(),
        grams: each.iter().map(|row| row[..basis * basis].to_vec()).collect(),
        error: mix.factors().iter().zip(&sums).map(|(factor, sum)| factor * sum).sum::<f64>() / count,
        mix,
        schedule: coarse,
    })
}

fn padded(mut vector: Vec<f64>, length: usize) -> Vec<f64> {
    vector.resize(length, 0.0);
    vector
}
