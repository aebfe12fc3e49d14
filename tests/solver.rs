//! The claims of src/solver.rs: identities, orders by slope, small cases by hand, refusals.

use lmsd::solver::{Grid, Solver, Spec, solve, solvers};
use lmsd::{Process, Schedule, Status};
use proptest::prelude::*;

/// The table for `steps` steps, with the model calls that they cost.
fn table(solver: &Solver, steps: usize, spec: &Spec) -> Schedule {
    let listed = solver.nfes(spec.sigma_end.unwrap_or(0.0) == 0.0);
    let nfe = listed[0] + (steps - 1) * (listed[1] - listed[0]); // they stop at 50
    let spec = Spec { solver: solver.name.into(), nfe, ..spec.clone() };
    solve(&spec).unwrap_or_else(|e| panic!("{spec:?}: {e}"))
}

fn one_call_a_step(solver: &Solver) -> bool {
    solver.nfes(true)[..2] == [1, 2]
}

#[test]
fn a_solver_can_have_the_numbers_of_calls_that_it_lists() {
    for spec in every_spec() {
        for solver in solvers() {
            let listed = solver.nfes(spec.sigma_end == Some(0.0));
            let can = |nfe| solve(&Spec { solver: solver.name.into(), nfe, ..spec.clone() }).is_ok();
            let found: Vec<usize> = (1..=12).filter(|nfe| can(*nfe)).collect();
            assert_eq!(
                found,
                listed.into_iter().filter(|nfe| *nfe <= 12).collect::<Vec<_>>(),
                "{}",
                solver.name
            );
        }
    }
    let numbers = |name: &str, to_zero| {
        let solver = solvers().iter().find(|solver| solver.name == name).unwrap();
        solver.nfes(to_zero)[..3].to_vec()
    };
    assert_eq!(numbers("euler", true), [1, 2, 3]);
    assert_eq!((numbers("heun", true), numbers("heun", false)), (vec![1, 3, 5], vec![1, 3, 5]));
    assert_eq!((numbers("dpm_2", true), numbers("dpm_2", false)), (vec![1, 3, 5], vec![2, 4, 6]));
}

fn every_spec() -> Vec<Spec> {
    let everywhere = [Grid::Karras { rho: 7.0 }, Grid::Karras { rho: 3.0 }, Grid::Log {}, Grid::Linear {}];
    let flow_only = [Grid::Flow { shift: 1.0 }, Grid::Flow { shift: 3.0 }];
    let ve = everywhere.iter().map(|g| (Process::Ve, g));
    let flow = everywhere.iter().chain(&flow_only).map(|g| (Process::Flow, g));
    let mut specs = Vec::new();
    for (process, grid) in ve.chain(flow) {
        for (sigma_end, lower_order_final) in [(0.0, true), (0.0, false), (0.02, true), (0.02, false)] {
            let (grid, sigma_end) = (Some(grid.clone()), Some(sigma_end));
            specs.push(Spec { process, grid, sigma_end, lower_order_final, ..Spec::default() });
        }
    }
    specs
}

#[test]
fn every_state_is_noise_and_predictions_in_the_right_shares() {
    let mut worst = 0.0f64;
    for spec in every_spec() {
        for solver in solvers() {
            for steps in [1, 2, 3, 5, 8, 30] {
                let schedule = table(solver, steps, &spec);
                for n in 0..=schedule.nfe() {
                    let state = schedule.expand(n);
                    let noise = schedule.sigma(n) / schedule.sigma_start();
                    let data: f64 = state[1..].iter().sum();
                    let size = state.iter().fold(1.0f64, |a, b| a.max(b.abs()));
                    let off = (state[0] - noise).abs().max((data - (1.0 - noise)).abs()) / size;
                    worst = worst.max(off);
                    assert!(off <= 1e-12, "{} {spec:?}: state {n} is off by {off:e}", solver.name);
                }
            }
        }
    }
    println!("worst {worst:e}");
}

