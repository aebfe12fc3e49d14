//! The plan of a run: what will be done for how many calls, made before the long part. It is what the
//! host hears, what the remaining time is reckoned by, and how a budget is met: with less of
//! everything, never with an error.

use super::{Config, optimise};

/// Trials that a linearisation gets, as a rule.
const TRIALS: u64 = 5;
/// A fit of fewer linearisations is not worth its Jacobians.
const LEAST: usize = 2;
/// From so many linearisations on, fits from starts of different kinds race.
pub const WORTH_A_RACE: usize = 5;
/// However many trajectories a batch has, a fit takes so many steps.
const USUAL_LEAST: usize = 8;

/// What of one number of calls the plan has to know.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    pub nfe: usize,
    /// Calls of the teacher.
    pub teacher: u64,
    /// Calls of a Jacobian.
    pub jacobian: u64,
    /// Starts that race.
    pub starts: usize,
    /// Whether it grows out of a smaller one.
    pub grown: bool,
}

/// How a run will go.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Linearisations of the fits.
    pub linearisations: usize,
    /// From this one on, of those that are fitted, they get one more.
    pub more: usize,
    /// Held-out batches.
    pub held_out: usize,
    /// Which of the items are fitted: from here on.
    pub from: usize,
    /// Batch calls from here to the end.
    pub calls: u64,
}

/// What a plan must keep within.
#[derive(Debug, Clone, PartialEq)]
pub struct Bounds {
    /// Trajectories in a batch.
    pub batch: usize,
    pub held_out: usize,
    /// Most linearisations of a fit.
    pub most: usize,
    /// Calls of the held-out teacher.
    pub teacher: u64,
    /// Held-out distances are measured of so many schedules before a fit.
    pub handcrafted: u64,
    /// Batch calls that are left.
    pub calls: Option<u64>,
}

/// What runs on the networks of this repository have gained on the strongest published field.
pub fn usual_gain(nfe: usize) -> f64 {
    match nfe {
        0..=3 => 1.2,
        4 => 1.6,
        5 => 2.3,
        6 => 2.6,
        _ => 3.0,
    }
}

/// Most linearisations of a fit.
pub fn most(config: &Config, batch: usize) -> usize {
    linearisations(config.trajectories, batch).min(config.iterations)
}

/// Linearisations that so many trajectories make.
fn linearisations(trajectories: usize, batch: usize) -> usize {
    let mut left = trajectories as i64;
    let mut count = 0;
    while left > 0 {
        left -= (optimise::trajectories_of(count).div_ceil(batch) * batch) as i64;
        count += 1;
    }
    count.max(USUAL_LEAST.min(trajectories.div_ceil(8).max(1)))
}

/// Calls of linearisation `index` of a fit.
pub fn step(item: &Item, batch: usize, index: usize) -> u64 {
    let batches = optimise::trajectories_of(index).div_ceil(batch) as u64;
    batches * (item.teacher + item.jacobian + (1 + TRIALS) * item.nfe as u64)
}

/// Whether the schedule is measured on the held-out batches after linearisation `index` of `count`: so an
/// interrupt loses little, and a fit that goes astray does not lose what it had. After 1, where
/// races end, 2, 4, 8, and each 16.
pub fn is_looked_at(index: usize, count: usize) -> bool {
    let done = index + 1;
    done == count || done.is_power_of_two() || done.is_multiple_of(16)
}

impl Plan {
    pub fn of(items: &[Item], bounds: &Bounds) -> Self {
        let most = bounds.most;
        let held_out = bounds.held_out.div_ceil(bounds.batch);
        // Fewer steps, then fewer held-out trajectories, then fewer schedules, then no fit.
        let least = LEAST.min(most);
        let few = 8usize.div_ceil(bounds.batch).min(held_out);
        let count = items.len();
        let steps = (least..=most).rev().flat_map(|steps| {
            let more = (1..count).filter(move |_| steps < most);
            more.chain([count]).map(move |more| (steps, more, held_out, 0))
        });
        let held = (few..held_out).rev().map(|held| (least, count, held, 0));
        let parts = (1..count).map(|from| (least, count, few, from));
        // What dropping a few schedules sets free goes into the steps of the others.
        let again = (1..count).flat_map(|from| (least..=most).rev().map(move |s| (s, count, held_out, from)));
        let made = |(linearisations, more, held_out, from)| {
            let mut plan = Self { linearisations, more, held_out, from, calls: 0 };
            plan.calls = plan.cost(&items[from..], bounds);
            plan
        };
        let mut plans = steps.chain(held).chain(again).chain(parts).map(made);
        let fits = |plan: &Self| bounds.calls.is_none_or(|limit| plan.calls <= limit);
        plans.find(fits).unwrap_or_else(|| made((0, count, few, count.saturating_sub(1))))
    }

    /// Linearisations of fit `at`, counted from the first that is made.
    pub fn linearisations_of(&self, at: usize) -> usize {
        self.linearisations + usize::from(at >= self.more)
    }

    fn cost(&self, items: &[Item], bounds: &Bounds) -> u64 {
        let of = |(at, item)| of_item(item, bounds, self.linearisations_of(at), self.held_out as u64);
        self.held_out as u64 * bounds.teacher + items.iter().enumerate().map(of).sum::<u64>()
    }
}

fn of_item(item: &Item, bounds: &Bounds, linearisations: usize, held: u64) -> u64 {
    let looks = (0..linearisations).filter(|&i| is_looked_at(i, linearisations)).count() as u64;
    let steps: u64 = (0..linearisations).map(|index| step(item, bounds.batch, index)).sum();
    let raced = if linearisations < WORTH_A_RACE { 0 } else { item.starts + usize::from(item.grown) - 1 };
    // Those that lose share the teacher's end points.
    let lost = step(&Item { teacher: 0, ..*item }, bounds.batch, 0);
    let lost = raced as u64 * (lost + held * item.nfe as u64);
    let gaps = if item.grown && linearisations > 0 { grow(item, bounds.batch) } else { 0 };
    steps + lost + gaps + held * item.nfe as u64 * (bounds.handcrafted + looks)
}

/// Calls that find the place of a new node.
fn grow(item: &Item, batch: usize) -> u64 {
    let n = item.nfe as u64;
    // At each of n gaps, the coefficients of the new prediction.
    super::run::GROWING.div_ceil(batch) as u64 * n * (n + n * n / 6)
}
