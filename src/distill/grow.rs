//! Growth: where a schedule gets its next node. A node inserted with weight 0 changes nothing yet, so what
//! its own numbers would gain can be read off one Jacobian for each gap, before any is fitted.

use nalgebra::{Cholesky, DMatrix};

use super::evaluator::Evaluator;
use super::fitting::Fitting;
use super::optimise::{Normal, Objective};
use super::unknowns::{Parameter, Unknowns, inserted};
use crate::error::Result;
use crate::schedule::Schedule;
use crate::tensor::Tensors;

/// Damping of the predicted step, relative to the diagonal: no gap is chosen for a step that it cannot take.
const DAMPING: f64 = 0.1;

/// `below` with one node more, at the gap where the quadratic model promises most. None where there is
/// no room. Takes its trajectories from batch `first` on, whose end points are known.
pub fn grown<B: Tensors>(
    eval: &mut Evaluator<B>,
    below: &Schedule,
    goal: &Schedule,
    first: u64,
    trajectories: usize,
) -> Result<Option<Schedule>> {
    let config = eval.config;
    let mut best: Option<(f64, Schedule)> = None;
    for gap in usize::from(!config.fit_start)..=below.nfe() {
        let Some(start) = inserted(config, below, gap)? else { continue };
        let mut unknowns = Unknowns::of(config, &start)?;
        unknowns.list.retain(|unknown| match unknown.parameter {
            Parameter::Coefficient(age) => unknown.node == gap + age,
            Parameter::Weight(age) => unknown.node == gap || unknown.node == gap + age,
            _ => false,
        });
        let mut next = first;
        let values = unknowns.values();
        let found = match values.len() {
            0 => None,
            _ => Fitting::new(eval, &unknowns, goal, &mut next).linearise(&values, trajectories)?,
        };
        let gain = found.map_or(0.0, |normal| promised(&normal));
        if best.as_ref().is_none_or(|(most, _)| gain > *most) {
            best = Some((gain, start));
        }
    }
    Ok(best.map(|(_, start)| start))
}

/// What the damped step of a quadratic model gains.
fn promised(normal: &Normal) -> f64 {
    let diagonal = normal.matrix.diagonal();
    let scale = diagonal.map(|d| DAMPING * d.max(0.3 * diagonal.mean()));
    let step =
        Cholesky::new(&normal.matrix + DMatrix::from_diagonal(&scale)).map(|c| c.solve(&-&normal.gradient));
    step.map_or(0.0, |step| -(normal.gradient.dot(&step) + 0.5 * step.dot(&(&normal.matrix * &step))))
}
