//! The loop, and nothing else that steps: a schedule drives a model from x_T to the end point.
//!
//! Run form: [`sample`] calls the model. Step form: the host owns the loop, asks a [`Sampler`] for
//! [`Sampler::model_sigma`] and [`Sampler::state`], and hands the prediction to [`Sampler::step`].

use std::borrow::Cow;

use crate::call::Call;
use crate::error::{Error, Result, Status};
use crate::schedule::Schedule;
use crate::tensor::Tensors;

/// What an observer sees after each model call, before the update.
pub struct Step<'a, T> {
    /// Node, from 0.
    pub index: usize,
    /// Number of nodes.
    pub nfe: usize,
    /// Noise level of the state.
    pub sigma: f64,
    /// Noise level that the model was told.
    pub model_sigma: f64,
    /// The state at `sigma`.
    pub x: &'a T,
    /// The model's prediction of x0.
    pub denoised: &'a T,
}

/// Writes to the last its prediction of x0 at a state, whose noise level is the call's, guidance included.
pub type Model<'a, T> = dyn FnMut(&T, &Call, &mut T) -> Result<()> + 'a;

/// A run of a schedule, node by node. Predictions that no later row needs are given up, so memory
/// is bounded by the order of the solver and not by the number of steps.
pub struct Sampler<'a, B: Tensors> {
    tensors: B,
    schedule: Cow<'a, Schedule>,
    /// D_0, ... of the run that this one branches from.
    earlier: &'a [B::Tensor],
    /// Predictions of this run; the first is of node `earlier.len()`.
    history: Vec<Option<B::Tensor>>,
    /// Tensors given up, to be written again.
    spare: Vec<B::Tensor>,
    x: B::Tensor,
    index: usize,
    check: bool,
}

impl<'a, B: Tensors> Sampler<'a, B> {
    /// A run from `x_t`, whose noise level is `schedule.sigma_start()`. `x_t` is only read.
    pub fn new(tensors: B, schedule: Cow<'a, Schedule>, x_t: &B::Tensor) -> Result<Self> {
        let mut spare = tensors.alloc_many(x_t, 2 + most_kept(&schedule))?;
        spare.reverse(); // the first are taken first, so that what is combined lies side by side
        let mut x = spare.pop().expect("two tensors or more");
        tensors.lincomb(&mut x, &[(schedule.sigma(0) / schedule.sigma_start(), x_t)])?;
        Ok(Self { tensors, schedule, earlier: &[], history: vec![], spare, x, index: 0, check: true })
    }

    /// A run that goes on where another's predictions D_0, ..., D_k (`earlier`) end, from its state
    /// `x` at node k: the update after node k is the first thing done.
    pub fn branch(
        tensors: B,
        schedule: Cow<'a, Schedule>,
        earlier: &'a [B::Tensor],
        x: &B::Tensor,
    ) -> Result<Self> {
        let own = (schedule.nfe() - earlier.len()).min(most_kept(&schedule));
        let mut spare = tensors.alloc_many(x, 2 + own)?;
        spare.reverse();
        let (next, unused) = (spare.pop().expect("two or more"), spare.pop().expect("two or more"));
        let index = earlier.len() - 1;
        let mut run =
            Self { tensors, schedule, earlier, history: vec![], spare, x: unused, index, check: true };
        let next = run.update(x, next)?;
        run.spare.push(std::mem::replace(&mut run.x, next));
        run.index += 1;
        Ok(run)
    }

    /// Another run that stands where this one does, and goes on without it.
    pub fn copy(&self) -> Result<Self>
    where
        B: Clone,
    {
        let kept = |slot: &Option<B::Tensor>| slot.as_ref().map(|of| self.tensors.copy(of)).transpose();
        Ok(Self {
            tensors: self.tensors.clone(),
            schedule: self.schedule.clone(),
            earlier: self.earlier,
            history: self.history.iter().map(kept).collect::<Result<_>>()?,
            spare: Vec::new(),
            x: self.tensors.copy(&self.x)?,
            index: self.index,
            check: self.check,
        })
    }

    /// Lets predictions through that are not finite; the caller looks at the end point.
    pub fn unchecked(mut self) -> Self {
        self.check = false;
        self
    }

    /// The schedule that is run.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// The node to be evaluated next; `nfe()` when the run is over.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Where to call the model next; None when the run is over.
    pub fn model_sigma(&self) -> Option<f64> {
        (self.index < self.schedule.nfe()).then(|| self.schedule.model_sigma(self.index))
    }

    /// The present state; the result when the run is over.
    pub fn state(&self) -> &B::Tensor {
        &self.x
    }

    /// The result, or the state where the run stands. It may share memory with all else that the run has
    /// used, which lives as long; [`Tensors::copy`] makes one of its own.
    pub fn into_state(self) -> B::Tensor {
        self.x
    }

    /// A tensor for the next prediction; its contents are unspecified.
    pub fn buffer(&mut self) -> Result<B::Tensor> {
        self.spare.pop().map_or_else(|| self.tensors.alloc(&self.x), Ok)
    }

    /// Refuses a step after the last.
    pub fn check_open(&self) -> Result<()> {
        if self.index < self.schedule.nfe() {
            return Ok(());
        }
        let n = self.index;
        let message = format!("the run is over after {n} steps; make a new sampler for another");
        Err(Error::new(Status::WrongState, message))
    }

