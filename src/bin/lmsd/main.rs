//! `lmsd`: distils schedules for a TorchScript model, samples with them, compares them. No Python.

mod arguments;
mod network;
mod pictures;
mod problem;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use lmsd::distill::{self, Config, Distilled};
use lmsd::schedule::MadeFor;
use lmsd::solver::{Spec, solve, solvers};
use lmsd::torch::Torch;
use lmsd::torch::tch::{Kind, Tensor};
use lmsd::{Error, Result, Schedule, Status};
use sha2::{Digest, Sha256};

use arguments::{Command, Compare, Distill, ModelOptions, Sample, Trajectories};
use network::{Network, gib};
use problem::{Bar, Noise, Run};

/// As shells count a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    lmsd::torch::keep_freed_memory();
    let done = match arguments::Arguments::parse().command {
        Command::Distill(options) => distill(&options),
        Command::Sample(options) => sample(&options),
        Command::Compare(options) => compare(&options),
    };
    done.unwrap_or_else(|error| {
        eprintln!("lmsd: {error}");
        ExitCode::FAILURE
    })
}

fn io(path: &Path, e: std::io::Error) -> Error {
    Error::new(Status::Io, format!("{}: {e}", path.display()))
}

/// Where all tensors are, and what the network is loaded as.
fn open(options: &ModelOptions, guidance: f64) -> Result<(Torch, Network)> {
    let torch = Torch::new(options.device, Kind::Float)?;
    let kind = Kind::from(options.dtype);
    let network = Network::load(&options.model, options.device, kind, guidance, options.classes)?;
    Ok((torch, network))
}

fn made_for(options: &ModelOptions, guidance: f64, shape: &[i64]) -> Result<MadeFor> {
    let bytes = std::fs::read(&options.model).map_err(|e| io(&options.model, e))?;
    let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let name = options.model.file_stem().unwrap_or_default().to_string_lossy();
    Ok(MadeFor {
        model: Some(name.into_owned()),
        model_hash: Some(format!("sha256:{hash}")),
        guidance_scale: Some(guidance),
        latent_shape: Some(shape.iter().map(|&n| n as u64).collect()),
        ..MadeFor::default()
    })
}

/// Set by the first Ctrl-C; the second one kills.
fn first_interrupt() -> Result<Arc<AtomicBool>> {
    let hit = Arc::new(AtomicBool::new(false));
    let signal = signal_hook::consts::SIGINT;
    let failed = |e| Error::new(Status::Io, format!("Ctrl-C cannot be heard: {e}"));
    signal_hook::flag::register_conditional_shutdown(signal, INTERRUPTED.into(), hit.clone())
        .map_err(failed)?;
    signal_hook::flag::register(signal, hit.clone()).map_err(failed)?;
    Ok(hit)
}

/// The host's side of a distillation and its options, but for the fit's own.
fn prepare(model: &ModelOptions, t: &Trajectories, quiet: bool) -> Result<(Torch, Run, Config, Tensor)> {
    let (torch, network) = open(model, t.guidance)?;
    let noise =
        Noise { seed: model.seed, shape: t.shape.clone(), sigma_max: t.sigma_max, classes: model.classes };
    let (like, labels) = noise.draw(0, model.batch as i64, model.device)?;
    let mut run =
        Run { network, noise, labels, drawn: HashMap::new(), bar: Bar::new(quiet), stop: first_interrupt()? };
    if let Some(budget) = model.memory {
        run.network.fit_memory(budget, &like, t.sigma_max, &run.labels)?;
        eprintln!(
            "{} of {} trajectories in a call of the model fit into {:.2} GiB",
            run.network.part,
            model.batch,
            gib(budget)
        );
    }
    let mut config = Config {
        process: t.process,
        sigma_min: t.sigma_min,
        sigma_max: t.sigma_max,
        sigma_end: t.sigma_end,
        made_for: made_for(model, t.guidance, &t.shape)?,
        seeds: Some(format!("lmsd {}, {} classes, {:?}", model.seed, model.classes, model.dtype)),
        ..Config::default()
    };
    config.trajectories = t.trajectories.unwrap_or(config.trajectories);
    config.held_out = t.held_out.unwrap_or(config.held_out);
    config.teacher_nfe = t.teacher_nfe;
    Ok((torch, run, config, like))
}

/// Where the results of a distillation go.
struct Files {
    folder: PathBuf,
    /// In front of the names of a family's files; None: `--out` is the one schedule itself.
    prefix: Option<String>,
    out: PathBuf,
}

impl Files {
    /// `--out`: a folder, or a file .json for one NFE, or the beginning of a family's file names.
    fn new(out: &Path, family: bool) -> Self {
        let stem = out.file_stem().unwrap_or_default().to_string_lossy();
        let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let (folder, prefix) = match (out.extension().is_some_and(|e| e == "json"), family) {
            (false, _) => (out, Some(String::new())),
            (true, true) => (parent, Some(format!("{stem}-"))),
            (true, false) => (parent, None),
        };
        Self { folder: folder.into(), prefix, out: out.into() }
    }

