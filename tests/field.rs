//! The claims of src/field.rs: what is in the field, that all of it is valid, and none of it twice.

use std::collections::BTreeSet;

use lmsd::field::{Field, Levels, check, on_grid, rivals, unique};
use lmsd::solver::{Grid, Spec, solve, solvers};
use lmsd::{Process, Schedule, Status};

fn ve() -> Levels {
    Levels { process: Process::Ve, sigma_min: 0.002, sigma_max: 80.0, sigma_end: 0.0, shift: None }
}

fn flow() -> Levels {
    Levels { process: Process::Flow, sigma_min: 0.001, sigma_max: 1.0, sigma_end: 0.0, shift: Some(3.0) }
}

fn to_sigma_min() -> Levels {
    Levels { sigma_end: 0.002, ..ve() }
}

fn words(schedule: &Schedule) -> (String, String) {
    let by = schedule.made_by.clone().unwrap();
    (by.solver.unwrap(), by.grid.unwrap())
}

fn find<'a>(list: &'a [Schedule], solver: &str, grid: &str) -> &'a Schedule {
    let found = list.iter().find(|schedule| words(schedule) == (solver.into(), grid.into()));
    found.unwrap_or_else(|| panic!("no {solver}, {grid}"))
}

/// What made a table, from the record's words.
fn grids(list: &[Schedule]) -> BTreeSet<String> {
    list.iter().map(|schedule| words(schedule).1).collect()
}

#[test]
fn counts_are_as_documented() {
    for (levels, nfe, published, strongest) in [
        (ve(), 3, 50, 842),
        (ve(), 5, 80, 1115),
        (ve(), 8, 76, 1130),
        (to_sigma_min(), 5, 38, 975),
        (flow(), 3, 18, 254),
        (flow(), 5, 34, 465),
        (flow(), 8, 36, 432),
    ] {
        // Of the solvers of the first version; the list may have grown since.
        let first = |schedule: &&Schedule| solvers()[..25].iter().any(|s| s.name == words(schedule).0);
        let counts = [Field::Published, Field::Strongest]
            .map(|field| rivals(&levels, nfe, field, &[]).iter().filter(first).count());
        println!("{:?} to {} at {nfe} NFE: {counts:?}", levels.process, levels.sigma_end);
        assert_eq!(counts, [published, strongest]);
    }
}

#[test]
fn all_are_valid_and_all_differ() {
    for levels in [ve(), to_sigma_min(), flow(), Levels { sigma_max: 0.98, ..flow() }] {
        for nfe in [1, 2, 3, 6] {
            let all = rivals(&levels, nfe, Field::Strongest, &[]);
            assert!(!all.is_empty());
            for schedule in &all {
                assert_eq!(schedule.nfe(), nfe);
                assert_eq!(
                    (schedule.sigma_start(), schedule.sigma_end()),
                    (levels.sigma_max, levels.sigma_end)
                );
                assert_eq!(&Schedule::from_json(&schedule.to_json()).unwrap(), schedule);
                let (solver, grid) = words(schedule);
                assert_eq!(schedule.name, Some(format!("{solver}, {grid}, {nfe} NFE")));
                assert!(solvers().iter().any(|s| s.name == solver && s.competes));
                let state = schedule.expand(nfe);
                assert!((state[0] - levels.sigma_end / levels.sigma_max).abs() <= 1e-12, "{grid}");
            }
            let names: BTreeSet<_> = all.iter().map(words).collect();
            assert_eq!(names.len(), all.len());
            let published = rivals(&levels, nfe, Field::Published, &[]);
            assert_eq!(published, all[..published.len()]);
            assert_eq!(unique(all.clone()), all);
        }
    }
}

#[test]
fn published_solvers_are_as_hosts_have_them() {
    let all = rivals(&ve(), 5, Field::Published, &[]);
    let four = ["karras rho=7", "karras rho=7, straight to 0", "log", "log, straight to 0"];
    assert_eq!(grids(&all), four.map(String::from).into());
    let own = |shift| Levels { shift, ..flow() };
    let flow = |shift| grids(&rivals(&own(shift), 5, Field::Published, &[]));
    assert_eq!(flow(Some(3.0)), ["flow shift=1", "flow shift=3"].map(String::from).into());
    assert_eq!(flow(None), ["flow shift=1".to_string()].into());
    assert_eq!(grids(&rivals(&to_sigma_min(), 5, Field::Published, &[])).len(), 2);
    // Of two calls a step some need an odd number.
    let solvers = |list: &[Schedule]| list.iter().map(|s| words(s).0).collect::<BTreeSet<_>>();
    assert!(solvers(&all).contains("heun") && solvers(&all).contains("dpmpp_2s"));
    assert!(!solvers(&rivals(&ve(), 4, Field::Published, &[])).contains("heun"));
    let plain = solve(&Spec { solver: "dpmpp_3m".into(), nfe: 5, ..ve().spec() }).unwrap();
    assert_eq!(find(&all, "dpmpp_3m", "karras rho=7"), &plain);
}

