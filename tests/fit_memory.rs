//! The peak of a distillation's tensors is what docs/limits.md says.

mod noise;

use std::cell::Cell;

use lmsd::Result;
use lmsd::call::Call;
use lmsd::distill::{Config, Problem, distill};
use lmsd::tensor::{Cpu, CpuTensor, Dtype, Tensors};
use noise::Noise;

thread_local! {
    /// Tensors now, and at most.
    static LIVE: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

/// A tensor that is counted.
struct Counted(CpuTensor);

impl Counted {
    fn new(tensor: CpuTensor) -> Self {
        let (now, most) = LIVE.get();
        LIVE.set((now + 1, most.max(now + 1)));
        Self(tensor)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let (now, most) = LIVE.get();
        LIVE.set((now - 1, most));
    }
}

struct Counting;

impl Tensors for Counting {
    type Tensor = Counted;

    fn alloc(&self, like: &Counted) -> Result<Counted> {
        Cpu.alloc(&like.0).map(Counted::new)
    }

    fn lincomb(&self, out: &mut Counted, terms: &[(f64, &Counted)]) -> Result<()> {
        let terms: Vec<_> = terms.iter().map(|(factor, term)| (*factor, &term.0)).collect();
        Cpu.lincomb(&mut out.0, &terms)
    }

    fn gram(&self, columns: &[&Counted]) -> Result<Vec<f64>> {
        Cpu.gram(&columns.iter().map(|column| &column.0).collect::<Vec<_>>())
    }
}

/// Data of 0.3 about 1 and -1, 6 numbers a trajectory.
struct Toy {
    batch: usize,
}

impl Problem<Counted> for Toy {
    fn begin(&mut self, batch: u64, x_t: &mut Counted) -> Result<()> {
        let noise = Noise::of(batch).normals(self.batch * 6);
        let values: Vec<f64> = noise.into_iter().map(|n| 80.0 * n).collect();
        let made = CpuTensor::from_f64(Dtype::F64, &[self.batch as i64, 6], &values)?;
        Cpu.lincomb(&mut x_t.0, &[(1.0, &made)])
    }

    fn denoise(&mut self, x: &Counted, call: &Call, denoised: &mut Counted) -> Result<()> {
        let all = 0.09 + call.sigma * call.sigma;
        let one = |x: &f64| 0.09 / all * x + (1.0 - 0.09 / all) * (x / all).tanh();
        let values: Vec<f64> = x.0.to_f64().iter().map(one).collect();
        let made = CpuTensor::from_f64(Dtype::F64, &[self.batch as i64, 6], &values)?;
        Cpu.lincomb(&mut denoised.0, &[(1.0, &made)])
    }
}

/// Calls of the teacher.
const TEACHER: usize = 40;

/// Tensors at most of a distillation, `like` not counted.
fn peak(nfe: usize, batch: usize, held_out: usize) -> usize {
    let config = Config { nfe, trajectories: 64, held_out, teacher_nfe: Some(TEACHER), ..Config::default() };
    let like = Counted::new(CpuTensor::zeros(Dtype::F64, &[batch as i64, 6]).unwrap());
    LIVE.set((1, 1));
    distill(&Counting, &config, &like, &mut Toy { batch }).unwrap();
    assert_eq!(LIVE.get().0, 1, "a tensor is left");
    LIVE.get().1 - 1
}

/// What docs/limits.md says, in tensors of one batch.
fn documented(nfe: usize, batch: usize, held_out: usize) -> usize {
    let unknowns = 2 * nfe + nfe * (nfe + 1) / 2;
    let at_work = 8usize.div_ceil(batch);
    let kept = held_out.div_ceil(batch) + 8usize.div_ceil(batch);
    let fit = at_work * (unknowns + 2) + 2 * nfe + 2;
    let teacher = (at_work - 1) * (unknowns + 2) + TEACHER + 1;
    kept + fit.max(teacher).max(44)
}

#[test]
fn the_peak_of_a_fit_is_what_the_docs_say() {
    for (nfe, batch, held_out) in [(2, 4, 8), (5, 4, 8), (5, 4, 40), (6, 8, 16), (6, 4, 8), (6, 2, 8)] {
        let (found, documented) = (peak(nfe, batch, held_out), documented(nfe, batch, held_out));
        let words =
            format!("{nfe} NFE, batches of {batch}, {held_out} held out: {found}, documented {documented}");
        println!("{words}");
        assert!(found <= documented && 10 * found >= 9 * documented, "{words}");
    }
}
