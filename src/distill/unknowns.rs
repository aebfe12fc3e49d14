//! The numbers of a schedule that may move, as one list: what each is, how it is read and set, and
//! which model call is the first that it changes. Knows no tensors and no optimiser.

use super::{Config, WeightSums};
use crate::error::{Error, Result};
use crate::schedule::{Node, Schedule, weights_between};

/// Neighbouring noise levels stay this far apart, as a ratio, or half as far, by their logarithm, as they
/// were at first: two nodes that meet are a finite difference with huge weights, out of which no fit finds back.
const NEAREST: f64 = 1.3;

/// A fit gives no call more than so many times the host's guidance.
const MOST_GUIDANCE: f64 = 4.0;

/// One number of one node.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Unknown {
    pub node: usize,
    pub parameter: Parameter,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Parameter {
    /// log sigma. The noise level that the model is called at stays, unless scales are fixed.
    Sigma,
    /// log of the noise level that the model is called at.
    ModelSigma,
    /// How much of the host's guidance the call has, 0 to [`MOST_GUIDANCE`].
    Guidance,
    /// The coefficient, in the state at the next node written over [x_T, D_0, D_1, ...], of the prediction that
    /// is so many nodes old. All other states keep theirs, so what moves is one state and what the
    /// model makes of it: on these coordinates fits converge in a third of the steps that the weights of the rows
    /// need, which move all states after them at once (digits, guidance 3, 8 NFE, 64 trajectories a step: 0.078 0.067
    /// 0.060 after 2, 3, 4 steps instead of 0.112 0.092 0.081). Where sums must be 1 the newest weight
    /// gives way.
    Coefficient(usize),
    /// The weight, in its row, of the prediction that is so many nodes old: where an order limit leaves no
    /// room for other rows to answer. Where sums must be 1 the newest one's gives way.
    Weight(usize),
}

impl Unknown {
    /// The first node whose model call it changes; the number of nodes where it changes none.
    pub fn first_call(self) -> usize {
        self.node + usize::from(matches!(self.parameter, Parameter::Coefficient(_) | Parameter::Weight(_)))
    }
}

/// The unknowns of one schedule, and the schedule that they are set in.
#[derive(Clone)]
pub struct Unknowns<'a> {
    config: &'a Config,
    template: Schedule,
    /// Its states over [x_T, D_0, D_1, ...], where coefficients are unknowns.
    states: Option<Vec<Vec<f64>>>,
    pub list: Vec<Unknown>,
}

impl<'a> Unknowns<'a> {
    /// Of `schedule`, every node of which first gets all the weights that it may have.
    pub fn of(config: &'a Config, schedule: &Schedule) -> Result<Self> {
        let template = padded(config, schedule)?;
        let mut list = Vec::new();
        for (node, of) in template.nodes().iter().enumerate() {
            if config.fit_sigmas && (node > 0 || config.fit_start) {
                list.push(Unknown { node, parameter: Parameter::Sigma });
            }
            if config.fit_scales {
                list.push(Unknown { node, parameter: Parameter::ModelSigma });
            }
            if config.fit_guidance {
                list.push(Unknown { node, parameter: Parameter::Guidance });
            }
            if config.fit_weights {
                let first = usize::from(config.weight_sums == WeightSums::Affine);
                let ages = first..of.weights.len();
                let parameter =
                    if config.order.is_none() { Parameter::Coefficient } else { Parameter::Weight };
                list.extend(ages.map(|age| Unknown { node, parameter: parameter(age) }));
            }
        }
        let states = (config.fit_weights && config.order.is_none())
            .then(|| (0..=template.nfe()).map(|n| template.expand(n)).collect());
        Ok(Self { config, template, states, list })
    }

    /// Their values in the schedule that they are of.
    pub fn values(&self) -> Vec<f64> {
        self.list.iter().map(|unknown| self.value(*unknown)).collect()
    }

    fn value(&self, unknown: Unknown) -> f64 {
        match (unknown.parameter, &self.states) {
            (Parameter::Coefficient(age), Some(states)) => {
                states[unknown.node + 1][1 + unknown.node - age] / self.unit(unknown)
            }
            _ => self.read(unknown, &self.template),
        }
    }

    /// Its value in a schedule.
    fn read(&self, Unknown { node, parameter }: Unknown, schedule: &Schedule) -> f64 {
        match parameter {
            Parameter::Sigma => schedule.sigma(node).ln(),
            Parameter::ModelSigma => schedule.model_sigma(node).ln(),
            Parameter::Guidance => schedule.nodes()[node].guidance,
            Parameter::Coefficient(age) => {
                schedule.expand(node + 1)[1 + node - age] / self.unit(Unknown { node, parameter })
            }
            Parameter::Weight(age) => schedule.nodes()[node].weights[age],
        }
    }

    /// What a state has of predictions in all, at first: coefficients count in it, so they are of the size of weights even
    /// near the top, where the state is nearly all noise.
    pub fn unit(&self, unknown: Unknown) -> f64 {
        1.0 - self.template.sigma(unknown.node + 1) / self.template.sigma_start()
    }

