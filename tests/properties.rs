//! What holds for every schedule, whatever the numbers in it. Orders by slope are in tests/solver.rs.

use lmsd::distill::{Call, Config, Problem, compare};
use lmsd::sample::sample;
use lmsd::schedule::{Node, Process, Schedule};
use lmsd::solver::{Spec, solve, solvers};
use lmsd::tensor::{Cpu, CpuTensor, Dtype};
use lmsd::{Result, Tensors};
use proptest::prelude::*;

/// Elements of a trajectory.
const LENGTH: usize = 3;

/// E[x0 | x] for data at -size and size with standard deviation 0.4 size.
fn denoise(x: f64, sigma: f64, size: f64) -> f64 {
    let (own, noise) = ((0.4 * size).powi(2), sigma * sigma);
    (own * x + noise * size * (size * x / (own + noise)).tanh()) / (own + noise)
}

fn tensor(dtype: Dtype, rows: &[[f64; LENGTH]]) -> CpuTensor {
    CpuTensor::from_f64(dtype, &[rows.len() as i64, LENGTH as i64], &rows.concat()).unwrap()
}

fn rows(of: &CpuTensor) -> Vec<[f64; LENGTH]> {
    of.to_f64().chunks(LENGTH).map(|row| row.try_into().unwrap()).collect()
}

fn put(to: &mut CpuTensor, values: &[f64]) -> Result<()> {
    let from = CpuTensor::from_f64(to.dtype(), to.shape(), values)?;
    Cpu.lincomb(to, &[(1.0, &from)])
}

/// The end point from `x` for data of this size.
fn end(schedule: &Schedule, dtype: Dtype, x: &[[f64; LENGTH]], size: f64) -> Vec<[f64; LENGTH]> {
    let end = sample(&Cpu, schedule, &tensor(dtype, x), |x, sigma, denoised| {
        let values: Vec<f64> = x.to_f64().iter().map(|x| denoise(*x, sigma, size)).collect();
        put(denoised, &values)
    });
    rows(&end.unwrap())
}

/// Largest difference, relative to the larger of 1, `unit` and the values.
fn apart(a: &[[f64; LENGTH]], b: &[[f64; LENGTH]], unit: f64) -> f64 {
    let (a, b) = (a.concat(), b.concat());
    assert_eq!(a.len(), b.len());
    let size = a.iter().chain(&b).fold(unit, |size, value| size.max(value.abs()));
    a.iter().zip(&b).fold(0.0, |worst, (a, b)| f64::max(worst, (a - b).abs() / size))
}

/// `nfe` nodes from `start` down, their rows within themselves, and the noise level where they end.
fn nodes(start: f64, nfe: std::ops::Range<usize>) -> impl Strategy<Value = (Vec<Node>, f64)> {
    let node = (0.3..0.95f64, 0.8..1.25f64, prop::collection::vec(-1.5..1.5f64, 1..5));
    prop::collection::vec(node, nfe).prop_map(move |parts| {
        let mut sigma = start;
        let mut nodes = Vec::new();
        for (n, (part, scale, mut weights)) in parts.into_iter().enumerate() {
            weights.truncate(n + 1);
            nodes.push(Node { scale, ..Node::new(sigma, weights) });
            sigma *= part;
        }
        (nodes, sigma)
    })
}