#[test]
fn weights_sum_to_one_and_corrections_to_nothing() {
    for spec in every_spec() {
        for solver in solvers() {
            let schedule = table(solver, 9, &spec);
            for (n, node) in schedule.nodes().iter().enumerate() {
                let sum: f64 = node.weights.iter().sum();
                let size = node.weights.iter().fold(1.0f64, |a, b| a.max(b.abs()));
                let want = if schedule.sigma(n + 1) == node.sigma { 0.0 } else { 1.0 };
                assert!(
                    (sum - want).abs() <= 1e-13 * size,
                    "{} {spec:?}: node {n} sums to {sum}",
                    solver.name
                );
            }
        }
    }
}

#[test]
fn a_first_node_below_the_noise_only_scales_it() {
    for solver in solvers() {
        let near = table(solver, 4, &Spec { sigma_max: Some(10.0), ..Spec::default() });
        let far = Spec { sigma_max: Some(10.0), sigma_start: Some(80.0), ..Spec::default() };
        let far = table(solver, 4, &far);
        assert_eq!(near.nodes(), far.nodes());
        assert_eq!((far.sigma_start(), far.expand(0)), (80.0, vec![10.0 / 80.0]));
    }
}

// ------------------------------------------------------------------------------------------- orders

/// Two Gaussians on the line: (weight, mean, standard deviation).
const DATA: [(f64, f64, f64); 2] = [(0.4, -1.0, 0.4), (0.6, 0.8, 0.6)];

/// E[x0 | x] where x = alpha x0 + sigma n.
fn denoise(process: Process, x: f64, sigma: f64) -> f64 {
    let alpha = if process == Process::Flow { 1.0 - sigma } else { 1.0 };
    let (mut total, mut mean) = (0.0, 0.0);
    for (weight, m, s) in DATA {
        let variance = (alpha * s).powi(2) + sigma * sigma;
        let p = weight * (-(x - alpha * m).powi(2) / (2.0 * variance)).exp() / variance.sqrt();
        total += p;
        mean += p * (m + alpha * s * s / variance * (x - alpha * m));
    }
    mean / total
}

/// The library's loop on one number.
fn sample(schedule: &Schedule, x_t: f64) -> f64 {
    let mut x = x_t * schedule.sigma(0) / schedule.sigma_start();
    let mut history = Vec::new();
    for n in 0..schedule.nfe() {
        history.push(denoise(schedule.process(), x, schedule.model_sigma(n)));
        let (r, row) = schedule.row(n);
        x = r * x + row.iter().zip(history.iter().rev()).map(|(b, d)| b * d).sum::<f64>();
    }
    x
}

/// The exact solution to about 1e-13: classical Runge-Kutta in log sigma.
fn exact(process: Process, mut x: f64, from: f64, to: f64) -> f64 {
    let f = |u: f64, x: f64| x - denoise(process, x, u.exp());
    let steps = 4000;
    let h = (to / from).ln() / steps as f64;
    for i in 0..steps {
        let u = from.ln() + i as f64 * h;
        let k1 = f(u, x);
        let k2 = f(u + h / 2.0, x + h / 2.0 * k1);
        let k3 = f(u + h / 2.0, x + h / 2.0 * k2);
        let k4 = f(u + h, x + h * k3);
        x += h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4);
    }
    x
}

/// Observed order of the whole run: the slope from 20 to 80 steps of the mean error.
fn order(solver: &Solver, spec: &Spec) -> f64 {
    let (first, end) = (spec.sigma_max.unwrap(), spec.sigma_end.unwrap());
    let starts = [-1.3, 0.4, 1.1].map(|z| z * first);
    let truth = starts.map(|x| exact(spec.process, x, first, end));
    let [coarse, fine] = [20, 80].map(|steps| {
        let schedule = table(solver, steps, spec);
        starts.iter().zip(truth).map(|(x, y)| (sample(&schedule, *x) - y).abs()).sum::<f64>()
    });
    (coarse / fine).log2() / 2.0
}

