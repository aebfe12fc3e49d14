//! Whether noise and model are what a fit needs them to be.

use super::account::Caller;
use super::evaluator::Evaluator;
use super::journal::{Key, Kind};
use super::measure::Rows;
use super::{Call, Config, Purpose};
use crate::error::{Error, Result};
use crate::tensor::Tensors;

/// In which order three states are asked for, so that each comes after different ones: caches that skip every
/// second or third call show, and those that take a noise level near the last one for the same.
const ORDER: [usize; 7] = [0, 1, 2, 0, 2, 0, 1];
/// Calls of [`Evaluator::check`].
pub fn calls(config: &Config) -> u64 {
    ORDER.len() as u64 + u64::from(config.fit_guidance)
}

impl<B: Tensors> Evaluator<'_, B> {
    /// Finds out, on the first rank in a few model calls, what would make a fit worthless: noise that is not the same for
    /// the same batch, or the same for all; noise of another level than sigma_max; a model or features that
    /// depend on the call before; a model that does not set its guidance where that is to be fitted.
    pub fn check(&mut self) -> Result<()> {
        let measure = |eval: &mut Self| {
            if eval.ranks.rank == 0 {
                eval.check_batches()?;
            }
            Rows::new(0, 0)
        };
        self.recorded(Kind::Check, Key::of(Kind::Check), measure, 0, |_| Vec::new()).map(|_| ())
    }

    fn check_batches(&mut self) -> Result<()> {
        let x_t = self.check_noise()?;
        let denoised = self.check_model(&x_t)?;
        if self.mix.has_features() { self.check_features(&denoised) } else { Ok(()) }
    }

    /// Refuses noise that cannot be fitted to; gives x_T of batch 0, which is current then.
    fn check_noise(&mut self) -> Result<B::Tensor> {
        let refused = |m: String| Err(Error::argument(m));
        let x_t = self.begin(0)?;
        let other = self.begin(1)?;
        // By their norms, as the two may differ in shape.
        let mut norms = self.tensors.gram(&[&x_t])?.into_iter().zip(self.tensors.gram(&[&other])?);
        if norms.all(|(a, b)| (a - b).abs() <= 1e-9 * a) {
            return refused(
                "begin gives the same x_T for batches 0 and 1; each needs noise of its own".into(),
            );
        }
        let again = self.begin(0)?;
        if self.summed_distance(&x_t, &again)? != 0.0 {
            let message = "begin gives another x_T for batch 0 when it is asked again; the same batch must \
                           always be the same noise: seed it by the batch's number";
            return refused(message.into());
        }
        let squares: f64 = self.tensors.gram(&[&x_t])?.iter().sum();
        if let Some(elements) = self.tensors.elements(&x_t).filter(|n| *n >= 32) {
            let level = (squares / elements as f64).sqrt() / self.config.sigma_max;
            if !(0.5..=2.0).contains(&level) {
                return refused(format!(
                    "x_T of batch 0 has a standard deviation of {:.4}; it must be near sigma_max, {}: \
                     begin returns sigma_max times normal noise",
                    level * self.config.sigma_max,
                    self.config.sigma_max
                ));
            }
        }
        Ok(x_t)
    }

    /// Refuses a model whose result depends on more than what it is given; gives a result.
    fn check_model(&mut self, x_t: &B::Tensor) -> Result<B::Tensor> {
        // Noise at the top, between the ends, and near that the other way round.
        let (high, low) = (self.config.sigma_max, (self.config.sigma_max * self.config.sigma_min).sqrt());
        let near = 1.05 * low;
        let mut asked = Vec::new();
        for (sigma, factor) in [(high, 1.0), (low, low / high), (near, -near / high)] {
            let mut state = self.tensors.alloc(x_t)?;
            self.tensors.lincomb(&mut state, &[(factor, x_t)])?;
            asked.push((sigma, state));
        }
        let mut found: Vec<Vec<B::Tensor>> = asked.iter().map(|_| Vec::new()).collect();
        for at in ORDER {
            let mut denoised = self.tensors.alloc(x_t)?;
            let (sigma, state) = &asked[at];
            let call = Call::alone(*sigma, Purpose::Check);
            self.call(Caller::Student, state, &call, &mut denoised)?;
            found[at].push(denoised);
        }
        for ((sigma, _), results) in asked.iter().zip(&found) {
            for other in &results[1..] {
                if let Some(percent) = self.another(&results[0], other)? {
                    return Err(Error::argument(format!(
                        "the model gives another result for the same x at sigma {sigma} when it is asked again \
                         (off by {percent:.0} %); caches between calls, dropout and other randomness must be off"
                    )));
                }
            }
        }
        let told = found.swap_remove(1).swap_remove(0);
        if self.config.fit_guidance {
            let mut untold = self.tensors.alloc(x_t)?;
            let (sigma, state) = &asked[1];
            let call = Call { guidance: 0.0, ..Call::alone(*sigma, Purpose::Check) };
            self.call(Caller::Student, state, &call, &mut untold)?;
            if self.summed_distance(&told, &untold)? == 0.0 {
                return Err(Error::argument(
                    "fit_guidance is true, but the model gives the same result without guidance: it must set its \
                     guidance scale as the call says, and have one other than 1",
                ));
            }
        }
        Ok(told)
    }

    /// Refuses features that depend on more than the tensor that they are of.
    fn check_features(&mut self, of: &B::Tensor) -> Result<()> {
        let (first, again) = (self.features(of)?, self.features(of)?);
        let Some(percent) = self.another(&first, &again)? else { return Ok(()) };
        Err(Error::argument(format!(
            "features gives another result for the same x when it is asked again (off by {percent:.0} %); dropout \
             and other randomness must be off"
        )))
    }

    /// By how much two results that should be the same are off, where that is more than half precision and unordered
    /// sums explain. Not for NaN, which the teacher's run names.
    fn another(&self, first: &B::Tensor, again: &B::Tensor) -> Result<Option<f64>> {
        let moved = self.summed_distance(first, again)?;
        let length = self.summed_norm(first)?;
        Ok((moved > 0.05 * length).then(|| 100.0 * moved / length))
    }
}
