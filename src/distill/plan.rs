//! The plan of a run: what will be done for how many calls, made before the long part. It is what the
//! host is told, what the remaining time is reckoned by, and how a budget is met: with less of
//! everything, never with an error.

use super::optimise;

/// Trials that a linearisation gets, as a rule.
const TRIALS: u64 = 5;
/// A fit of fewer linearisations is not worth its Jacobians.
const LEAST: usize = 2;
/// From so many linearisations on, fits from starts of different kinds race.
pub const WORTH_A_RACE: usize = 6;
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
    /// Linearisations of each fit.
    pub linearisations: usize,
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
    pub trajectories: usize,
    pub held_out: usize,
    /// Most linearisations of a fit.
    pub iterations: usize,
    /// Calls of the held-out teacher.
    pub teacher: u64,
    /// Held-out distances are measured of so many handcrafted schedules.
    pub handcrafted: u64,
    /// Batch calls that are left.
    pub calls: Option<u64>,
}

/// Linearisations that so many trajectories make.
pub fn linearisations(trajectories: usize, batch: usize) -> usize {
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

/// The linearisation after which a fit is looked at for the first time.
const FIRST_LOOK: usize = 0;

/// Whether the schedule is measured on the held-out batches after linearisation `index` of `count`: so an
/// interrupt loses little, and a fit that goes astray does not lose what it had. After 2, 4, 8, and each 16.
pub fn is_looked_at(index: usize, count: usize) -> bool {
    let done = index + 1;
    done == count || done % 16 == 0 || (index >= FIRST_LOOK && done.is_power_of_two())
}

impl Plan {
    pub fn of(items: &[Item], bounds: &Bounds) -> Self {
        let most = linearisations(bounds.trajectories, bounds.batch).min(bounds.iterations);
        let held_out = bounds.held_out.div_ceil(bounds.batch);
        // Fewer steps, then fewer held-out trajectories, then fewer schedules, then no fit.
        let least = LEAST.min(most);
        let few = 8usize.div_ceil(bounds.batch).min(held_out);
        let steps = (least..=most).rev().map(|steps| (steps, held_out, 0));
        let held = (few..held_out).rev().map(|held| (least, held, 0));
        let parts = (1..items.len()).map(|from| (least, few, from));
        // What dropping a few schedules sets free goes into the steps of the others.
        let again = (1..items.len()).flat_map(|from| (least..=most).rev().map(move |s| (s, held_out, from)));
        let none = std::iter::once((0, few, items.len().saturating_sub(1)));
        let whole = steps.chain(held).chain(again).chain(parts).chain(none);
        let mut plans = whole.map(|(linearisations, held_out, from)| {
            let calls = cost(&items[from..], bounds, linearisations, held_out);
            Self { linearisations, held_out, from, calls }
        });
        let fits = |plan: &Self| bounds.calls.is_none_or(|limit| plan.calls <= limit);
        plans.find(fits).unwrap_or_else(|| {
            let from = items.len().saturating_sub(1);
            Self { linearisations: 0, held_out: few, from, calls: cost(&items[from..], bounds, 0, few) }
        })
    }
}

fn cost(items: &[Item], bounds: &Bounds, linearisations: usize, held_out: usize) -> u64 {
    let held = held_out as u64;
    let looks = (0..linearisations).filter(|&i| is_looked_at(i, linearisations)).count() as u64;
    let of = |item: &Item| {
        let steps: u64 = (0..linearisations).map(|index| step(item, bounds.batch, index)).sum();
        let raced = if linearisations < WORTH_A_RACE { 0 } else { item.starts + usize::from(item.grown) - 1 };
        let lost: u64 = (0..=FIRST_LOOK).map(|index| step(item, bounds.batch, index)).sum();
        let lost = raced as u64 * (lost + held * item.nfe as u64);
        let gaps = if item.grown && linearisations > 0 { grow(item, bounds.batch) } else { 0 };
        steps + lost + gaps + held * item.nfe as u64 * (bounds.handcrafted + looks)
    };
    held * bounds.teacher + items.iter().map(of).sum::<u64>()
}

/// Calls that find the place of a new node.
fn grow(item: &Item, batch: usize) -> u64 {
    let n = item.nfe as u64;
    // At each of n gaps, the coefficients of the new prediction.
    8usize.div_ceil(batch) as u64 * n * (n + n * n / 6)
}