#[test]
fn runs_converge_at_their_order() {
    let base = Spec { sigma_end: Some(0.1), lower_order_final: false, ..Spec::default() };
    let spec =
        |process, first, grid| Spec { process, sigma_max: Some(first), grid: Some(grid), ..base.clone() };
    let specs = [
        spec(Process::Ve, 10.0, Grid::Log {}),
        spec(Process::Ve, 10.0, Grid::Karras { rho: 7.0 }),
        spec(Process::Flow, 0.9, Grid::Linear {}),
    ];
    let at_one = spec(Process::Flow, 1.0, Grid::Flow { shift: 3.0 }); // first log-SNR gap infinite
    for solver in solvers() {
        let (name, want) = (solver.name, solver.order as f64);
        let found = [order(solver, &specs[0]), order(solver, &specs[1]), order(solver, &specs[2])];
        let lowered = order(solver, &Spec { lower_order_final: true, ..specs[0].clone() });
        let from_one = order(solver, &at_one);
        println!("{name:14} {found:.2?} lower at the end {lowered:.2} flow from 1 {from_one:.2}");
        assert!(found.iter().all(|f| *f > want - 0.5), "{name}: {found:?}, not {want}");
        assert!(want > 1.0 || found.iter().all(|f| *f < 1.1), "{name}: {found:?}, not 1");
        assert!(
            lowered > want.min(2.0) - 0.1 && from_one > want.min(2.0) - 0.3,
            "{name}: {lowered}, {from_one}"
        );
    }
}

/// Observed order of one step in the middle, everything before it exact: what the formula is worth
/// without its start.
#[test]
fn rows_are_of_the_order_of_their_name() {
    for (name, grid, want) in [
        ("euler", Grid::Log {}, 1.0),
        ("dpmpp_2m", Grid::Log {}, 2.0),
        ("dpmpp_3m", Grid::Log {}, 2.0), // as published; see solver.rs
        ("res_multistep", Grid::Log {}, 2.0),
        ("deis_1", Grid::Log {}, 1.0),
        ("deis_2", Grid::Log {}, 2.0),
        ("deis_3", Grid::Log {}, 3.0),
        ("lms_2", Grid::Log {}, 2.0),
        ("lms_3", Grid::Log {}, 3.0),
        ("lms_4", Grid::Log {}, 4.0),
        ("ipndm_2", Grid::Linear {}, 2.0),
        ("ipndm_3", Grid::Linear {}, 3.0),
        ("ipndm_4", Grid::Linear {}, 4.0),
    ] {
        let solver = solvers().iter().find(|s| s.name == name).unwrap();
        let spec = Spec { sigma_max: Some(4.0), sigma_end: Some(0.25), grid: Some(grid), ..Spec::default() };
        let error = |steps: usize| {
            let schedule = table(solver, steps, &spec);
            let n = steps / 2;
            let at = |m: usize| exact(Process::Ve, 3.0, 4.0, schedule.sigma(m));
            let (r, row) = schedule.row(n);
            let predictions = (0..=n).rev().map(|m| denoise(Process::Ve, at(m), schedule.sigma(m)));
            let stepped = r * at(n) + row.iter().zip(predictions).map(|(b, d)| b * d).sum::<f64>();
            (stepped - at(n + 1)).abs()
        };
        let found = (error(80) / error(160)).log2() - 1.0;
        println!("{name:14} {found:.2}");
        assert!((found - want).abs() < 0.35, "{name}: {found}, not {want}");
    }
}

// ------------------------------------------------------------------------------------ cases by hand

fn listed(solver: &str, sigmas: &[f64], nfe: usize) -> Schedule {
    let grid = Some(Grid::List { sigmas: sigmas.to_vec() });
    solve(&Spec { solver: solver.into(), grid, nfe, lower_order_final: false, ..Spec::default() }).unwrap()
}

fn weights(schedule: &Schedule) -> Vec<Vec<f64>> {
    let round = |w: &f64| (w * 1e12).round() / 1e12;
    schedule.nodes().iter().map(|n| n.weights.iter().map(round).collect()).collect()
}

