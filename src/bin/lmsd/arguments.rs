//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use lmsd::Process;
use lmsd::distill::Sums;
use lmsd::tensor::Dtype;
use lmsd::torch::tch::Device;

#[derive(Parser)]
#[command(version, about = "Few-step sampling of diffusion and flow models by distilled linear multistep solvers", after_help = MODELS)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

const MODELS: &str = "Models are TorchScript files whose forward(x, sigma) or, with --classes, forward(x, sigma, class) \
returns denoised, the prediction of x0: x [B, ...] of --dtype, sigma [B] float32, class [B] int64. A model that takes \
classes 0 to N - 1 takes N for none of them, if it is to be guided.

    lmsd distill --model net.pt --sigma-min 0.002 --sigma-max 80 --shape 4,64,64 --nfe 4-8 --device cuda:0 --out family
    lmsd sample --model net.pt --schedule family/nfe05.json --count 16 --out samples.npy
    lmsd compare family --model net.pt --sigma-min 0.002 --sigma-max 80 --shape 4,64,64";

#[derive(Subcommand)]
pub enum Command {
    /// Fit schedules to a model, by forward calls only
    #[command(after_help = MODELS)]
    Distill(Distill),
    /// Sample with a schedule
    #[command(after_help = MODELS)]
    Sample(Sample),
    /// Measure schedules and published solvers on trajectories that no distillation sees
    #[command(after_help = MODELS)]
    Compare(Compare),
}

#[derive(Args)]
pub struct ModelOptions {
    /// The TorchScript model
    #[arg(long)]
    pub model: PathBuf,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu", value_parser = device)]
    pub device: Device,
    /// What the model computes in: float32, float16 or bfloat16; states are float32 always
    #[arg(long, default_value = "float32", value_parser = dtype)]
    pub dtype: Dtype,
    /// Number of classes of a model that takes them; each trajectory draws one
    #[arg(long, default_value_t = 0)]
    pub classes: i64,
    /// Trajectories in a batch, 4 to 16 for the cheapest fit; where memory runs out, the model is called on
    /// parts of it
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=1 << 20).map(|n| n as usize))]
    pub batch: usize,
    /// Memory that may be in use, such as 8GiB, on the GPU or, on the CPU, by this process: sets how many
    /// trajectories are in a call of the model, by measured calls
    #[arg(long, value_parser = memory)]
    pub memory: Option<u64>,
    /// Of the noise and the classes
    #[arg(long, default_value_t = 0)]
    pub seed: u32,
}

use clap::builder::TypedValueParser;

#[derive(Args)]
pub struct Trajectories {
    /// Smallest noise level that the model knows
    #[arg(long)]
    pub sigma_min: f64,
    /// Largest noise level that the model knows, and that of x_T
    #[arg(long)]
    pub sigma_max: f64,
    /// Noise level of the result
    #[arg(long, default_value_t = 0.0)]
    pub sigma_end: f64,
    /// ve: x = x0 + sigma n (EDM, and so wrapped epsilon- and v-models); flow: x = (1 - sigma) x0 + sigma n
    #[arg(long, default_value = "ve", value_parser = process)]
    pub process: Process,
    /// Shape of one latent, such as 4,64,64
    #[arg(long, value_parser = shape)]
    pub shape: std::vec::Vec<i64>,
    /// Guidance scale, between the prediction for a class and that for none
    #[arg(long, default_value_t = 1.0)]
    pub guidance: f64,
    /// Fresh trajectories that each fit gets [default: 64]
    #[arg(long)]
    pub trajectories: Option<usize>,
    /// Held-out trajectories that decide what is kept [default: 24]
    #[arg(long)]
    pub held_out: Option<usize>,
    /// Model calls of the teacher [default: measured; 50 to compare]
    #[arg(long)]
    pub teacher_nfe: Option<usize>,
}

#[derive(Args)]
pub struct Distill {
    #[command(flatten)]
    pub model: ModelOptions,
    #[command(flatten)]
    pub trajectories: Trajectories,
    /// Model calls, such as 5, or 4-8 for a family
    #[arg(long, default_value = "5", value_parser = range)]
    pub nfe: (usize, usize),
    /// A folder for nfe<NN>.json and report.json; or a file: with one NFE the schedule, with more
    /// family.json makes family-nfe<NN>.json and family-report.json
    #[arg(long)]
    pub out: PathBuf,
    /// Must the weights of a node sum to 1? free or affine
    #[arg(long, default_value = "free", value_parser = sums)]
    pub sums: Sums,
    /// Most weights a node may have [default: all history]
    #[arg(long)]
    pub order: Option<usize>,
    /// Forward difference of the fit [default: 0.02]
    #[arg(long)]
    pub difference_step: Option<f64>,
    /// Most linearisations for each NFE [default: 40]
    #[arg(long)]
    pub iterations: Option<usize>,
    /// Schedules that fits may start from beside the published ones
    #[arg(long, num_args = 1.., value_name = "FILE")]
    pub starts: Vec<PathBuf>,
    /// Plan for so many batch calls, all included
    #[arg(long)]
    pub max_calls: Option<u64>,
    /// Plan for so many seconds
    #[arg(long)]
    pub max_seconds: Option<f64>,
    /// File to resume from [default: checkpoint.jsonl beside the results; removed when done]
    #[arg(long)]
    pub checkpoint: Option<PathBuf>,
    /// No progress bar
    #[arg(long)]
    pub quiet: bool,
}