    /// The schedule with these values. No noise level leaves the range of the model: what would is set
    /// to its end. None where the sigmas do not decrease.
    pub fn schedule(&self, values: &[f64]) -> Option<Schedule> {
        let (config, template) = (self.config, &self.template);
        let mut states = self.states.clone();
        let mut nodes = template.nodes().to_vec();
        let mut model_sigmas: Vec<f64> = (0..nodes.len()).map(|n| template.model_sigma(n)).collect();
        for (unknown, &value) in self.list.iter().zip(values) {
            let node = &mut nodes[unknown.node];
            match unknown.parameter {
                // What is as it was stays so to the last bit.
                _ if value == self.value(*unknown) => {}
                Parameter::Sigma => {
                    node.sigma = value.exp().min(template.sigma_start());
                    if !config.fit_scales {
                        model_sigmas[unknown.node] = node.scale * node.sigma;
                    }
                }
                Parameter::ModelSigma => {
                    model_sigmas[unknown.node] = value.exp().clamp(config.sigma_min, config.sigma_max)
                }
                Parameter::Guidance => node.guidance = value.clamp(0.0, MOST_GUIDANCE),
                Parameter::Coefficient(age) => {
                    let state = &mut states.as_mut()?[unknown.node + 1];
                    state[1 + unknown.node - age] = value * self.unit(*unknown);
                }
                Parameter::Weight(age) => {
                    if config.weight_sums == WeightSums::Affine {
                        node.weights[0] -= value - node.weights[age];
                    }
                    node.weights[age] = value;
                }
            }
        }
        for n in 1..nodes.len() {
            let gap = NEAREST.min((template.sigma(n - 1) / template.sigma(n)).sqrt());
            nodes[n].sigma = nodes[n].sigma.min(nodes[n - 1].sigma / gap);
        }
        if nodes.last().is_some_and(|last| last.sigma <= template.sigma_end()) {
            return None;
        }
        if let (Some(before), Some(states)) = (&self.states, &states) {
            self.to_weights(before, states, &mut nodes);
        }
        for (n, (node, model_sigma)) in nodes.iter_mut().zip(model_sigmas).enumerate() {
            if node.sigma != template.sigma(n) || model_sigma != template.model_sigma(n) {
                node.scale = model_sigma / node.sigma;
            }
        }
        rebuilt(template, nodes).ok()
    }

    /// Sets the weights of `nodes` so that the states, which were as `before`, have these coefficients. Rows that do not
    /// change stay as they were to the last bit.
    fn to_weights(&self, before: &[Vec<f64>], states: &[Vec<f64>], nodes: &mut [Node]) {
        let template = &self.template;
        let sigma = |nodes: &[Node], n: usize| nodes.get(n).map_or(template.sigma_end(), |node| node.sigma);
        let same = |nodes: &[Node], n: usize| {
            sigma(nodes, n) == template.sigma(n) && states[n][1..] == before[n][1..]
        };
        for n in 0..nodes.len() {
            if same(nodes, n) && same(nodes, n + 1) {
                continue;
            }
            let (level, next) = (nodes[n].sigma, sigma(nodes, n + 1));
            nodes[n].weights = weights_between(&states[n][1..], &states[n + 1][1..], level, next);
            if self.config.weight_sums == WeightSums::Affine {
                nodes[n].weights[0] = 1.0 - nodes[n].weights[1..].iter().sum::<f64>();
            }
        }
    }

    /// What [`Unknowns::schedule`] makes of these values.
    pub fn bounded(&self, values: &[f64]) -> Option<Vec<f64>> {
        let schedule = self.schedule(values)?;
        Some(self.list.iter().map(|unknown| self.read(*unknown, &schedule)).collect())
    }

    /// The schedule at `values` with one unknown moved by `step` at most, and by how much: backward where
    /// forward leaves the model's range or passes a neighbour, less where both do.
    pub fn nudged(&self, values: &[f64], at: usize, step: f64) -> Result<(Schedule, f64)> {
        let here = self.list[at];
        let lengths = (0..20).map(|halvings| step / f64::from(1 << halvings));
        let mut tries = lengths.flat_map(|h| [h, -h]).filter_map(|h| {
            let mut other = values.to_vec();
            other[at] += h;
            let schedule = self.schedule(&other)?;
            let moved = self.read(here, &schedule) - values[at];
            (moved.abs() > 0.5 * h.abs()).then_some((schedule, moved))
        });
        tries.next().ok_or_else(|| Error::schedule("two sigmas are the same"))
    }
}

/// Gives every node all the weights it may have, the new ones 0. Where an order limit leaves fewer,
/// the oldest one kept takes over the sum of those cut off.
pub fn padded(config: &Config, schedule: &Schedule) -> Result<Schedule> {
    let mut nodes = schedule.nodes().to_vec();
    if config.fit_weights || config.order.is_some() {
        for (n, node) in nodes.iter_mut().enumerate() {
            let count = (n + 1).min(config.order.unwrap_or(n + 1));
            let cut: f64 = node.weights.iter().skip(count).sum();
            node.weights.resize(count, 0.0);
            node.weights[count - 1] += cut;
        }
    }
    rebuilt(schedule, nodes)
}