#[test]
fn small_tables_by_hand() {
    let euler = listed("euler", &[4.0, 1.0, 0.0], 2);
    assert_eq!((euler.row(0), euler.row(1)), ((0.25, vec![0.75]), (0.0, vec![1.0])));

    // x_1 = (x + D_0)/2 at sigma 1, corrected by -1/2 (d_1 - d_0) = (D_1 - D_0)/2, then to 0.
    let heun = listed("heun", &[2.0, 1.0, 0.0], 3);
    assert_eq!(heun.nodes().iter().map(|n| n.sigma).collect::<Vec<_>>(), [2.0, 1.0, 1.0]);
    assert_eq!(weights(&heun), [vec![1.0], vec![0.5, -0.5], vec![1.0]]);

    // Halving sigma: equal steps in log sigma, so D_n + (D_n - D_{n-1}) / 2; to 0 first order.
    let dpmpp = listed("dpmpp_2m", &[4.0, 2.0, 1.0, 0.0], 3);
    assert_eq!(weights(&dpmpp), [vec![1.0], vec![1.5, -0.5], vec![1.0]]);

    // Uniform sigmas: x_2 = x_1 - (3 d_1 - d_0)/2 = x_1/2 + 3/4 D_1 - 1/4 D_0, both ways.
    for solver in ["lms_2", "ipndm_2"] {
        assert_eq!(weights(&listed(solver, &[3.0, 2.0, 1.0], 2)), [vec![1.0], vec![1.5, -0.5]]);
    }

    // The corrector of order 1 is the trapezoid: x += g (D_1 - D_0)/2, and r of it arrives at the next node.
    let unipc = listed("unipc_bh2_1", &[4.0, 2.0, 1.0], 2);
    assert_eq!(weights(&unipc), [vec![1.0], vec![1.25, -0.25]]);

    // DPM-Solver-2: the second row undoes the first half step. x_2 = x/2 + D_0/2 at sigma 2, and
    // x - 3 (x_2 - D_1)/2 with x = 2 x_2 - D_0.
    let dpm_2 = listed("dpm_2", &[4.0, 1.0], 2);
    assert_eq!(weights(&dpm_2), [vec![1.0], vec![3.0, -2.0]]);
}

#[test]
fn grids_reach_both_ends_exactly() {
    let grids = [
        (Grid::Karras { rho: 7.0 }, 80.0, 0.002),
        (Grid::Karras { rho: 0.3 }, 14.614643, 0.0291675),
        (Grid::Log {}, 80.0, 0.002),
        (Grid::Linear {}, 14.614643, 0.0291675),
        (Grid::Flow { shift: 3.0 }, 1.0, 0.001),
    ];
    for (grid, first, low) in grids {
        for steps in [1, 2, 7, 100] {
            let whole = grid.sigmas(steps, first, low, 0.0).unwrap();
            let part = grid.sigmas(steps, first, low, low).unwrap();
            assert_eq!((whole.len(), whole[0], whole[steps]), (steps + 1, first, 0.0));
            assert_eq!((part.len(), part[0], part[steps]), (steps + 1, first, low));
            if steps > 1 && !matches!(grid, Grid::Flow { .. }) {
                assert_eq!(whole[steps - 1], low);
            }
            assert!(whole.windows(2).chain(part.windows(2)).all(|p| p[0] > p[1]));
        }
    }
    let flow = Grid::Flow { shift: 3.0 }.sigmas(4, 1.0, 0.0, 0.0).unwrap();
    assert_eq!(flow, [1.0, 0.9, 0.75, 0.5, 0.0]);
    assert_eq!(Grid::Linear {}.sigmas(3, 9.0, 1.0, 0.0).unwrap(), [9.0, 5.0, 1.0, 0.0]);
    assert_eq!(Grid::Karras { rho: 7.0 }.describe(), "karras rho=7");
}

