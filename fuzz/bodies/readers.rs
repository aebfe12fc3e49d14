//! Texts from strangers: a schedule, the options of a solver, those of a distillation.

use std::ffi::CStr;
use std::ptr;

use lmsd::distill::Config;
use lmsd::schedule::MAX_NODES;

use super::abi::*;
use super::rarely;
use super::toy::*;

/// What is accepted is within the rules, and is written and read to the same.
pub fn schedule(data: &[u8]) {
    // As long as it is said to be, so that a sanitizer sees a byte too many.
    let text = data.to_vec().into_boxed_slice();
    let Ok(schedule) = read(&text) else { return };
    round_trip(&schedule);
    let (start, end) =
        unsafe { (lmsd_schedule_sigma_start(schedule.0), lmsd_schedule_sigma_end(schedule.0)) };
    let nfe = unsafe { lmsd_schedule_nfe(schedule.0) };
    assert!((1..=MAX_NODES).contains(&nfe) && start.is_finite() && end >= 0.0 && end < start);
    let (mut before, mut guided) = (start, false);
    for index in 0..=nfe {
        let mut node = Node {
            struct_size: size_of::<Node>(),
            sigma: 0.0,
            scale: 0.0,
            weights: ptr::null(),
            weight_count: 0,
            guidance: f64::NAN,
        };
        let status = seen(unsafe { lmsd_schedule_node(schedule.0, index, &mut node) });
        assert_eq!(status == OK, index < nfe);
        if status == OK {
            assert!(node.sigma <= before && node.sigma > 0.0 && node.sigma > end && node.scale > 0.0);
            assert!((0.0..=10.0).contains(&node.guidance) && (1..=index + 1).contains(&node.weight_count));
            let weights = unsafe { std::slice::from_raw_parts(node.weights, node.weight_count) };
            assert!(weights.iter().all(|weight| weight.is_finite()));
            before = node.sigma;
            guided |= node.guidance != 1.0;
        }
    }
    assert_eq!(unsafe { lmsd_schedule_is_guided(schedule.0) } != 0, guided);
    if !data.len().is_multiple_of(4) {
        return; // the rest takes as long as all before
    }
    for sigma in [before, (before + start) / 2.0, end, f64::NAN] {
        let part = out(|made| unsafe { lmsd_schedule_start_at(schedule.0, sigma, made) }).map(own_schedule);
        if let Ok(part) = part {
            assert!(unsafe { lmsd_schedule_nfe(part.0) } <= nfe);
            round_trip(&part);
        }
    }
}

/// What is accepted gives a schedule that can be written and read.
pub fn solver_options(data: &[u8]) {
    let options = c_text(data);
    let made = out(|made| unsafe { lmsd_schedule_solve(options.as_ptr(), made) }).map(own_schedule);
    if let Ok(schedule) = made {
        round_trip(&schedule);
    }
}

/// What is accepted can be read again to the same, and a distillation with it comes to a model call or says why not;
/// what is not is refused by a distillation too.
pub fn distill_options(data: &[u8]) {
    let options = c_text(data);
    let config = options.to_str().ok().and_then(|text| Config::from_json(text).ok());
    if let Some(config) = &config {
        let again = Config::from_json(&serde_json::to_string(config).unwrap());
        assert_eq!(again.as_ref(), Ok(config));
        // Bytes would say which files are written.
        if config.checkpoint.is_some() || !rarely(data, 8192) {
            return;
        }
    }
    let sigma_max = config.as_ref().map_or(80.0, |config| config.sigma_max);
    let toy = Toy::new(false, sigma_max, 0);
    toy.fault.set(Fault::Stop(1));
    toy.fault_at.set(1); // after `begin`
    let like = Tensor::new(2, &[2, 2], 0.0, 0);
    let made = distill(&options, &toy, &like);
    assert!(made.is_err() || config.is_some(), "a distillation with options that are none");
}

pub fn distill(options: &CStr, toy: &Toy, like: &Tensor) -> Result<Owned<Distilled>, i32> {
    let problem = toy.problem(like);
    out(|made| unsafe { lmsd_distill(options.as_ptr(), ptr::null(), &problem, made) }).map(own_distilled)
}

/// What came of a distillation can be written and read; its schedules as texts.
pub fn schedules(distilled: &Owned<Distilled>) -> Vec<String> {
    let report = out(|made| unsafe { lmsd_distilled_report(distilled.0, made) }).map(take_text);
    let report: serde_json::Value = serde_json::from_str(&report.expect("there is a report")).unwrap();
    assert!(report.is_object());
    let count = unsafe { lmsd_distilled_count(distilled.0) };
    let each = (0..=count).map(|index| {
        let made = out(|made| unsafe { lmsd_distilled_schedule(distilled.0, index, made) }).map(own_schedule);
        assert_eq!(made.is_ok(), index < count);
        made.ok().map(|schedule| {
            round_trip(&schedule);
            write(&schedule)
        })
    });
    each.flatten().collect()
}
