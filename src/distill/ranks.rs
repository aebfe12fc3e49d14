//! Many processes, one run. Every rank measures its own batches; what they find is added up, in the
//! order of the batches, so that each rank has the same numbers to the last bit, takes the same
//! steps, and ends with the schedules that one rank alone would have found.
//!
//! Ranks meet once for each measurement. First they say how it went, in a sum of fixed size: a rank
//! that failed, or that was asked to stop, can always join in that, wherever it was. Then they
//! add up the values, or hear the text of the failure. Knows nothing of what the numbers mean.

use super::Problem;
use crate::error::{Error, Result, Status};
use crate::memory;

/// Why a run may be ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The model calls that it may make are made.
    Calls,
    /// The time that it may take is over.
    Seconds,
    /// The host wished so.
    Cancelled,
}

/// In the order in which other ranks hear of them.
const STOPS: [Stop; 3] = [Stop::Calls, Stop::Seconds, Stop::Cancelled];

impl Stop {
    /// As reports say it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Calls => "calls",
            Self::Seconds => "seconds",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Bytes of an error's text that reach the other ranks.
const TEXT: usize = 400;
/// How a rank fared, where nothing went wrong; then FAILED; then the stops.
const WELL: f64 = 0.0;
const FAILED: f64 = 1.0;
const STOPPED: f64 = 2.0;

/// This rank among all.
pub struct Ranks {
    pub rank: usize,
    pub count: usize,
    /// The others know that the run is over; there is no next meeting.
    pub ended: bool,
}

/// What a rank has found of a measurement.
pub enum Outcome {
    /// Values to add up, as many on every rank; or on rank 0 only, which the others then get.
    Values(Vec<f64>),
    /// The run was ended.
    Stop(Stop),
}

impl Ranks {
    /// Does `work` as the rank that `problem` says. An error that the others have not heard of is told to them.
    pub fn with<T, V>(
        problem: &mut dyn Problem<T>,
        work: impl FnOnce(&mut Self, &mut dyn Problem<T>) -> Result<V>,
    ) -> Result<V> {
        let mut ranks = Self::of(problem)?;
        let result = work(&mut ranks, problem);
        if let (Err(error), false) = (&result, ranks.ended) {
            // Each rank returns its own.
            let _heard = ranks.add_up(problem, Err(error.clone()), &mut [0; 2]);
        }
        result
    }

    /// Refuses a rank that is none of `count`.
    fn of<T>(problem: &dyn Problem<T>) -> Result<Self> {
        let (rank, count) = problem.ranks();
        let (count, ended) = (count.max(1), false);
        if rank >= count {
            return Err(Error::argument(format!(
                "rank is {rank}; with {count} ranks it must be below {count}"
            )));
        }
        Ok(Self { rank, count, ended })
    }

    /// One meeting: what every rank has found, added up. `counters` are added up too, also where a rank
    /// stops or fails. A failure of any rank is an error on all of them, its own or the lowest rank's
    /// that failed; a stop stops all.
    pub fn add_up<T>(
        &mut self,
        problem: &mut dyn Problem<T>,
        own: Result<Outcome>,
        counters: &mut [u64; 2],
    ) -> Result<Outcome> {
        if self.count == 1 {
            return own;
        }
        let (state, length) = match &own {
            Ok(Outcome::Values(values)) => (WELL, values.len()),
            Ok(Outcome::Stop(why)) => (STOPPED + STOPS.iter().position(|w| w == why).unwrap_or(0) as f64, 0),
            Err(_) => (FAILED, 0),
        };
        let mut met = memory::zeros(&[self.count + 3])?;
        met[self.rank] = state;
        met[self.count] = if self.rank == 0 { length as f64 } else { 0.0 };
        met[self.count + 1] = counters[0] as f64;
        met[self.count + 2] = counters[1] as f64;
        self.sum(problem, &mut met)?;
        let (states, rest) = met.split_at(self.count);
        *counters = [rest[1] as u64, rest[2] as u64];

        if let Some(first) = states.iter().position(|state| *state == FAILED) {
            self.ended = true;
            let mut text = vec![0.0; TEXT];
            if let (true, Err(error)) = (first == self.rank, &own) {
                text[0] = f64::from(error.status as i32);
                text[1..].iter_mut().zip(error.message.bytes()).for_each(|(slot, byte)| *slot = byte.into());
            }
            self.sum(problem, &mut text)?;
            own?;
            let bytes: Vec<u8> = text[1..].iter().take_while(|b| **b != 0.0).map(|b| *b as u8).collect();
            let message =
                format!("rank {first}: {}", String::from_utf8_lossy(&bytes).trim_end_matches('\u{fffd}'));
            return Err(Error::new(Status::from_code(text[0] as i32), message));
        }
        if let Some(state) = states.iter().copied().find(|state| *state >= STOPPED) {
            self.ended = true;
            own?;
            return Ok(Outcome::Stop(STOPS[((state - STOPPED) as usize).min(STOPS.len() - 1)]));
        }
        let Ok(Outcome::Values(mut values)) = own else { return own };
        values.resize(rest[0] as usize, 0.0);
        if !values.is_empty() {
            self.sum(problem, &mut values)?;
        }
        Ok(Outcome::Values(values))
    }

    /// Finds out whether all ranks are there, once each, and were given the same: `what` is a list of
    /// names, each with a number that must be one and the same.
    pub fn meet<T>(&mut self, problem: &mut dyn Problem<T>, what: &[(&str, u64)]) -> Result<()> {
        if self.count == 1 {
            return Ok(());
        }
        self.add_up(problem, Ok(Outcome::Values(Vec::new())), &mut [0; 2])?;
        // float64 takes whole numbers of 32 bits as they are, and sums of them.
        let halves = what.iter().flat_map(|(_, n)| [n >> 32, n & 0xffff_ffff]);
        let own: Vec<f64> = std::iter::once(1).chain(halves).map(|n| n as f64).collect();
        let width = own.len();
        let mut all = memory::zeros(&[width, self.count])?;
        all[self.rank * width..][..width].copy_from_slice(&own);
        self.sum(problem, &mut all)?;
        let mut mismatch = |message| {
            self.ended = true;
            Err(Error::new(Status::Mismatch, message))
        };
        for (rank, its) in all.chunks(width).enumerate() {
            if its[0] != 1.0 {
                let message = format!(
                    "{} processes say that they are rank {rank} of {}; one of each is needed",
                    its[0], self.count
                );
                return mismatch(message);
            }
            if let Some(at) = (1..width).find(|&at| its[at] != all[at]) {
                let name = what[(at - 1) / 2].0;
                return mismatch(format!(
                    "rank {rank} was given another {name} than rank 0; all need the same"
                ));
            }
        }
        Ok(())
    }

    fn sum<T>(&mut self, problem: &mut dyn Problem<T>, values: &mut [f64]) -> Result<()> {
        problem.sum(values).inspect_err(|_| self.ended = true)
    }
}
