//! The numbers of a schedule that may move, as one list: what each is, how it is read and set, and
//! which model call is the first that it changes. Knows no tensors and no optimiser.

use super::{Config, Sums};
use crate::error::{Error, Result};
use crate::schedule::{Node, Schedule};

/// One number of one node.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Unknown {
    pub node: usize,
    pub kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// log sigma. The noise level that the model is told stays, unless scales are fixed.
    Sigma,
    /// log of the noise level that the model is told.
    Told,
    /// The weight of the prediction that is so many nodes old. Where sums must be 1 the newest one's
    /// gives way.
    Weight(usize),
}

impl Unknown {
    /// The first node whose model call it changes; the number of nodes where it changes none.
    pub fn first_call(self) -> usize {
        self.node + usize::from(matches!(self.kind, Kind::Weight(_)))
    }

    fn get(self, schedule: &Schedule) -> f64 {
        match self.kind {
            Kind::Sigma => schedule.sigma(self.node).ln(),
            Kind::Told => schedule.model_sigma(self.node).ln(),
            Kind::Weight(age) => schedule.nodes()[self.node].weights[age],
        }
    }
}

/// The unknowns of one schedule, and the schedule that they are set in.
#[derive(Clone)]
pub struct Unknowns<'a> {
    config: &'a Config,
    template: Schedule,
    pub list: Vec<Unknown>,
}

impl<'a> Unknowns<'a> {
    /// Of `schedule`, every node of which first gets all the weights that it may have.
    pub fn of(config: &'a Config, schedule: &Schedule) -> Result<Self> {
        let template = padded(config, schedule)?;
        let mut list = Vec::new();
        for (node, of) in template.nodes().iter().enumerate() {
            if config.fit_sigmas && (node > 0 || config.fit_start) {
                list.push(Unknown { node, kind: Kind::Sigma });
            }
            if config.fit_scales {
                list.push(Unknown { node, kind: Kind::Told });
            }
            if config.fit_weights {
                let first = usize::from(config.sums == Sums::Affine);
                let ages = first..of.weights.len();
                list.extend(ages.map(|age| Unknown { node, kind: Kind::Weight(age) }));
            }
        }
        Ok(Self { config, template, list })
    }

    /// Their values in the schedule that they are of.
    pub fn values(&self) -> Vec<f64> {
        self.list.iter().map(|unknown| unknown.get(&self.template)).collect()
    }

    /// The schedule with these values. No noise level leaves the range of the model: what would is set
    /// to its end. None where the sigmas do not decrease.
    pub fn schedule(&self, values: &[f64]) -> Option<Schedule> {
        let (config, template) = (self.config, &self.template);
        let mut nodes = template.nodes().to_vec();
        let mut told: Vec<f64> = (0..nodes.len()).map(|n| template.model_sigma(n)).collect();
        for (unknown, &value) in self.list.iter().zip(values) {
            let node = &mut nodes[unknown.node];
            match unknown.kind {
                // What is as it was stays so to the last bit.
                _ if value == unknown.get(template) => {}
                Kind::Sigma => {
                    node.sigma = value.exp().min(template.sigma_start());
                    if !config.fit_scales {
                        told[unknown.node] = node.scale * node.sigma;
                    }
                }
                Kind::Told => told[unknown.node] = value.exp().clamp(config.sigma_min, config.sigma_max),
                Kind::Weight(age) => {
                    if config.sums == Sums::Affine {
                        node.weights[0] -= value - node.weights[age];
                    }
                    node.weights[age] = value;
                }
            }
        }
        if nodes.windows(2).any(|pair| pair[1].sigma >= pair[0].sigma) {
            return None;
        }
        for (n, (node, told)) in nodes.iter_mut().zip(told).enumerate() {
            if node.sigma != template.sigma(n) || told != template.model_sigma(n) {
                node.scale = told / node.sigma;
            }
        }
        rebuilt(template, nodes).ok()
    }

    /// What [`Unknowns::schedule`] makes of these values.
    pub fn bounded(&self, values: &[f64]) -> Option<Vec<f64>> {
        let schedule = self.schedule(values)?;
        Some(self.list.iter().map(|unknown| unknown.get(&schedule)).collect())
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
            let moved = here.get(&schedule) - values[at];
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
    let weights = match gap {
        0 if config.sums == Sums::Affine => vec![1.0],
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
    nodes.insert(gap, Node { sigma, scale, weights });
    let grown = rebuilt(schedule, nodes)?;
    Ok(Some(if config.order.is_some() { padded(config, &grown)? } else { grown }))
}
