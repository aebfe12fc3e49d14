//! The schedule file: exact round trips, and a clear refusal of whatever breaks the format.

use lmsd::schedule::{MAX_FILE_BYTES, MadeBy, MadeFor, Node, Process, Schedule};
use lmsd::{Error, Status};
use proptest::prelude::*;

fn two_nodes() -> Schedule {
    let node = |sigma, weights: &[f64]| Node::new(sigma, weights.to_vec());
    Schedule::new(Process::Ve, 80.0, 0.0, vec![node(20.0, &[1.0]), node(1.0, &[1.5, -0.5])]).unwrap()
}

fn refusal(text: &str) -> Error {
    let error = Schedule::from_json(text).unwrap_err();
    assert_eq!(error.status, Status::InvalidSchedule, "{error}");
    error
}

/// The text of a good file with one thing replaced, which must be there.
fn spoilt(from: &str, to: &str) -> String {
    let text = two_nodes().to_json();
    assert!(text.contains(from), "{from} is not in {text}");
    text.replacen(from, to, 1)
}

#[test]
fn refusals_say_where_and_what() {
    for (from, to, words) in [
        ("\"format\": 1", "\"format\": 2", "format 2"),
        ("\"format\": 1", "\"formal\": 1", "unknown field"),
        ("\"nfe\": 2", "\"nfe\": 3", "nfe is 3"),
        ("\"nfe\": 2", "\"nfe\": 2, \"extra\": [[[[]]]]", "unknown field `extra`"),
        ("\"nfe\": 2", "\"nfe\": 2, \"nfe\": 2", "duplicate field `nfe`"),
        ("\"sigma\":20.0", "\"sigma\":-20.0", "node 0 is -20"),
        ("\"sigma\":20.0", "\"sigma\":NaN", "line"),
        ("\"sigma\":20.0", "\"sigma\":1e400", "out of range"),
        ("\"sigma\":20.0", "\"sigma\":0.5", "node 1 is 1, above the 0.5 of node 0"),
        ("\"sigma\":20.0", "\"sigma\":81.0", "above the 80 of sigma_start"),
        ("\"scale\":1.0", "\"scale\":0.0", "scale of node 0 is 0"),
        ("\"weights\":[1.0]", "\"weights\":[]", "node 0 has 0 weights"),
        ("\"weights\":[1.0]", "\"weights\":[1.0,1.0]", "node 0 has 2 weights; 1 to 1"),
        ("\"weights\":[1.0]", "\"weights\":[1e300]", "weight 0 of node 0"),
        ("\"sigma_end\": 0.0", "\"sigma_end\": 1.0", "below the last node's sigma"),
        ("\"process\": \"ve\"", "\"process\": \"flow\"", "flow model knows 0 to 1"),
    ] {
        let error = refusal(&spoilt(from, to));
        assert!(error.message.contains(words), "{from} -> {to}: {error}");
    }
}

#[test]
fn every_truncation_is_refused() {
    let text = two_nodes().to_json();
    for end in 0..text.trim_end().len() {
        refusal(&text[..end]);
    }
}

#[test]
fn large_and_deep_texts_are_refused_at_once() {
    refusal(&"[".repeat(100_000));
    refusal(&"{\"format\":".repeat(50_000));
    let many = "{\"sigma\":1,\"weights\":[1]},".repeat(30_000);
    refusal(&format!(
        "{{\"format\":1,\"process\":\"ve\",\"nfe\":30000,\"sigma_start\":1,\"sigma_end\":0,\"nodes\":[{}]}}",
        many.trim_end_matches(',')
    ));
    assert!(refusal(&" ".repeat(MAX_FILE_BYTES as usize + 1)).message.contains("1048577 bytes"));
}

#[test]
fn only_regular_files_are_read_and_writing_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(Schedule::load(folder.path()).unwrap_err().status, Status::Io);
    assert_eq!(Schedule::load(&folder.path().join("none.json")).unwrap_err().status, Status::Io);
    let path = folder.path().join("schedule.json");
    two_nodes().save(&path).unwrap();
    assert_eq!(Schedule::load(&path).unwrap(), two_nodes());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays");
    std::fs::File::options().write(true).open(&path).unwrap().set_len(1 << 30).unwrap();
    assert!(Schedule::load(&path).unwrap_err().message.contains("1073741824 bytes"));
}

#[test]
fn a_mismatch_is_named_and_unstated_values_are_not_compared() {
    let mut schedule = two_nodes();
    schedule.made_for = Some(MadeFor { guidance_scale: Some(3.0), shift: Some(1.0), ..MadeFor::default() });
    let host = MadeFor { guidance_scale: Some(5.0), ..MadeFor::default() };
    let error = schedule.check_made_for(Process::Ve, &host).unwrap_err();
    assert_eq!(error.status, Status::Mismatch);
    assert!(error.message.contains("guidance scale 3") && error.message.contains('5'), "{error}");
    schedule.check_made_for(Process::Ve, &MadeFor { sigma_max: Some(1.0), ..MadeFor::default() }).unwrap();
    assert_eq!(schedule.check_made_for(Process::Flow, &host).unwrap_err().status, Status::Mismatch);
}

