//! Noise, classes and progress of a run: what a distillation asks of its host.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use lmsd::Result;
use lmsd::distill::{HELD_OUT_BATCHES, Phase, Problem, Progress, TEST_BATCHES};
use lmsd::torch::tch::{self, Device, Kind, Tensor};

use crate::network::Network;

/// x_T and classes of trajectories by their numbers alone, whatever the batch.
pub struct Noise {
    pub seed: u32,
    pub shape: Vec<i64>,
    pub sigma_max: f64,
    pub classes: i64,
}

impl Noise {
    /// Trajectories `first`, ...: x_T [count, ...] float32 and classes [count] int64. Each is drawn by
    /// libtorch's CPU generator, seeded with seed * 2^32 + its number: normal numbers, then a class.
    pub fn draw(&self, first: u64, count: i64, device: Device) -> Result<(Tensor, Tensor)> {
        let (mut noise, mut classes) = (Vec::new(), Vec::new());
        for number in first..first + count as u64 {
            tch::manual_seed(((u64::from(self.seed) << 32) + number) as i64);
            noise.push(Tensor::f_randn(&self.shape, (Kind::Float, Device::Cpu))?);
            classes.push(Tensor::f_randint(self.classes.max(1), [1i64; 0], (Kind::Int64, Device::Cpu))?);
        }
        let x_t = Tensor::f_stack(&noise, 0)?.f_mul_scalar(self.sigma_max)?.f_to_device(device)?;
        Ok((x_t, Tensor::f_stack(&classes, 0)?.f_to_device(device)?))
    }

    /// The number of the first trajectory of a batch.
    fn first(batch: u64, size: i64) -> u64 {
        let set = [TEST_BATCHES, HELD_OUT_BATCHES, 0].into_iter().find(|&set| batch >= set).unwrap_or(0);
        set + (batch - set) * size as u64
    }
}

pub struct Run {
    pub network: Network,
    pub noise: Noise,
    /// Classes of the current batch.
    pub labels: Tensor,
    /// x_T and classes of batches: drawn once, as a batch comes back at every step of the fit.
    pub drawn: HashMap<u64, (Tensor, Tensor)>,
    pub bar: Bar,
    /// Set by Ctrl-C.
    pub stop: Arc<AtomicBool>,
}

impl Problem<Tensor> for Run {
    fn begin(&mut self, batch: u64, x_t: &mut Tensor) -> Result<()> {
        if !self.drawn.contains_key(&batch) {
            let size = x_t.size()[0];
            let drawn = self.noise.draw(Noise::first(batch, size), size, self.network.device)?;
            self.drawn.insert(batch, drawn);
        }
        let (noise, labels) = &self.drawn[&batch];
        x_t.f_copy_(noise)?;
        self.labels = labels.shallow_clone();
        Ok(())
    }

    fn denoise(&mut self, x: &Tensor, sigma: f64, denoised: &mut Tensor) -> Result<()> {
        self.network.denoise(x, sigma, &self.labels, denoised)
    }

    fn progress(&mut self, progress: &Progress) -> bool {
        self.bar.tell(progress);
        !self.stop.load(Ordering::Relaxed)
    }
}

/// A bar on a terminal; elsewhere a line now and then.
pub struct Bar {
    bar: ProgressBar,
    lines: bool,
    last: Instant,
}

const BETWEEN_LINES: Duration = Duration::from_secs(30);

impl Bar {
    pub fn new(quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = if quiet || !terminal { ProgressBar::hidden() } else { ProgressBar::new(0) };
        let style = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} calls {prefix}");
        bar.set_style(style.expect("a template that indicatif takes"));
        Self { bar, lines: !quiet && !terminal, last: Instant::now() }
    }

    fn tell(&mut self, p: &Progress) {
        if p.phase == Phase::Plan {
            self.say(p);
            return;
        }
        let phase = format!("{:?}", p.phase).to_lowercase();
        let known =
            |what: &str, v: f64| if v.is_finite() { format!(", {what} {v:.4}") } else { String::new() };
        let distances = known("distance", p.distance) + &known("handcrafted", p.handcrafted);
        let left = if p.seconds_left.is_finite() { p.seconds_left as u64 } else { 0 };
        let left = format!("{distances}, {:02}:{:02} left", left / 60, left % 60);
        self.bar.set_length(p.calls_expected);
        self.bar.set_position(p.calls);
        self.bar.set_message(format!("{phase} {} NFE", p.nfe));
        self.bar.set_prefix(left.trim_start_matches(", ").to_string());
        if self.lines && self.last.elapsed() >= BETWEEN_LINES {
            self.last = Instant::now();
            eprintln!("{phase} {} NFE, {}/{} calls{left}", p.nfe, p.calls, p.calls_expected);
        }
    }

    /// The plan, once, before the long part.
    fn say(&self, p: &Progress) {
        let images = p.calls_expected * p.batch as u64;
        let minutes = p.seconds_left / 60.0;
        let line = format!(
            "plan: {} calls, {images} image-calls, about {minutes:.1} minutes; similar runs at {} NFE ended {:.1} \
             times nearer to the teacher than the best of the strongest published field",
            p.calls_expected, p.nfe, p.gain_expected
        );
        if self.lines {
            eprintln!("{line}");
        }
        self.bar.println(line);
    }

    pub fn done(&self) {
        self.bar.finish_and_clear();
    }
}