#[test]
fn a_list_in_another_number_of_steps_is_interpolated_in_log_sigma() {
    let list = |sigmas: &[f64]| Grid::List { sigmas: sigmas.to_vec() };
    let four = list(&[80.0, 20.0, 5.0, 1.25, 0.0]);
    let seven = four.in_steps(7).sigmas(7, 80.0, 0.002, 0.0).unwrap();
    for (found, expected) in seven.iter().zip([80.0, 40.0, 20.0, 10.0, 5.0, 2.5, 1.25, 0.0]) {
        assert!((found - expected).abs() <= 1e-12 * expected, "{seven:?}");
    }
    assert_eq!(four.in_steps(4), four);
    assert_eq!(four.in_steps(1), list(&[80.0, 0.0]));
    let above = list(&[4.0, 1.0]).in_steps(2).sigmas(2, 4.0, 1.0, 1.0).unwrap();
    assert!((above[1] - 2.0).abs() < 1e-12 && (above[0], above[2]) == (4.0, 1.0));
    assert_eq!(Grid::Log {}.in_steps(9), Grid::Log {});
}

#[test]
fn flow_models_start_at_one_and_end_at_zero_in_finite_numbers() {
    for solver in solvers() {
        for low in [true, false] {
            let spec = Spec { process: Process::Flow, lower_order_final: low, ..Spec::default() };
            let schedule = table(solver, 5, &spec);
            assert_eq!((schedule.sigma(0), schedule.sigma_end()), (1.0, 0.0));
            let largest =
                schedule.nodes().iter().flat_map(|n| &n.weights).fold(0.0f64, |a, w| a.max(w.abs()));
            assert!(largest < 20.0, "{}: a weight of {largest}", solver.name);
        }
    }
}

#[test]
fn a_schedule_says_what_it_is() {
    let spec: Spec = serde_json::from_str(
        r#"{"solver": "dpmpp_3m", "process": "flow", "grid": {"kind": "flow", "shift": 3}, "nfe": 6}"#,
    )
    .unwrap();
    let schedule = solve(&spec).unwrap();
    let (made_for, made_by) = (schedule.made_for.clone().unwrap(), schedule.made_by.clone().unwrap());
    assert_eq!(schedule.name.as_deref(), Some("dpmpp_3m, flow shift=3, 6 NFE"));
    assert_eq!((made_by.method.as_str(), made_by.solver.as_deref()), ("handcrafted", Some("dpmpp_3m")));
    assert_eq!((made_for.sigma_max, made_for.sigma_min, made_for.shift), (Some(1.0), None, Some(3.0)));
    assert_eq!(Schedule::from_json(&schedule.to_json()).unwrap(), schedule);
    assert_eq!(solve(&Spec::default()).unwrap().made_for.unwrap().sigma_min, Some(0.002));
}

// ---------------------------------------------------------------------------------------- refusals