    fn beside(&self, name: &str) -> PathBuf {
        let stem = self.out.file_stem().unwrap_or_default().to_string_lossy();
        match &self.prefix {
            Some(prefix) => self.folder.join(format!("{prefix}{name}")),
            None => self.folder.join(format!("{stem}-{name}")),
        }
    }

    fn schedule(&self, nfe: usize) -> PathBuf {
        if self.prefix.is_some() { self.beside(&format!("nfe{nfe:02}.json")) } else { self.out.clone() }
    }
}

fn distill(options: &Distill) -> Result<ExitCode> {
    let (torch, mut run, mut config, like) = prepare(&options.model, &options.trajectories, options.quiet)?;
    (config.nfe_from, config.nfe) = (Some(options.nfe.0), options.nfe.1);
    config.sums = options.sums;
    config.order = options.order;
    config.difference_step = options.difference_step.unwrap_or(config.difference_step);
    config.iterations = options.iterations.unwrap_or(config.iterations);
    let starts: Vec<Schedule> =
        options.starts.iter().map(|file| Schedule::load(file)).collect::<Result<_>>()?;
    config.start_from(&starts);
    config.max_calls = options.max_calls;
    config.max_seconds = options.max_seconds;

    let files = Files::new(&options.out, options.nfe.0 < options.nfe.1);
    std::fs::create_dir_all(&files.folder).map_err(|e| io(&files.folder, e))?;
    let checkpoint = options.checkpoint.clone().unwrap_or_else(|| files.beside("checkpoint.jsonl"));
    if checkpoint.exists() {
        println!("going on from {}", checkpoint.display());
    }
    config.checkpoint = Some(checkpoint.clone());

    let found = distill::distill(&torch, &config, &like, &mut run);
    run.bar.done();
    let goes_on = format!("the same command goes on from {}", checkpoint.display());
    let found = match found {
        Err(error) if error.status == Status::Stopped && run.stop.load(Ordering::Relaxed) => {
            eprintln!("lmsd: stopped before the first result; {goes_on}");
            return Ok(ExitCode::from(INTERRUPTED));
        }
        found => found?,
    };
    let mut rows =
        vec![["schedule", "NFE", "distance", "strongest published", "gain", "which"].map(Into::into)];
    for (fitted, schedule) in found.family.iter().zip(found.schedules()) {
        let path = files.schedule(fitted.nfe);
        schedule.save(&path)?;
        rows.push(row(&path, fitted.distance.unwrap_or(f64::INFINITY), schedule));
    }
    let report = files.beside("report.json");
    std::fs::write(&report, found.to_json()).map_err(|e| io(&report, e))?;
    print_table(&rows);
    println!(
        "{} image-calls, the teacher's {} among them, {:.1} s, {:.1} % of them outside the model",
        found.image_calls,
        found.teacher_calls * found.batch as u64,
        found.seconds,
        100.0 * outside(&found)
    );
    if found.stopped.as_deref() == Some("cancelled") {
        eprintln!("lmsd: stopped; {goes_on}");
        return Ok(ExitCode::from(INTERRUPTED));
    }
    if options.max_calls.is_some() || options.max_seconds.is_some() {
        println!("within a limit; with a higher one {goes_on}");
        return Ok(ExitCode::SUCCESS);
    }
    std::fs::remove_file(&checkpoint).map_err(|e| io(&checkpoint, e))?;
    Ok(ExitCode::SUCCESS)
}

/// Share of the time that was not spent in the model and the noise.
fn outside(found: &Distilled) -> f64 {
    ((found.seconds - found.callback_seconds) / found.seconds).max(0.0)
}

fn row(path: &Path, distance: f64, schedule: &Schedule) -> [String; 6] {
    let best = schedule.made_by.as_ref().and_then(|made| made.handcrafted.first());
    let of = |f: &dyn Fn(&lmsd::schedule::Baseline) -> String| best.map(f).unwrap_or_default();
    [
        path.display().to_string(),
        schedule.nfe().to_string(),
        format!("{distance:.5}"),
        of(&|b| format!("{:.5}", b.distance)),
        of(&|b| format!("{:.1}x", b.distance / distance)),
        of(&|b| format!("{}, {}", b.solver, b.grid)),
    ]
}

/// The first row is the head; the first column is flush left, the others right.
fn print_table<const N: usize>(rows: &[[String; N]]) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    for row in rows {
        let mut line = format!("{:<1$}", row[0], widths[0]);
        for (cell, width) in row.iter().zip(&widths).skip(1) {
            line += &format!("  {cell:>width$}");
        }
        println!("{}", line.trim_end());
    }
}

/// Files as they are; of a folder, its schedules.
fn schedule_files(paths: &[PathBuf]) -> Result<Vec<(String, Schedule)>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let name = |p: &Path| p.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut found: Vec<PathBuf> = path
            .read_dir()
            .map_err(|e| io(path, e))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|p| name(p).starts_with("nfe") && name(p).ends_with(".json"))
            .collect();
        if found.is_empty() {
            let message = format!("there are no schedules nfe*.json in the folder {}", path.display());
            return Err(Error::new(Status::Io, message));
        }
        found.sort();
        files.append(&mut found);
    }
    files.iter().map(|path| Ok((path.display().to_string(), Schedule::load(path)?))).collect()
}