/// The same schedule with other nodes; it keeps its record of where it came from.
pub fn rebuilt(schedule: &Schedule, nodes: Vec<Node>) -> Result<Schedule> {
    let (start, end) = (schedule.sigma_start(), schedule.sigma_end());
    let mut other = Schedule::new(schedule.process(), start, end, nodes)?;
    other.made_by = schedule.made_by.clone();
    Ok(other)
}

/// The schedule with one node more, which as yet changes nothing: its own prediction has weight 0
/// everywhere, and it repeats its neighbour's row. `gap` 0 is in front of the first node. None
/// where there is no room. (In front, where sums must be 1, and under an order limit, the result
/// does change.)
pub fn inserted(config: &Config, schedule: &Schedule, gap: usize) -> Result<Option<Schedule>> {
    let old = schedule.nodes();
    let last = gap == old.len();
    let above = if gap == 0 { schedule.sigma_start() } else { old[gap - 1].sigma };
    let below = if last { schedule.sigma_end().max(config.sigma_min) } else { old[gap].sigma };
    if above < below * 1.02 {
        return Ok(None);
    }
    let sigma = (above * below).sqrt();
    let scale = match gap {
        0 => old[0].scale,
        _ if last => old[gap - 1].scale,
        _ => (old[gap - 1].scale * old[gap].scale).sqrt(),
    };
    let guidance = old[gap.min(old.len() - 1)].guidance;
    let weights = match gap {
        0 if config.weight_sums == WeightSums::Affine => vec![1.0],
        0 => vec![0.0],
        _ => std::iter::once(0.0).chain(old[gap - 1].weights.iter().copied()).collect(),
    };
    let mut nodes = old.to_vec();
    for (m, node) in nodes.iter_mut().enumerate().skip(gap) {
        let age = m + 1 - gap;
        if age <= node.weights.len() {
            node.weights.insert(age, 0.0);
        }
    }
    let scale = (scale * sigma).clamp(config.sigma_min, config.sigma_max) / sigma;
    nodes.insert(gap, Node { scale, guidance, ..Node::new(sigma, weights) });
    let grown = rebuilt(schedule, nodes)?;
    Ok(Some(if config.order.is_some() { padded(config, &grown)? } else { grown }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::solver::{Spec, solve};

    fn schedule() -> Schedule {
        solve(&Spec { solver: "dpmpp_2m".into(), nfe: 5, sigma_min: Some(0.01), ..Spec::default() }).unwrap()
    }

    fn at(unknowns: &Unknowns, node: usize, parameter: Parameter) -> usize {
        unknowns.list.iter().position(|unknown| *unknown == Unknown { node, parameter }).unwrap()
    }

    #[test]
    fn what_is_set_to_what_it_was_is_as_it_was() {
        for order in [None, Some(2)] {
            let config = Config { order, ..Config::default() };
            let unknowns = Unknowns::of(&config, &schedule()).unwrap();
            let same = unknowns.schedule(&unknowns.values()).unwrap();
            assert_eq!(same.nodes(), padded(&config, &schedule()).unwrap().nodes());
        }
    }

    #[test]
    fn a_coefficient_moves_one_state_and_no_other() {
        let config = Config::default();
        let unknowns = Unknowns::of(&config, &schedule()).unwrap();
        let before = unknowns.schedule(&unknowns.values()).unwrap();
        let (after, moved) =
            unknowns.nudged(&unknowns.values(), at(&unknowns, 2, Parameter::Coefficient(1)), 0.02).unwrap();
        for n in 0..=5 {
            for (j, (a, b)) in before.expand(n).into_iter().zip(after.expand(n)).enumerate() {
                let wanted = if (n, j) == (3, 2) { moved * (1.0 - before.sigma(3) / 80.0) } else { 0.0 };
                assert!((b - a - wanted).abs() < 1e-12, "state {n}, entry {j}: {a} {b}");
            }
        }
        assert_eq!(before.nodes()[..2], after.nodes()[..2]);
        assert_eq!(before.nodes()[4], after.nodes()[4]);
    }

    #[test]
    fn sums_stay_one_where_they_must() {
        let config = Config { weight_sums: WeightSums::Affine, ..Config::default() };
        let unknowns = Unknowns::of(&config, &schedule()).unwrap();
        let mut values = unknowns.values();
        values.iter_mut().enumerate().for_each(|(i, value)| *value += 0.01 * (i % 3) as f64);
        for node in unknowns.schedule(&values).unwrap().nodes() {
            assert!((node.weights.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{node:?}");
        }
    }

    #[test]
    fn neighbours_do_not_meet() {
        let config = Config::default();
        let unknowns = Unknowns::of(&config, &schedule()).unwrap();
        let mut values = unknowns.values();
        values[at(&unknowns, 3, Parameter::Sigma)] += 5.0;
        let there = unknowns.bounded(&values).unwrap();
        let apart = there[at(&unknowns, 2, Parameter::Sigma)] - there[at(&unknowns, 3, Parameter::Sigma)];
        assert!((apart - NEAREST.ln()).abs() < 1e-9, "{apart}");
    }
}
