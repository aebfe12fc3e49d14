//! What `make fuzz` runs for long, for a few seconds and on any toolchain: the corpus, and inputs made from fixed seeds.
//! Faults that were found stay in the corpus.

#[path = "../fuzz/bodies/mod.rs"]
mod bodies;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use bodies::{ALL, Body};

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

/// The inputs of a target, by name.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let files = fs::read_dir(folder(target)).unwrap().map(|file| file.unwrap().path());
    let mut all: Vec<_> = files
        .map(|file| (file.file_name().unwrap().to_string_lossy().into(), fs::read(&file).unwrap()))
        .collect();
    all.sort();
    assert!(!all.is_empty(), "{target} has no corpus");
    all
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 16) as usize % bound.max(1)
    }
}

/// An input with a few bytes changed, dropped, or taken from another.
fn changed(random: &mut Random, all: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut input = all[random.below(all.len())].1.clone();
    for _ in 0..1 + random.below(4) {
        let at = random.below(input.len() + 1);
        match random.below(4) {
            0 if at < input.len() => input[at] = random.next() as u8,
            1 if at < input.len() => input[at] ^= 1 << random.below(8),
            2 => input.truncate(at),
            _ => {
                let other = &all[random.below(all.len())].1;
                let from = random.below(other.len());
                input.splice(at..at, other[from..(from + 16).min(other.len())].iter().copied());
            }
        }
    }
    input
}

fn replay(target: &str, generated: usize) {
    let body: Body = ALL.iter().find(|(name, _)| *name == target).unwrap().1;
    let all = corpus(target);
    // Miri takes ten seconds for each.
    for (name, input) in all.iter().take(if cfg!(miri) { 4 } else { usize::MAX }) {
        println!("corpus/{target}/{name}"); // says which, where the process ends
        body(input);
    }
    let mut random = Random(0x243f_6a88_85a3_08d3);
    let generated = if cfg!(miri) { 0 } else { generated };
    for at in 0..generated {
        let input = changed(&mut random, &all);
        println!("generated {at}: {input:?}");
        body(&input);
    }
}

#[test]
fn schedule() {
    replay("schedule", 4000);
}

#[test]
fn solver_options() {
    replay("solver_options", 500);
}

#[test]
fn distill_options() {
    replay("distill_options", 2000);
}

#[test]
fn journal() {
    replay("journal", 1000);
}

#[test]
fn tensor() {
    replay("tensor", 10_000);
}

#[test]
fn calls() {
    replay("calls", 2000);
}

#[test]
fn every_target_has_a_test_and_every_export_is_called() {
    let read = |path: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let test = read("tests/fuzz_corpus.rs");
    for (target, _) in ALL {
        assert!(test.contains(&format!("replay(\"{target}\", ")), "{target}");
        assert!(read("fuzz/Cargo.toml").contains(&format!("fuzz_targets/{target}.rs")), "{target}");
    }
    let header = read("include/lmsd.h");
    let code: String = header.split("/*").map(|part| part.split("*/").last().unwrap_or_default()).collect();
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let exported: BTreeSet<&str> = code
        .split(|c: char| !word(c) && c != '(')
        .filter_map(|part| part.split_once('(').map(|(name, _)| name))
        .filter(|name| name.starts_with("lmsd_"))
        .collect();
    assert_eq!(bodies::abi::NAMES.iter().copied().collect::<BTreeSet<_>>(), exported);
    let bodies = ["toy", "readers", "journal", "tensor", "calls"]
        .map(|f| read(&format!("fuzz/bodies/{f}.rs")))
        .concat();
    for name in exported {
        assert!(bodies.contains(&format!("{name}(")), "{name} is never called");
    }
}
