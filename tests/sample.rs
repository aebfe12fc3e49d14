//! The loop: what it computes, what it refuses, and that its memory is bounded by the solver's order.

use std::borrow::Cow;
use std::cell::Cell;

use lmsd::sample::{Sampler, sample};
use lmsd::schedule::{Node, Process, Schedule};
use lmsd::solver::{Spec, solve};
use lmsd::tensor::{Cpu, CpuTensor, Dtype, Tensors};
use lmsd::{Error, Result, Status};

/// Numbers instead of tensors, counted while they live.
#[derive(Default)]
struct Counted {
    live: Cell<usize>,
    most: Cell<usize>,
}

struct Number<'a>(f64, &'a Counted);

impl Drop for Number<'_> {
    fn drop(&mut self) {
        self.1.live.set(self.1.live.get() - 1);
    }
}

impl<'a> Tensors for &'a Counted {
    type Tensor = Number<'a>;

    fn alloc(&self, _: &Number<'a>) -> Result<Number<'a>> {
        self.live.set(self.live.get() + 1);
        self.most.set(self.most.get().max(self.live.get()));
        Ok(Number(f64::NAN, self))
    }

    fn lincomb(&self, out: &mut Number<'a>, terms: &[(f64, &Number<'a>)]) -> Result<()> {
        out.0 = terms.iter().map(|(f, t)| f * t.0).sum();
        Ok(())
    }

    fn gram(&self, columns: &[&Number<'a>]) -> Result<Vec<f64>> {
        Ok(columns.iter().flat_map(|a| columns.iter().map(|b| a.0 * b.0)).collect())
    }
}

fn vector(values: &[f64]) -> CpuTensor {
    CpuTensor::from_f64(Dtype::F64, &[1, values.len() as i64], values).unwrap()
}

/// Sigma 8 to 4, where the first node is, to 1, to 0.
fn two_nodes() -> Schedule {
    let node = |sigma, scale, weights: &[f64]| Node { scale, ..Node::new(sigma, weights.to_vec()) };
    let nodes = vec![node(4.0, 1.0, &[1.0]), node(1.0, 0.5, &[2.0, -1.0])];
    Schedule::new(Process::Ve, 8.0, 0.0, nodes).unwrap()
}

#[test]
fn a_table_by_hand() {
    let schedule = two_nodes();
    let mut told = Vec::new();
    let end = sample(&Cpu, &schedule, &vector(&[16.0]), |x, sigma, denoised| {
        told.push(sigma);
        Cpu.lincomb(denoised, &[(0.5, x)])
    })
    .unwrap();
    // x_0 = 8, D_0 = 4; x_1 = 8/4 + 3/4 * 4 = 5, D_1 = 2.5; x_2 = 2 * 2.5 - 4 = 1.
    assert_eq!(end.to_f64(), [1.0]);
    assert_eq!(told, [4.0, 0.5], "the model is told scale * sigma");
}

#[test]
fn memory_is_bounded_by_the_order_and_not_by_the_steps() {
    let most = |nfe| {
        let tensors = Counted::default();
        let schedule = solve(&Spec { solver: "dpmpp_2m".into(), nfe, ..Spec::default() }).unwrap();
        tensors.live.set(1);
        let start = Number(80.0, &tensors);
        sample(&tensors, &schedule, &start, |x, sigma, d| {
            d.0 = x.0 / (1.0 + sigma * sigma);
            Ok(())
        })
        .unwrap();
        tensors.most.get()
    };
    assert_eq!(most(10), most(200));
    assert!(most(200) <= 6, "{} tensors", most(200));
}