fn compare(options: &Compare) -> Result<ExitCode> {
    let t = &options.trajectories;
    let mut entries = schedule_files(&options.files)?;
    let host =
        MadeFor { latent_shape: Some(t.shape.iter().map(|&n| n as u64).collect()), ..MadeFor::default() };
    for (name, schedule) in &entries {
        let named = |e: Error| Error::new(e.status, format!("{name}: {}", e.message));
        schedule.check_made_for(t.process, &host).map_err(named)?;
    }
    let mut nfes: Vec<usize> = entries.iter().map(|(_, schedule)| schedule.nfe()).collect();
    if let Some((from, to)) = options.nfe {
        nfes.extend(from..=to);
    }
    nfes.sort_unstable();
    nfes.dedup();
    if nfes.is_empty() {
        return Err(Error::argument("nothing to compare: give schedule files, or --nfe"));
    }
    for name in options.solvers.split(',').filter(|name| !name.is_empty()) {
        let stages = solvers().iter().find(|s| s.name == name).map_or(1, |s| s.stages);
        for &nfe in nfes.iter().filter(|&&nfe| nfe % stages == 0) {
            let spec = Spec {
                solver: name.into(),
                nfe,
                process: t.process,
                sigma_min: Some(t.sigma_min),
                sigma_max: Some(t.sigma_max),
                sigma_end: Some(t.sigma_end),
                ..Spec::default()
            };
            entries.push((name.into(), solve(&spec)?));
        }
    }
    let (torch, mut run, mut config, like) = prepare(&options.model, t, options.quiet)?;
    config.nfe = 1;
    let schedules: Vec<&Schedule> = entries.iter().map(|(_, schedule)| schedule).collect();
    let distances = distill::compare(&torch, &config, &like, &mut run, &schedules);
    run.bar.done();
    if run.stop.load(Ordering::Relaxed) {
        return Ok(ExitCode::from(INTERRUPTED));
    }
    let mut rows = vec![["mean distance to the teacher", "NFE", "distance"].map(String::from)];
    for ((name, schedule), distance) in entries.iter().zip(distances?) {
        rows.push([name.clone(), schedule.nfe().to_string(), format!("{distance:.5}")]);
    }
    print_table(&rows);
    Ok(ExitCode::SUCCESS)
}

fn sample(options: &Sample) -> Result<ExitCode> {
    let schedule = Schedule::load(&options.schedule)?;
    let made = schedule.made_for.clone().unwrap_or_default();
    let guidance = options.guidance.or(made.guidance_scale).unwrap_or(1.0);
    let recorded = made.latent_shape.map(|shape| shape.iter().map(|&n| n as i64).collect());
    let shape = options.shape.clone().or(recorded).ok_or_else(|| {
        Error::argument(format!("{} does not say a shape; use --shape", options.schedule.display()))
    })?;
    pictures::check(&options.out, &shape)?;
    schedule.check_made_for(schedule.process(), &made_for(&options.model, guidance, &shape)?)?;

    let (torch, network) = open(&options.model, guidance)?;
    let classes = options.model.classes;
    if options.class.is_some_and(|class| class < 0 || class > classes || classes == 0) {
        return Err(Error::argument(format!("--class must be 0 to --classes, which is {classes}")));
    }
    let noise = Noise { seed: options.model.seed, shape, sigma_max: schedule.sigma_start(), classes };
    let (_, labels) = noise.draw(0, 1, options.model.device)?;
    let mut run = Run {
        network,
        noise,
        labels,
        drawn: HashMap::new(),
        bar: Bar::new(options.quiet),
        stop: first_interrupt()?,
    };
    let bar = indicatif::ProgressBar::new((options.count * schedule.nfe()) as u64);
    if options.quiet {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let mut images = Vec::new();
    let mut first = 0;
    while first < options.count && !run.stop.load(Ordering::Relaxed) {
        let size = options.model.batch.min(options.count - first);
        let (x_t, labels) = run.noise.draw(first as u64, size as i64, run.network.device)?;
        let labels = match options.class {
            Some(class) => labels.f_full_like(class)?,
            None => labels,
        };
        let stop = run.stop.clone();
        let end = lmsd::sample::sample(torch, &schedule, &x_t, |x, sigma, denoised| {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::new(Status::Stopped, "stopped"));
            }
            run.network.denoise(x, sigma, &labels, denoised)?;
            bar.inc(size as u64);
            Ok(())
        });
        match end {
            Err(error) if error.status == Status::Stopped => break,
            end => images.push(end?.f_to_device(lmsd::torch::tch::Device::Cpu)?),
        }
        first += size;
    }
    bar.finish_and_clear();
    if images.is_empty() {
        return Ok(ExitCode::from(INTERRUPTED));
    }
    let images = Tensor::f_cat(&images, 0)?;
    pictures::write(&options.out, &images)?;
    println!("{}: {} of shape {:?}", options.out.display(), images.size()[0], &images.size()[1..]);
    Ok(if run.stop.load(Ordering::Relaxed) { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}
