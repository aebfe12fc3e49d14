//! The account of a run: calls made, seconds gone, limits, and what the host hears of all that. Knows
//! nothing of what the calls are for.

use std::time::Instant;

use super::ranks::Stop;
use super::{Config, Phase, Progress};

/// Whose call it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    Teacher = 0,
    Student = 1,
}

/// Calls and seconds.
pub struct Account {
    max_calls: Option<u64>,
    max_seconds: Option<f64>,
    ranks: u64,
    started: Instant,
    /// Seconds of the run that this one resumes.
    seconds_before: f64,
    /// Calls of all ranks, up to the last measurement: the teacher's, all others.
    shared: [u64; 2],
    /// Of this rank since then.
    own: [u64; 2],
    /// Calls that this process itself made, and the seconds since the first of them.
    live: (u64, Option<Instant>),
    /// The calls now made were made and counted by the run that this one resumes: they give back tensors
    /// that were lost with it. They count as time only, so that a run has the account, and takes the
    /// decisions, of one that was never interrupted.
    pub again: bool,
    pub callback_seconds: f64,
    pub progress: Progress,
    /// Why the run was ended, once it was.
    pub stopped: Option<Stop>,
}

impl Account {
    pub fn new(config: &Config, ranks: usize, batch: usize) -> Self {
        Self {
            max_calls: config.max_calls,
            max_seconds: config.max_seconds,
            ranks: ranks as u64,
            started: Instant::now(),
            seconds_before: 0.0,
            shared: [0; 2],
            own: [0; 2],
            live: (0, None),
            again: false,
            callback_seconds: 0.0,
            progress: Progress {
                struct_size: size_of::<Progress>(),
                phase: Phase::Teacher,
                nfe: config.nfe_from(),
                calls: 0,
                calls_expected: 0,
                distance: f64::INFINITY,
                handcrafted: f64::INFINITY,
                seconds_left: f64::INFINITY,
                batch,
                gain_expected: f64::INFINITY,
                unwritten: 0,
            },
            stopped: None,
        }
    }

    pub fn seconds(&self) -> f64 {
        self.seconds_before + self.started.elapsed().as_secs_f64()
    }

    /// Calls of all ranks up to the last measurement.
    pub fn calls(&self, by: Caller) -> u64 {
        self.shared[by as usize]
    }

    pub fn all_calls(&self) -> u64 {
        self.shared.iter().sum()
    }

    /// The limit that is reached, if one is.
    pub fn limit(&self) -> Option<Stop> {
        let used = self.all_calls() + self.own.iter().sum::<u64>() * self.ranks;
        if !self.again && self.max_calls.is_some_and(|limit| used >= limit) {
            return Some(Stop::Calls);
        }
        self.max_seconds.filter(|limit| self.seconds() >= *limit).map(|_| Stop::Seconds)
    }

    /// Before a call of the model.
    pub fn calling(&mut self) {
        self.live.1.get_or_insert_with(Instant::now);
    }

    /// After it.
    pub fn called(&mut self, by: Caller) {
        self.own[by as usize] += u64::from(!self.again);
        self.live.0 += 1;
        let calls = self.all_calls() + self.own.iter().sum::<u64>() * self.ranks;
        self.progress.calls = self.progress.calls.max(calls);
        self.expect(self.progress.calls_expected);
    }

    /// There will be so many calls in all: the time that is reported follows from that.
    pub fn expect(&mut self, calls: u64) {
        self.progress.calls_expected = calls.max(self.progress.calls);
        let left = (self.progress.calls_expected - self.progress.calls) as f64;
        self.progress.seconds_left = self.seconds_a_call().map_or(f64::INFINITY, |each| each * left);
        if let Some(limit) = self.max_seconds {
            let left = (limit - self.seconds()).max(0.0);
            self.progress.seconds_left = self.progress.seconds_left.min(left);
        }
    }

    /// What a call of the run takes by the clock, those of all ranks counted; unknown before the first.
    fn seconds_a_call(&self) -> Option<f64> {
        let (calls, since) = self.live;
        since.filter(|_| calls > 0).map(|s| s.elapsed().as_secs_f64() / (calls * self.ranks) as f64)
    }

    /// Calls that the limits leave, as far as is known; None where there is no limit.
    pub fn calls_left(&self) -> Option<u64> {
        let by_calls = self.max_calls.map(|limit| limit.saturating_sub(self.all_calls()));
        let by_clock = self.max_seconds.zip(self.seconds_a_call()).map(|(limit, each)| {
            // What is left for the library's own work, and for calls that are slower than those so far.
            const CAUTION: f64 = 0.95;
            (CAUTION * (limit - self.seconds()).max(0.0) / each) as u64
        });
        by_calls.into_iter().chain(by_clock).min()
    }

    /// Takes over a measurement that was read back.
    pub fn read_back(&mut self, calls: [u64; 2], seconds: f64) {
        self.own.iter_mut().zip(calls).for_each(|(own, calls)| *own += calls);
        self.seconds_before = self.seconds_before.max(seconds);
    }

    /// The calls of this rank since the last measurement; to be added up and handed to [`Account::share`].
    pub fn own(&self) -> [u64; 2] {
        self.own
    }

    pub fn share(&mut self, calls: [u64; 2]) {
        self.own = [0; 2];
        self.shared.iter_mut().zip(calls).for_each(|(all, calls)| *all += calls);
        self.progress.calls = self.progress.calls.max(self.all_calls());
    }
}