#[test]
fn the_step_form_walks_the_same_path_and_ends() {
    let schedule = solve(&Spec { solver: "unipc_bh2_3".into(), nfe: 6, ..Spec::default() }).unwrap();
    let model = |x: &CpuTensor, sigma: f64, d: &mut CpuTensor| Cpu.lincomb(d, &[(1.0 / (1.0 + sigma), x)]);
    let start = vector(&[80.0, -3.0, 11.0]);
    let end = sample(&Cpu, &schedule, &start, model).unwrap();
    let mut sampler = Sampler::new(&Cpu, Cow::Borrowed(&schedule), &start).unwrap();
    while let Some(sigma) = sampler.model_sigma() {
        let mut denoised = sampler.buffer().unwrap();
        model(sampler.state(), sigma, &mut denoised).unwrap();
        sampler.step(denoised).unwrap();
    }
    assert_eq!(sampler.state().to_f64(), end.to_f64());
    let more = sampler.buffer().unwrap();
    assert_eq!(sampler.step(more).unwrap_err().status, Status::WrongState);
}

#[test]
fn a_state_that_is_replaced_is_where_the_run_goes_on() {
    let schedule = two_nodes();
    let mut sampler = Sampler::new(&Cpu, Cow::Borrowed(&schedule), &vector(&[16.0])).unwrap();
    assert_eq!(sampler.state().to_f64(), [8.0]);
    sampler.set_state(&vector(&[4.0])).unwrap();
    sampler.step(vector(&[2.0])).unwrap();
    assert_eq!(sampler.state().to_f64(), [2.5], "4/4 + 3/4 * 2");
    let mine = vector(&[100.0]);
    sampler.set_state(&mine).unwrap();
    assert_eq!((sampler.index(), sampler.state().to_f64()), (1, vec![100.0]));
    sampler.step(vector(&[3.0])).unwrap();
    assert_eq!(sampler.state().to_f64(), [4.0], "2 * 3 - 2");
    assert_eq!(mine.to_f64(), [100.0]);
    assert_eq!(sampler.set_state(&mine).unwrap_err().status, Status::WrongState);
}

#[test]
fn a_copy_of_a_run_goes_on_by_itself() {
    let schedule = solve(&Spec { solver: "dpmpp_3m".into(), nfe: 6, ..Spec::default() }).unwrap();
    let end = |sampler: &mut Sampler<&Cpu>, factor: f64| {
        let model = &mut |x: &_, _: &_, d: &mut _| Cpu.lincomb(d, &[(factor, x)]);
        sampler.run(model, &mut |_| Ok(())).unwrap();
        sampler.state().to_f64()
    };
    let mut run = Sampler::new(&Cpu, Cow::Borrowed(&schedule), &vector(&[3.0, -1.0])).unwrap();
    for _ in 0..3 {
        let denoised = vector(&run.state().to_f64().iter().map(|x| 0.5 * x).collect::<Vec<_>>());
        run.step(denoised).unwrap();
    }
    let (mut copy, mut other) = (run.copy().unwrap(), run.copy().unwrap());
    assert_eq!((copy.index(), copy.state().to_f64()), (3, run.state().to_f64()));
    let ends = [end(&mut copy, 0.5), end(&mut other, 0.9)];
    assert_eq!(run.index(), 3);
    assert_eq!(end(&mut run, 0.5), ends[0]);
    assert_ne!(ends[0], ends[1]);
}

#[test]
fn an_output_that_is_not_finite_names_its_node_and_a_failing_model_ends_the_run() {
    let schedule = solve(&Spec { nfe: 4, ..Spec::default() }).unwrap();
    let mut calls = 0;
    let error = sample(&Cpu, &schedule, &vector(&[1.0, 2.0]), |x, _, d| {
        calls += 1;
        Cpu.lincomb(d, &[(if calls == 3 { f64::NAN } else { 1.0 }, x)])
    })
    .unwrap_err();
    assert!(error.status == Status::NonFinite && error.message.contains("node 2"), "{error}");
    let stop = Error::new(Status::Stopped, "enough");
    let error = sample(&Cpu, &schedule, &vector(&[1.0]), |_, _, _| Err(stop.clone())).unwrap_err();
    assert_eq!(error, stop);
}