#[test]
fn refusals_name_what_is_wrong_and_what_would_be_right() {
    let refused = |spec: Spec| {
        let error = solve(&spec).unwrap_err();
        assert_eq!(error.status, Status::InvalidArgument, "{error}");
        error.message
    };
    let base = Spec::default;
    let unknown = refused(Spec { solver: "dpmpp_4m".into(), ..base() });
    assert!(unknown.contains("dpmpp_4m") && solvers().iter().all(|s| unknown.contains(s.name)), "{unknown}");
    for solver in ["heun", "dpm_2", "dpmpp_2s"] {
        let text = refused(Spec { solver: solver.into(), nfe: 6, ..base() });
        assert!(text.contains("cannot be 6") && text.contains("5, 7"), "{text}");
    }
    let text = refused(Spec { solver: "dpm_2".into(), nfe: 1, sigma_end: Some(1.0), ..base() });
    assert!(text.ends_with("possible: 2"), "{text}");
    assert!(refused(Spec { nfe: 0, ..base() }).contains("nfe is 0"));
    assert!(refused(Spec { nfe: 1001, ..base() }).contains("1000"));
    assert!(refused(Spec { sigma_max: Some(f64::NAN), ..base() }).contains("sigma_max is NaN"));
    assert!(refused(Spec { sigma_min: Some(80.0), ..base() }).contains("sigma_min is 80"));
    assert!(refused(Spec { sigma_end: Some(80.0), ..base() }).contains("sigma_end is 80"));
    assert!(refused(Spec { sigma_start: Some(1.0), ..base() }).contains("sigma_start is 1"));
    assert!(refused(Spec { process: Process::Flow, sigma_max: Some(80.0), ..base() }).contains("0 to 1"));
    assert!(refused(Spec { grid: Some(Grid::Flow { shift: 1.0 }), ..base() }).contains("0 to 1"));
    assert!(refused(Spec { grid: Some(Grid::Karras { rho: 0.0 }), ..base() }).contains("rho"));
    let list = |sigmas: &[f64]| Spec { grid: Some(Grid::List { sigmas: sigmas.to_vec() }), nfe: 2, ..base() };
    assert!(refused(list(&[4.0, 2.0, 1.0, 0.0])).contains("2 steps need 3"));
    assert!(refused(list(&[4.0, 4.0, 0.0])).contains("sigmas must decrease"));
    assert!(refused(list(&[4.0, -2.0, 0.0])).contains("sigma 1 of the grid is -2"));
    assert!(refused(list(&[4.0, 2.0, 1e-300])).contains("sigma 2 of the grid"));
    assert!(refused(Spec { sigma_max: Some(80.0), ..list(&[4.0, 2.0, 0.0]) }).contains("lists 4"));
    assert!(serde_json::from_str::<Spec>(r#"{"steps": 5}"#).is_err());
    assert!(serde_json::from_str::<Spec>(r#"{"grid": {"kind": "karras", "roh": 5}}"#).is_err());
}

fn any_number() -> impl Strategy<Value = f64> {
    prop_oneof![
        6 => (-10.0f64..8.0).prop_map(|e| 10f64.powf(e)),
        1 => prop::sample::select(vec![0.0, -1.0, 1.0, 80.0, 5e-324, f64::MAX, f64::INFINITY, f64::NAN]),
    ]
}

fn any_grid() -> impl Strategy<Value = Grid> {
    let descending = prop::collection::vec(any_number(), 0..12).prop_map(|mut sigmas| {
        sigmas.sort_by(|a, b| b.total_cmp(a));
        sigmas
    });
    prop_oneof![
        any_number().prop_map(|rho| Grid::Karras { rho }),
        Just(Grid::Log {}),
        Just(Grid::Linear {}),
        any_number().prop_map(|shift| Grid::Flow { shift }),
        descending.prop_map(|sigmas| Grid::List { sigmas }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_spec_is_refused_or_gives_a_valid_schedule(
        solver in 0..solvers().len(),
        grid in prop::option::of(any_grid()),
        nfe in prop_oneof![9 => 0usize..20, 1 => 20usize..2000],
        flow: bool,
        lower_order_final: bool,
        jump_to_zero: bool,
        afs: bool,
        sigmas in prop::array::uniform4(prop::option::weighted(0.3, any_number())),
    ) {
        let [sigma_min, sigma_max, sigma_end, sigma_start] = sigmas;
        let nfe = match &grid {
            Some(Grid::List { sigmas }) if nfe < 10 => sigmas.len().saturating_sub(1 + usize::from(afs)),
            _ => nfe,
        };
        let process = if flow { Process::Flow } else { Process::Ve };
        let solver = solvers()[solver].name.into();
        let spec =
            Spec { solver, grid, nfe, process, sigma_min, sigma_max, sigma_end, sigma_start, jump_to_zero, lower_order_final, afs };
        match solve(&spec) {
            Ok(schedule) => {
                prop_assert_eq!(schedule.nfe(), nfe);
                prop_assert_eq!(Schedule::from_json(&schedule.to_json()).unwrap(), schedule);
            }
            Err(e) => prop_assert!(e.status != Status::Internal, "{}", e),
        }
    }
}

/// No call at sigma_min: the same table as one that ends there, ended at 0.
#[test]
fn a_jump_to_zero_spends_no_call_at_sigma_min() {
    for solver in ["euler", "dpmpp_3m", "ipndm_4", "unipc_bh2_3", "heun"] {
        let spec = |sigma_end, jump_to_zero| Spec {
            solver: solver.into(),
            nfe: 7,
            sigma_min: (sigma_end == 0.0).then_some(0.03),
            sigma_end: Some(sigma_end),
            jump_to_zero,
            ..Spec::default()
        };
        let (jumps, ends) = (solve(&spec(0.0, true)).unwrap(), solve(&spec(0.03, false)).unwrap());
        assert_eq!((jumps.nodes(), jumps.sigma_end()), (ends.nodes(), 0.0), "{solver}");
        if solver != "heun" {
            assert_eq!(solve(&spec(0.0, false)).unwrap().sigma(6), 0.03);
        }
        let flow = Spec { process: Process::Flow, jump_to_zero: true, ..Spec::default() };
        for nowhere in [spec(0.03, true), flow] {
            let error = solve(&nowhere).unwrap_err();
            assert!(error.message.contains("jump_to_zero is true, but no step of this grid"), "{error}");
        }
    }
}

/// D_0 = 0: the first step only scales the noise, and later ones do without that prediction.
#[test]
fn an_analytical_first_step_is_a_first_prediction_of_nothing() {
    let (few, more) = (4, 5);
    for spec in every_spec() {
        for solver in solvers().iter().filter(|solver| one_call_a_step(solver)) {
            let whole = table(solver, more, &spec);
            let afs = table(solver, few, &Spec { afs: true, ..spec.clone() });
            assert_eq!((afs.sigma_start(), afs.sigma_end()), (whole.sigma_start(), whole.sigma_end()));
            for n in 0..=few {
                let mut state = whole.expand(n + 1);
                state.remove(1);
                assert_eq!(afs.sigma(n), whole.sigma(n + 1));
                for (a, b) in afs.expand(n).into_iter().zip(state) {
                    assert!((a - b).abs() <= 1e-13 * b.abs().max(1.0), "{} {spec:?}: state {n}", solver.name);
                }
            }
        }
    }
    let levels = Grid::Karras { rho: 7.0 }.sigmas(4, 80.0, 0.002, 0.0).unwrap();
    let euler = |spec| table(&solvers()[0], 3, &spec);
    let below = Spec { grid: Some(Grid::List { sigmas: levels[1..].to_vec() }), ..Spec::default() };
    let afs = euler(Spec { afs: true, ..Spec::default() });
    assert_eq!(afs.nodes(), euler(Spec { sigma_start: Some(80.0), ..below }).nodes());
    assert_eq!(afs.name.as_deref(), Some("euler, karras rho=7, AFS, 3 NFE"));
    let jumps = euler(Spec { afs: true, jump_to_zero: true, ..Spec::default() });
    assert_eq!(jumps.made_by.unwrap().grid.as_deref(), Some("karras rho=7, straight to 0, AFS"));
    for solver in ["heun", "dpm_2", "dpmpp_2s"] {
        let spec = Spec { solver: solver.into(), afs: true, nfe: 5, ..Spec::default() };
        let error = solve(&spec).unwrap_err();
        assert!(error.status == Status::InvalidArgument && error.message.contains("afs"), "{error}");
    }
}

#[test]
fn second_names_do_not_compete() {
    let tables = |spec: &Spec| {
        let others = solvers().iter().filter(|solver| !solver.competes);
        others.map(|solver| table(solver, 6, spec)).collect::<Vec<_>>()
    };
    for spec in every_spec() {
        let euler = table(&solvers()[0], 6, &spec);
        assert_eq!(tables(&spec).len(), 4);
        for other in tables(&spec) {
            for (a, b) in other.nodes().iter().zip(euler.nodes()) {
                assert_eq!((a.sigma, a.weights.len()), (b.sigma, 1));
                assert!((a.weights[0] - b.weights[0]).abs() < 1e-12, "{:?}", other.name);
            }
        }
    }
    let spec = Spec { lower_order_final: false, ..Spec::default() };
    let field: Vec<_> = solvers().iter().filter(|solver| solver.competes).collect();
    for (i, solver) in field.iter().enumerate() {
        let own = table(solver, 9, &spec);
        for other in &field[..i] {
            assert_ne!(weights(&table(other, 9, &spec)), weights(&own), "{} {}", solver.name, other.name);
        }
    }
}