    /// Replaces the state at the present node by a copy of `x`. Refused when the run is over.
    pub fn set_state(&mut self, x: &B::Tensor) -> Result<()> {
        self.check_open()?;
        let mut own = self.buffer()?;
        self.tensors.lincomb(&mut own, &[(1.0, x)])?;
        self.spare.push(std::mem::replace(&mut self.x, own));
        Ok(())
    }

    /// Advances to the next node with the model's prediction at this one.
    pub fn step(&mut self, denoised: B::Tensor) -> Result<()> {
        self.check_open()?;
        let next = self.buffer()?;
        self.history.push(Some(denoised));
        let next = self.update(&self.x, next).inspect_err(|_| drop(self.history.pop()))?;
        self.spare.push(std::mem::replace(&mut self.x, next));
        self.index += 1;
        self.give_up();
        Ok(())
    }

    /// The state after the present node, whose own is `x`, written to `next`.
    fn update(&self, x: &B::Tensor, mut next: B::Tensor) -> Result<B::Tensor> {
        let n = self.index;
        let (r, row) = self.schedule.row(n);
        let mut terms = Vec::with_capacity(1 + row.len());
        terms.push((r, x));
        for (j, b) in row.iter().enumerate().filter(|(_, b)| **b != 0.0) {
            terms.push((*b, self.prediction(n - j)));
        }
        self.tensors.lincomb(&mut next, &terms)?;
        Ok(next)
    }

    fn prediction(&self, node: usize) -> &B::Tensor {
        match node.checked_sub(self.earlier.len()) {
            None => &self.earlier[node],
            Some(own) => self.history[own].as_ref().expect("a prediction is kept until its last use"),
        }
    }

    /// Frees the predictions that lie before every later row.
    fn give_up(&mut self) {
        let oldest = oldest_needed(&self.schedule, self.index);
        for slot in self.history.iter_mut().take(oldest.saturating_sub(self.earlier.len())) {
            self.spare.extend(slot.take());
        }
    }

    /// Refuses a prediction that is not finite, naming the node.
    pub fn check_finite(&self, denoised: &B::Tensor) -> Result<()> {
        let Some(b) = self.tensors.not_finite(denoised)? else { return Ok(()) };
        Err(Error::new(
            Status::NonFinite,
            format!(
                "the model's output at node {} (sigma {}), trajectory {b}, is not finite",
                self.index,
                self.schedule.model_sigma(self.index)
            ),
        ))
    }

    /// Runs to the end; calls are for sampling unless the model knows better. `observe` sees every step; its error
    /// stops the run.
    pub fn run(
        &mut self,
        model: &mut Model<B::Tensor>,
        observe: &mut dyn FnMut(&Step<B::Tensor>) -> Result<()>,
    ) -> Result<()> {
        while let Some(model_sigma) = self.model_sigma() {
            let mut denoised = self.buffer()?;
            let (node, nfe) = (self.index, self.schedule.nfe());
            let call = Call::at(&self.schedule, node);
            model(&self.x, &call, &mut denoised)?;
            if self.check {
                self.check_finite(&denoised)?;
            }
            observe(&Step {
                index: node,
                nfe,
                sigma: self.schedule.sigma(node),
                model_sigma,
                x: &self.x,
                denoised: &denoised,
            })?;
            self.step(denoised)?;
        }
        Ok(())
    }
}

/// The oldest node whose prediction the row of node `index`, or a later one, needs.
fn oldest_needed(schedule: &Schedule, index: usize) -> usize {
    let nodes = schedule.nodes();
    let oldest = (index..nodes.len()).map(|m| m + 1 - nodes[m].weights.len()).min();
    oldest.unwrap_or(index).min(index)
}

/// Most predictions that a run keeps at a time.
fn most_kept(schedule: &Schedule) -> usize {
    (0..schedule.nfe()).map(|n| n + 1 - oldest_needed(schedule, n)).max().unwrap_or(0)
}

/// The end point of `schedule` from `x_t` (noise level `schedule.sigma_start()`).
/// `model(x, sigma, denoised)` writes its prediction of x0, guidance included.
pub fn sample<B: Tensors>(
    tensors: B,
    schedule: &Schedule,
    x_t: &B::Tensor,
    mut model: impl FnMut(&B::Tensor, f64, &mut B::Tensor) -> Result<()>,
) -> Result<B::Tensor> {
    let mut sampler = Sampler::new(&tensors, Cow::Borrowed(schedule), x_t)?;
    sampler.run(&mut |x, call, denoised| model(x, call.sigma, denoised), &mut |_| Ok(()))?;
    // A copy, as the state may share memory with all else that the run has used.
    tensors.copy(sampler.state())
}

impl<B: Tensors> Tensors for &B {
    type Tensor = B::Tensor;

    fn alloc(&self, like: &B::Tensor) -> Result<B::Tensor> {
        (**self).alloc(like)
    }

    fn alloc_many(&self, like: &B::Tensor, count: usize) -> Result<Vec<B::Tensor>> {
        (**self).alloc_many(like, count)
    }

    fn copy(&self, of: &B::Tensor) -> Result<B::Tensor> {
        (**self).copy(of)
    }

    fn elements(&self, of: &B::Tensor) -> Option<usize> {
        (**self).elements(of)
    }

    fn lincomb(&self, out: &mut B::Tensor, terms: &[(f64, &B::Tensor)]) -> Result<()> {
        (**self).lincomb(out, terms)
    }

    fn gram(&self, columns: &[&B::Tensor]) -> Result<Vec<f64>> {
        (**self).gram(columns)
    }

    fn not_finite(&self, of: &B::Tensor) -> Result<Option<usize>> {
        (**self).not_finite(of)
    }
}