/// Normalised noise of a batch of `count` trajectories.
fn noise(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<[f64; LENGTH]>> {
    prop::collection::vec(prop::array::uniform3(-2.0..2.0f64), count)
}

fn times(rows: &[[f64; LENGTH]], factor: f64) -> Vec<[f64; LENGTH]> {
    rows.iter().map(|row| row.map(|value| factor * value)).collect()
}

fn moved(order: &[usize], rows: &[[f64; LENGTH]]) -> Vec<[f64; LENGTH]> {
    order.iter().map(|at| rows[*at]).collect()
}

/// Nodes whose sigmas are `factor` times those of `nodes`.
fn scaled(nodes: &[Node], factor: f64) -> Vec<Node> {
    nodes.iter().map(|node| Node { sigma: factor * node.sigma, ..node.clone() }).collect()
}

proptest! {
    #[test]
    fn all_noise_levels_and_x_t_times_c_give_the_result_times_c(
        (nodes, last) in nodes(8.0, 1..8), x in noise(1..4), c in 1e-3..1e3f64,
    ) {
        let make = |c: f64| Schedule::new(Process::Ve, 8.0 * c, last * c, scaled(&nodes, c)).unwrap();
        let plain = end(&make(1.0), Dtype::F64, &times(&x, 8.0), 1.0);
        let larger = end(&make(c), Dtype::F64, &times(&x, 8.0 * c), c);
        prop_assert!(apart(&times(&plain, c), &larger, c) < 1e-10);
    }

    #[test]
    fn the_order_of_trajectories_does_not_matter(
        (nodes, last) in nodes(8.0, 1..8), (x, order) in noise(1..9).prop_flat_map(|x| {
            let order: Vec<usize> = (0..x.len()).collect();
            (Just(x), Just(order).prop_shuffle())
        }),
    ) {
        let schedule = Schedule::new(Process::Ve, 8.0, last, nodes).unwrap();
        let x = times(&x, 8.0);
        for (dtype, rounding) in [(Dtype::F64, 1e-10), (Dtype::F32, 1e-3)] {
            let (there, here) = (end(&schedule, dtype, &x, 1.0), end(&schedule, dtype, &moved(&order, &x), 1.0));
            prop_assert!(apart(&moved(&order, &there), &here, 1.0) < rounding);
        }
    }

    #[test]
    fn a_batch_of_one_is_its_row_of_a_batch((nodes, last) in nodes(8.0, 1..8), x in noise(1..9)) {
        let schedule = Schedule::new(Process::Ve, 8.0, last, nodes).unwrap();
        let x = times(&x, 8.0);
        let all = end(&schedule, Dtype::F64, &x, 1.0);
        for (row, found) in x.iter().zip(all) {
            prop_assert!(apart(&end(&schedule, Dtype::F64, &[*row], 1.0), &[found], 1.0) < 1e-10);
        }
    }

    /// Where no row reaches over the cut. With rows that do, see `a_copy_of_a_run_goes_on_by_itself` in tests/sample.rs.
    #[test]
    fn a_schedule_cut_in_two_ends_where_the_whole_does(
        (first, second, cut, last) in nodes(8.0, 1..6).prop_flat_map(|(first, cut)| {
            nodes(cut, 1..6).prop_map(move |(second, last)| (first.clone(), second, cut, last))
        }),
        x in noise(1..4),
    ) {
        let make = |from, to, nodes: &[Node]| Schedule::new(Process::Ve, from, to, nodes.to_vec()).unwrap();
        let whole = make(8.0, last, &[first.clone(), second.clone()].concat());
        let halves = (make(8.0, cut, &first), make(cut, last, &second));
        let x = times(&x, 8.0);
        let middle = end(&halves.0, Dtype::F64, &x, 1.0);
        let joined = end(&halves.1, Dtype::F64, &middle, 1.0);
        prop_assert!(apart(&joined, &end(&whole, Dtype::F64, &x, 1.0), 1.0) < 1e-10);
    }

    #[test]
    fn single_and_double_precision_agree(
        which in 0..solvers().len(), at in 0..6usize, flow: bool, x in noise(1..4),
    ) {
        let solver = &solvers()[which];
        let process = if flow { Process::Flow } else { Process::Ve };
        let nfe = solver.nfes(true)[at];
        let schedule = solve(&Spec { solver: solver.name.into(), nfe, process, ..Spec::default() }).unwrap();
        let x = times(&x, schedule.sigma_start());
        let [single, double] = [Dtype::F32, Dtype::F64].map(|dtype| end(&schedule, dtype, &x, 1.0));
        prop_assert!(apart(&single, &double, 1.0) < 1e-4, "{}, {nfe} NFE: {single:?} {double:?}", solver.name);
    }
}

/// The model above; x_T of a batch in an order of the host's.
struct Shuffled([usize; 4]);

impl Problem<CpuTensor> for Shuffled {
    fn begin(&mut self, batch: u64, x_t: &mut CpuTensor) -> Result<()> {
        let value =
            |b: usize, i: usize| 80.0 * (1.7 * (batch % 97) as f64 + 2.9 * b as f64 + 1.3 * i as f64).sin();
        let rows: Vec<[f64; LENGTH]> = (0..4).map(|b| [0, 1, 2].map(|i| 1.4 * value(b, i))).collect();
        put(x_t, &moved(&self.0, &rows).concat())
    }

    fn denoise(&mut self, x: &CpuTensor, call: &Call, denoised: &mut CpuTensor) -> Result<()> {
        let values: Vec<f64> = x.to_f64().iter().map(|x| denoise(*x, call.sigma, 1.0)).collect();
        put(denoised, &values)
    }
}

#[test]
fn mean_distances_do_not_depend_on_the_order_of_trajectories() {
    let of = |nfe| solve(&Spec { nfe, ..Spec::default() }).unwrap();
    let (four, seven) = (of(4), of(7));
    let config = Config { held_out: 12, teacher_nfe: Some(20), ..Config::default() };
    let like = CpuTensor::zeros(Dtype::F64, &[4, LENGTH as i64]).unwrap();
    let distances = |order| compare(&Cpu, &config, &like, &mut Shuffled(order), &[&four, &seven]).unwrap();
    let (one, other) = (distances([0, 1, 2, 3]), distances([2, 0, 3, 1]));
    assert!(one.iter().all(|distance| *distance > 1e-6), "{one:?}");
    for (one, other) in one.iter().zip(&other) {
        assert!((one - other).abs() < 1e-9 * one, "{one} {other}");
    }
}
