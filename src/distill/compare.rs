//! Schedules compared on trajectories that no distillation has seen.

use super::evaluator::Evaluator;
use super::ranks::Ranks;
use super::run::range;
use super::{Config, Objective, Phase, Problem, TEST_BATCHES, teacher};
use crate::error::Result;
use crate::schedule::Schedule;
use crate::tensor::Tensors;

/// Mean distances of `schedules` to the teacher's end points over `config.held_out` trajectories
/// that no distillation sees (batches from [`TEST_BATCHES`]). Ranks share them too.
pub fn compare<B: Tensors>(
    tensors: &B,
    config: &Config,
    like: &B::Tensor,
    problem: &mut dyn Problem<B::Tensor>,
    schedules: &[&Schedule],
) -> Result<Vec<f64>> {
    Ranks::with(problem, |ranks, problem| {
        config.validate()?;
        let config = Config { checkpoint: None, objective: Objective::End, ..config.clone() };
        let config = config.with_features(problem.has_features())?;
        let teacher = teacher::schedule(&config, config.teacher_nfe.unwrap_or(teacher::OF_COMPARISONS))?;
        let mut eval = Evaluator::new(tensors, &config, like, problem, ranks)?;
        let batches = range(TEST_BATCHES, eval.batches_of(config.held_out))?;
        let own: usize = schedules.iter().map(|s| s.nfe()).sum();
        eval.account.progress.calls_expected = (batches.len() * (teacher.nfe() + own)) as u64;
        eval.account.progress.phase = Phase::Compare;
        eval.distances(&teacher, &batches, schedules, false)
    })
}