#[test]
fn a_guidance_scale_within_the_range_passes() {
    let mut schedule = two_nodes();
    schedule.made_for = Some(MadeFor { guidance_range: Some([2.0, 7.0]), ..MadeFor::default() });
    let check = |scale| {
        let host = MadeFor { guidance_scale: Some(scale), ..MadeFor::default() };
        schedule.check_made_for(Process::Ve, &host)
    };
    for scale in [2.0, 1.9995, 4.5, 7.0] {
        check(scale).unwrap();
    }
    for scale in [1.0, 7.5] {
        let error = check(scale).unwrap_err();
        assert_eq!(error.status, Status::Mismatch);
        assert!(error.message.contains("2 to 7"), "{error}");
    }
    assert_eq!(Schedule::from_json(&schedule.to_json()).unwrap(), schedule);
}

#[test]
fn expansion_shows_the_identity_of_affine_tables() {
    let last = two_nodes().expand(2);
    assert_eq!(last[0], 0.0);
    assert!((last[1..].iter().sum::<f64>() - 1.0).abs() < 1e-15, "{last:?}");
}

proptest! {
    #[test]
    fn round_trips_are_exact(
        steps in prop::collection::vec((0.01f64..0.99, 0.5f64..2.0), 1..12),
        weights in prop::collection::vec(-1e6f64..1e6, 12),
        name in ".{0,40}",
    ) {
        let mut sigma = 80.0;
        let nodes: Vec<Node> = steps.iter().enumerate().map(|(n, (ratio, scale))| {
            sigma *= ratio;
            Node { scale: *scale, ..Node::new(sigma, weights[..=n].to_vec()) }
        }).collect();
        let mut schedule = Schedule::new(Process::Ve, 80.0, sigma / 3.0, nodes).unwrap();
        schedule.name = Some(name);
        schedule.made_by = Some(MadeBy { method: "distilled".into(), distance: Some(sigma), ..MadeBy::default() });
        let back = Schedule::from_json(&schedule.to_json()).unwrap();
        prop_assert_eq!(&back, &schedule);
        prop_assert_eq!(back.to_json(), schedule.to_json());
    }
}

/// A part of a schedule: a node moved to the start, and the rows completed.
#[test]
fn a_part_starts_where_the_state_is() {
    let node = |sigma, weights: &[f64]| Node { scale: 1.1, ..Node::new(sigma, weights.to_vec()) };
    let nodes = vec![
        node(20.0, &[0.9]),
        node(4.0, &[1.5, -0.4]),
        node(1.0, &[1.4, -0.5, 0.2]),
        node(0.3, &[1.2, -0.3]),
    ];
    let mut whole = Schedule::new(Process::Ve, 80.0, 0.002, nodes).unwrap();
    whole.made_by = Some(MadeBy { method: "distilled".into(), distance: Some(0.1), ..MadeBy::default() });
    assert_eq!(whole.start_at(80.0).unwrap(), whole);

    let above = whole.start_at(40.0).unwrap();
    assert_eq!((above.sigma_start(), above.nodes()), (40.0, whole.nodes()));
    assert_eq!(above.made_by.as_ref().unwrap().distance, None);

    let part = whole.start_at(3.0).unwrap();
    assert_eq!((part.sigma_start(), part.nfe(), part.sigma(0)), (3.0, 3, 3.0));
    assert_eq!(part.nodes()[0].weights, [1.0]);
    assert_eq!(part.nodes()[1].weights, [1.4, 1.0 - 1.4]);
    assert_eq!(part.nodes()[2], whole.nodes()[3]);
    assert_eq!(whole.start_at(0.01).unwrap().nfe(), 1);

    for (sigma, words) in [(80.1, "at most 80"), (0.002, "above 0.002"), (f64::NAN, "NaN"), (-1.0, "-1")] {
        let error = whole.start_at(sigma).unwrap_err();
        assert!(error.status == Status::InvalidArgument && error.message.contains(words), "{error}");
    }
}

proptest! {
    /// Every published solver starts anywhere, two-stage ones too, and stays consistent: with a model
    /// that returns one and the same image, all end on the straight line to it.
    #[test]
    fn any_part_of_any_solver_is_a_schedule(which in 0usize..24, nfe in 2usize..9, at in 0.001f64..1.0, flow: bool) {
        let solver = lmsd::solver::solvers()[which].name.to_string();
        let process = if flow { Process::Flow } else { Process::Ve };
        let spec = lmsd::solver::Spec { solver, nfe, process, ..Default::default() };
        let Ok(whole) = lmsd::solver::solve(&spec) else { return Ok(()) };
        let sigma = at * whole.sigma_start();
        let part = whole.start_at(sigma).unwrap();
        prop_assert!(part.nfe() <= nfe && part.sigma_start() == sigma);
        let sum: f64 = part.expand(part.nfe())[1..].iter().sum();
        prop_assert!((sum - 1.0).abs() < 1e-9, "{sum}");
    }
}
