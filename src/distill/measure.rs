//! The way of every measurement: read back from the checkpoint where it is there; else made by all ranks, each on
//! its own batches, added up, and written down. Knows nothing of what is measured.

use std::collections::HashSet;
use std::time::Instant;

use super::evaluator::Evaluator;
use super::journal::{Journal, Key, Kind, Record};
use super::ranks::{Outcome, Ranks};
use super::{Config, Problem};
use crate::error::{Error, Result, Status};
use crate::memory;
use crate::schedule::Schedule;
use crate::tensor::Tensors;

/// The checkpoint on rank 0, and the numbers of its keys on every rank. Refuses ranks that were given other
/// options or batches, and a checkpoint of other ones.
pub fn open<T>(
    config: &Config,
    problem: &mut dyn Problem<T>,
    ranks: &mut Ranks,
    batch: usize,
) -> Result<(Journal, HashSet<u64>)> {
    let plain = Config { checkpoint: None, max_calls: None, max_seconds: None, ..config.clone() };
    let version = env!("CARGO_PKG_VERSION");
    let head = serde_json::json!({"lmsd": version, "batch": batch, "config": plain}).to_string();
    let options = Key::of(Kind::Check).and_all(head.bytes().map(u64::from)).number();
    ranks
        .meet(problem, &[("number of trajectories in a batch", batch as u64), ("set of options", options)])?;
    let journal = match &config.checkpoint {
        Some(path) if ranks.rank == 0 => Journal::open(path, &head)?,
        _ => Journal::default(),
    };
    // float64 takes whole numbers of 32 bits as they are.
    let halves = journal.keys().into_iter().flat_map(|n| [(n >> 32) as f64, (n & 0xffff_ffff) as f64]);
    let known = match ranks.add_up(problem, Ok(Outcome::Values(halves.collect())), &mut [0; 2])? {
        Outcome::Values(all) => all.chunks_exact(2).map(|h| ((h[0] as u64) << 32) | h[1] as u64).collect(),
        Outcome::Stop(_) => HashSet::new(),
    };
    Ok((journal, known))
}

impl<B: Tensors> Evaluator<'_, B> {
    /// A measurement: read back from the checkpoint where it is there, else made by all ranks, `finish`ed
    /// from the rows of all batches, and written down. What is not finite comes out as infinite.
    pub fn recorded(
        &mut self,
        kind: Kind,
        key: Key,
        measure: impl FnOnce(&mut Self) -> Result<Rows>,
        length: usize,
        finish: impl FnOnce(Rows) -> Vec<f64>,
    ) -> Result<Vec<f64>> {
        let replayed = self.known.remove(&key.number());
        let mut width = 0;
        let own = if replayed {
            self.replay(kind, &key)
        } else {
            let measured = measure(self).map(|rows| {
                width = rows.width;
                Outcome::Values(rows.values)
            });
            measured.or_else(|error| self.account.stopped.map(Outcome::Stop).ok_or(error))
        };
        let clock = Instant::now();
        let mut calls = self.account.own();
        let all = self.ranks.add_up(self.problem, own, &mut calls);
        self.account.callback_seconds += clock.elapsed().as_secs_f64();
        self.account.share(calls);
        let mut values = match all? {
            Outcome::Values(values) if replayed => values,
            Outcome::Values(values) => finish(Rows { width, values }),
            Outcome::Stop(why) => return self.stop(why).map(|()| Vec::new()),
        };
        values.iter_mut().filter(|v| !v.is_finite()).for_each(|v| *v = f64::INFINITY);
        if values.len() != length {
            let message = "a line of the checkpoint does not fit this run; remove the checkpoint";
            return Err(Error::new(Status::Mismatch, message));
        }
        if !replayed {
            let seconds = self.account.seconds();
            let finite = values.iter().map(|v| v.is_finite().then_some(*v)).collect();
            self.journal.append(&Record { kind, key: key.number(), calls, seconds, values: finite });
            self.account.progress.unwritten = self.journal.unwritten();
        }
        Ok(values)
    }

    /// Whether a measurement with this key can be read back.
    pub fn knows(&self, key: &Key) -> bool {
        self.known.contains(&key.number())
    }

    /// The record of the checkpoint, on rank 0; nothing on the others.
    fn replay(&mut self, kind: Kind, key: &Key) -> Result<Outcome> {
        let Some(record) = self.journal.replay(kind, key)? else { return Ok(Outcome::Values(Vec::new())) };
        self.account.read_back(record.calls, record.seconds);
        Ok(Outcome::Values(record.values.into_iter().map(|v| v.unwrap_or(f64::INFINITY)).collect()))
    }

    /// Calls that the limits leave, the same number on every rank; None where there is no limit.
    pub fn calls_left(&mut self) -> Result<Option<u64>> {
        let own = self.account.calls_left().map_or(f64::INFINITY, |calls| calls as f64);
        let own = if self.ranks.rank == 0 { vec![own] } else { Vec::new() };
        match self.ranks.add_up(self.problem, Ok(Outcome::Values(own)), &mut [0; 2])? {
            Outcome::Values(values) => Ok(values.first().filter(|v| v.is_finite()).map(|v| *v as u64)),
            Outcome::Stop(why) => self.stop(why).map(|()| None),
        }
    }
}

/// Adds a schedule's numbers to a key.
pub fn with_schedule(key: Key, schedule: &Schedule) -> Key {
    let ends = [schedule.sigma_start(), schedule.sigma_end()].into_iter();
    let nodes = schedule.nodes().iter();
    let numbers = nodes.flat_map(|node| {
        [node.sigma, node.scale, node.guidance].into_iter().chain(node.weights.iter().copied())
    });
    key.and_all(ends.chain(numbers).map(f64::to_bits))
}

/// A row for each batch of a set: so they add up in the same order on any number of ranks.
pub struct Rows {
    pub width: usize,
    pub values: Vec<f64>,
}

impl Rows {
    /// Zeros.
    pub fn new(batches: usize, width: usize) -> Result<Self> {
        Ok(Self { width, values: memory::zeros(&[batches, width])? })
    }

    /// The row of the batch at this place of the set.
    pub fn of(&mut self, place: usize) -> &mut [f64] {
        &mut self.values[place * self.width..][..self.width]
    }

    /// The sum of all rows.
    pub fn total(&self) -> Vec<f64> {
        let mut total = vec![0.0; self.width];
        for row in self.values.chunks_exact(self.width.max(1)) {
            total.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        total
    }
}