#[test]
fn the_strongest_start_anywhere() {
    let all = rivals(&ve(), 5, Field::Strongest, &[]);
    for part in [0.5, 0.25, 0.1, 0.05, 0.025] {
        let first = part * 80.0;
        let below = find(&all, "ipndm_3", &format!("karras rho=5, straight to 0, from sigma {first}"));
        assert_eq!((below.sigma(0), below.sigma_start()), (first, 80.0));
        assert_eq!(below.expand(0), [part]);
        let spec = Spec { solver: "ipndm_3".into(), nfe: 5, sigma_max: Some(first), ..ve().spec() };
        let spec = Spec { grid: Some(Grid::Karras { rho: 5.0 }), jump_to_zero: true, ..spec };
        assert_eq!(below.nodes(), solve(&spec).unwrap().nodes());
    }
    let afs = find(&all, "euler", "karras rho=7, straight to 0, AFS");
    let second = Grid::Karras { rho: 7.0 }.sigmas(6, 80.0, 0.002, 0.002).unwrap()[1];
    assert_eq!((afs.sigma(0), afs.expand(0)), (second, vec![second / 80.0]));
    find(&all, "dpmpp_2m", "log, straight to 0, full order to the end");
    find(&all, "dpmpp_2m", "karras rho=10, straight to 0, AFS, full order to the end");
    find(&rivals(&to_sigma_min(), 5, Field::Strongest, &[]), "deis_2", "karras rho=3, from sigma 8");

    let all = rivals(&flow(), 5, Field::Strongest, &[]);
    for first in [0.97, 0.93, 0.85, 0.75] {
        let below = find(&all, "lms_3", &format!("flow shift=3, from sigma {first}"));
        assert_eq!((below.sigma(0), below.sigma_start(), below.expand(0)), (first, 1.0, vec![first]));
    }
    let afs = find(&all, "euler", "flow shift=2, AFS");
    assert_eq!(afs.sigma(0), Grid::Flow { shift: 2.0 }.sigmas(6, 1.0, 0.0, 0.0).unwrap()[1]);
}

#[test]
fn one_call_is_eulers_only() {
    for levels in [ve(), flow()] {
        let all = rivals(&levels, 1, Field::Strongest, &[]);
        for schedule in all.iter().filter(|schedule| !words(schedule).1.contains("AFS")) {
            assert_eq!(schedule.nodes()[0].weights.len(), 1);
            assert!((schedule.nodes()[0].weights[0] - 1.0).abs() < 1e-12, "to 0: the prediction");
        }
    }
    assert!(rivals(&ve(), 0, Field::Strongest, &[]).is_empty());
}

#[test]
fn grids_of_the_callers_are_solved_on_by_everything() {
    let dynamic = vec![80.0, 10.9, 1.5, 0.1, 0.0];
    let before = rivals(&ve(), 4, Field::Strongest, &[]).len();
    let all = rivals(&ve(), 4, Field::Strongest, &[dynamic.clone(), dynamic.clone()]);
    let added = &all[before..];
    assert_eq!(grids(added).len(), 2);
    let same = find(added, "unipc_bh2_2", "sigmas 80 10.9 1.5 0.1 0");
    assert_eq!((0..=4).map(|n| same.sigma(n)).collect::<Vec<_>>(), dynamic);
    assert_eq!(added.iter().filter(|s| words(s).0 == "euler").count(), 1);
    assert_eq!(
        rivals(&ve(), 4, Field::Published, std::slice::from_ref(&dynamic)),
        rivals(&ve(), 4, Field::Published, &[])
    );
    let named = on_grid(&ve(), 4, &dynamic, "gits 1.1");
    assert_eq!(named.len(), added.len());
    find(&named, "deis_3", "gits 1.1, full order to the end");
    // As long as it fits the levels.
    assert!(on_grid(&ve(), 5, &dynamic, "gits 1.1").is_empty());
    assert!(on_grid(&to_sigma_min(), 4, &dynamic, "gits 1.1").is_empty());
    let below = on_grid(&ve(), 4, &[40.0, 8.0, 2.0, 0.5, 0.0], "gits 1.1");
    assert_eq!(below[0].expand(0), [0.5]);
    // One that the field has already.
    let log = Grid::Log {}.sigmas(4, 80.0, 0.002, 0.0).unwrap();
    assert_eq!(rivals(&ve(), 4, Field::Strongest, &[log]).len(), before);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let refused = |levels: Levels, nfe, extra: &[Vec<f64>]| {
        let error = check(&levels, nfe, extra).unwrap_err();
        assert_eq!(error.status, Status::InvalidArgument);
        error.message
    };
    assert!(check(&ve(), 5, &[]).is_ok() && check(&flow(), 1, &[vec![1.0, 0.0]]).is_ok());
    assert!(refused(ve(), 0, &[]).contains("nfe is 0"));
    assert!(refused(ve(), 101, &[]).contains("1 to 100"));
    assert!(refused(Levels { sigma_max: 80.0, ..flow() }, 5, &[]).contains("0 to 1"));
    assert!(refused(Levels { shift: Some(0.0), ..flow() }, 5, &[]).contains("shift"));
    assert!(refused(Levels { sigma_min: 90.0, ..ve() }, 5, &[]).contains("sigma_min is 90"));
    assert!(refused(ve(), 2, &[vec![80.0, 1.0, 0.0], vec![80.0, 0.0]]).contains("grid 1 of extra"));
    assert!(refused(ve(), 2, &[vec![80.0, 1.0, 0.5]]).contains("ends at 0.5"));
    assert!(refused(ve(), 2, &[vec![90.0, 1.0, 0.0]]).contains("sigma_start is 80"));
}
