//! Starts that were distilled once for exact models (benches/generic.py): mixtures of Gaussians with spectra like
//! those of pictures. No network is like them, but a fit that starts there is past what all have in
//! common: it ends nearer than one from the published field, above all at 7 calls and more, where that
//! has bad minima around it.

use std::sync::LazyLock;

use serde::Deserialize;

use super::unknowns::padded;
use super::{Config, WeightSums};
use crate::schedule::{MadeBy, Node, Process, Schedule, weights_between};

/// Standard deviation of the exact models' data.
const DEVIATION: f64 = 0.5;
/// By what the levels are multiplied, beside the deviation of the data: two data sets of one deviation have it at
/// different scales of their pictures.
const FACTORS: [f64; 9] = [0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0];

/// How many tables there are for one number of calls.
pub fn count(nfe: usize) -> usize {
    TABLES.iter().filter(|table| table.nfe == nfe).count()
}

/// Words of their records.
const SOLVER: &str = "generic";
const LEVELS: &str = ", levels times ";

/// For a process whose state is x0 plus noise, from sigma_max far above the data to 0.
#[derive(Debug, Deserialize)]
struct Table {
    model: String,
    nfe: usize,
    sigmas: Vec<f64>,
    /// The noise levels that the model is called at.
    model_sigmas: Vec<f64>,
    /// Coefficients of the predictions so far in the state after each node.
    states: Vec<Vec<f64>>,
}

static TABLES: LazyLock<Vec<Table>> =
    LazyLock::new(|| serde_json::from_str(include_str!("generic.json")).expect("a file of this repository"));

/// The tables of `nfe` calls for data of this standard deviation; of each one all its factors.
pub fn starts(config: &Config, nfe: usize, deviation: f64) -> Vec<Vec<Schedule>> {
    if !(config.fit_sigmas && config.fit_weights && deviation.is_finite()) {
        return Vec::new();
    }
    let tables = TABLES.iter().filter(|table| table.nfe == nfe);
    let unit = deviation / DEVIATION;
    tables
        .map(|table| FACTORS.iter().filter_map(|factor| table.at(config, *factor, unit)).collect())
        .collect()
}

/// The model that a start was distilled for; None for one that is no table of these.
pub fn model_of(start: &Schedule) -> Option<&str> {
    let by = start.made_by.as_ref().filter(|by| by.solver.as_deref() == Some(SOLVER))?;
    by.grid.as_deref()?.rsplit_once(LEVELS).map(|(model, _)| model)
}

impl Table {
    fn at(&self, config: &Config, factor: f64, unit: f64) -> Option<Schedule> {
        // The state of a flow model is (1 - t) times that of one with sigma = t / (1 - t).
        let flow = config.process == Process::Flow;
        let level = |sigma: f64| {
            let sigma = factor * unit * sigma;
            if flow { sigma / (1.0 + sigma) } else { sigma }
        };
        let (top, end) = (config.sigma_max, config.sigma_end);
        let mut sigmas: Vec<f64> = self.sigmas.iter().map(|sigma| level(*sigma).min(top)).collect();
        if !config.fit_start {
            sigmas[0] = top;
        }
        sigmas.push(end);
        let mut nodes = Vec::with_capacity(self.nfe);
        let mut before: Vec<f64> = Vec::new();
        for (n, (state, model_sigma)) in self.states.iter().zip(&self.model_sigmas).enumerate() {
            let (sigma, next) = (sigmas[n], sigmas[n + 1]);
            if sigma <= 1.001 * next {
                return None;
            }
            let model_sigma = if n == 0 && !config.fit_start { top } else { level(*model_sigma) };
            let model_sigma =
                if config.fit_scales { model_sigma.clamp(config.sigma_min, top) } else { sigma };
            let alpha = if flow { 1.0 - next } else { 1.0 };
            let state: Vec<f64> = state.iter().map(|c| alpha * c).collect();
            let mut weights = weights_between(&before, &state, sigma, next);
            if config.weight_sums == WeightSums::Affine {
                weights[0] = 1.0 - weights[1..].iter().sum::<f64>();
            }
            nodes.push(Node { scale: model_sigma / sigma, ..Node::new(sigma, weights) });
            before = state;
        }
        let mut schedule = Schedule::new(config.process, top, end, nodes).ok()?;
        schedule.made_by = Some(MadeBy {
            method: "distilled".into(),
            solver: Some(SOLVER.into()),
            grid: Some(format!("{}{LEVELS}{:.3}", self.model, factor * unit)),
            ..MadeBy::default()
        });
        padded(config, &schedule).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_is_a_schedule_of_either_process_with_the_same_states() {
        let ve = Config::default();
        let flow = Config { process: Process::Flow, sigma_min: 0.001, sigma_max: 1.0, ..Config::default() };
        for table in TABLES.iter() {
            let one = table.at(&ve, 1.0, 1.0).unwrap();
            let other = table.at(&flow, 1.0, 1.0).unwrap();
            assert_eq!((one.nfe(), other.nfe()), (table.nfe, table.nfe));
            for n in 0..table.nfe {
                let alpha = 1.0 - other.sigma(n + 1);
                let states = one.expand(n + 1).into_iter().zip(other.expand(n + 1));
                for (j, (a, b)) in states.enumerate().skip(1) {
                    assert!((alpha * a - b).abs() < 1e-9 * a.abs().max(1.0), "{}, {n}, {j}", table.model);
                }
                let sigma = other.sigma(n + 1) / (1.0 - other.sigma(n + 1));
                assert!((sigma - one.sigma(n + 1)).abs() < 1e-9, "{}, {n}", table.model);
            }
        }
    }

    #[test]
    fn hosts_that_start_at_the_top_get_tables_that_do() {
        let pinned = Config { fit_start: false, ..Config::default() };
        let all: Vec<Schedule> = starts(&pinned, 5, 1.0).concat();
        assert!(!all.is_empty() && all.iter().all(|s| s.sigma(0) == 80.0 && s.model_sigma(0) == 80.0));
    }
}