#[derive(Args)]
pub struct Sample {
    #[command(flatten)]
    pub model: ModelOptions,
    /// The schedule file
    #[arg(long)]
    pub schedule: PathBuf,
    /// Number of samples
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..).map(|n| n as usize))]
    pub count: usize,
    /// samples.npy, or samples.png for images of 1 or 3 channels with pixels in [-1, 1]
    #[arg(long)]
    pub out: PathBuf,
    /// Shape of one latent [default: the schedule's]
    #[arg(long, value_parser = shape)]
    pub shape: Option<std::vec::Vec<i64>>,
    /// Guidance scale [default: the schedule's]
    #[arg(long)]
    pub guidance: Option<f64>,
    /// The class of all samples [default: one drawn for each]
    #[arg(long)]
    pub class: Option<i64>,
    /// No progress bar
    #[arg(long)]
    pub quiet: bool,
}

#[derive(Args)]
pub struct Compare {
    /// Schedule files, or folders of them
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    pub model: ModelOptions,
    #[command(flatten)]
    pub trajectories: Trajectories,
    /// NFEs of the published solvers besides those of the files, such as 4-8
    #[arg(long, value_parser = range)]
    pub nfe: Option<(usize, usize)>,
    /// Published solvers
    #[arg(long, default_value = "euler,dpmpp_2m,dpmpp_3m,ipndm_4,unipc_bh2_3")]
    pub solvers: String,
    /// No progress bar
    #[arg(long)]
    pub quiet: bool,
}

type Parsed<T> = std::result::Result<T, String>;

fn device(text: &str) -> Parsed<Device> {
    match text.split_once(':') {
        None if text == "cpu" => Ok(Device::Cpu),
        None if text == "cuda" => Ok(Device::Cuda(0)),
        Some(("cuda", index)) => index.parse().map(Device::Cuda).map_err(|e| e.to_string()),
        _ => Err("cpu, cuda or cuda:N is needed".into()),
    }
}

fn dtype(text: &str) -> Parsed<Dtype> {
    [("float32", Dtype::F32), ("float16", Dtype::F16), ("bfloat16", Dtype::Bf16)]
        .into_iter()
        .find_map(|(name, dtype)| (name == text).then_some(dtype))
        .ok_or_else(|| "float32, float16 or bfloat16 is needed".into())
}

fn process(text: &str) -> Parsed<Process> {
    match text {
        "ve" => Ok(Process::Ve),
        "flow" => Ok(Process::Flow),
        _ => Err("ve or flow is needed".into()),
    }
}

fn sums(text: &str) -> Parsed<Sums> {
    match text {
        "free" => Ok(Sums::Free),
        "affine" => Ok(Sums::Affine),
        _ => Err("free or affine is needed".into()),
    }
}

fn shape(text: &str) -> Parsed<Vec<i64>> {
    let numbers: Option<Vec<i64>> =
        text.split(',').map(|n| n.trim().parse().ok().filter(|&n| n > 0)).collect();
    numbers.ok_or_else(|| "numbers above 0 with commas between are needed, such as 4,64,64".into())
}

fn range(text: &str) -> Parsed<(usize, usize)> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    match (from.parse(), to.parse()) {
        (Ok(from), Ok(to)) if 0 < from && from <= to => Ok((from, to)),
        _ => Err("a number, or two such as 4-8, is needed".into()),
    }
}

fn memory(text: &str) -> Parsed<u64> {
    let units = [("GiB", 30), ("MiB", 20), ("GB", 30), ("G", 30), ("MB", 20), ("M", 20)];
    let (number, shift) = units
        .into_iter()
        .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)))
        .unwrap_or((text, 0));
    match number.trim().parse::<f64>() {
        Ok(number) if number > 0.0 => Ok((number * f64::from(1u32 << shift)) as u64),
        _ => Err("a size above 0 is needed, such as 8GiB or 500MiB".into()),
    }
}
