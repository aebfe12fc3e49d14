//! Promises to those who stayed with an older version: its files are read and sample to the same numbers, and programs
//! compiled against its header run with today's library, or say themselves that they cannot.
//!
//! `tests/released/VERSION` has a header as it was, a program for it, and the files that it wrote with the library of that
//! time. A released version gets a folder of its own; nothing in a folder is changed afterwards.
#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

use lmsd::distill::{Call, Config, Problem, distill};
use lmsd::tensor::{Cpu, CpuTensor, Dtype};
use lmsd::{Result, Schedule, Status};

fn folder(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/released").join(version)
}

/// The program of a version, compiled against its header and run with the library of this build.
fn run(version: &str, arguments: &[&str]) -> Output {
    let (here, build) = (folder(version), tempfile::tempdir().unwrap());
    let library = env::current_exe().unwrap().with_file_name("liblmsd.so");
    for name in ["liblmsd.so", "liblmsd.so.0"] {
        std::os::unix::fs::symlink(&library, build.path().join(name)).unwrap();
    }
    let program = build.path().join("program");
    let mut cc = Command::new(env::var("CC").unwrap_or("cc".into()));
    cc.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-I"]).arg(&here).arg(here.join("program.c"));
    cc.arg("-L").arg(build.path()).args(["-llmsd", "-lm", "-o"]).arg(&program);
    let compiled = cc.output().expect("a C compiler, which cargo needs to link");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    Command::new(&program).args(arguments).env("LD_LIBRARY_PATH", build.path()).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Name and numbers of each line.
fn numbers(text: &str) -> Vec<(String, Vec<f64>)> {
    let line = |line: &str| {
        let mut words = line.split(' ').map(String::from);
        let name = words.next().unwrap();
        (name, words.map(|word| word.parse().unwrap()).collect())
    };
    text.lines().map(line).collect()
}

#[test]
fn files_of_0_1_0_are_read_by_its_program_and_sample_to_the_same_numbers() {
    let here = folder("0.1.0");
    let output = run("0.1.0", &["read", here.to_str().unwrap()]);
    assert!(output.status.success(), "{}", said(&output));
    let (found, then) =
        (numbers(&said(&output)), numbers(&fs::read_to_string(here.join("ends.txt")).unwrap()));
    assert_eq!(then.len(), 4);
    for ((name, found), (name_then, then)) in found.iter().zip(&then) {
        assert_eq!((name, found.len(), 6), (name_then, then.len(), found.len()));
        for (a, b) in found.iter().zip(then) {
            assert!((a - b).abs() <= 1e-9 * b.abs().max(1.0), "{name}: {found:?}, then {then:?}");
        }
        assert!(fs::read_dir(&here).unwrap().any(|file| file.unwrap().file_name().to_str() == Some(name)));
    }
}

#[test]
fn files_of_0_1_0_are_written_again_to_the_same_table() {
    for file in ["heun.json", "unipc.json", "flow.json", "distilled.json"] {
        let then = Schedule::load(&folder("0.1.0").join(file)).unwrap();
        assert_eq!(Schedule::from_json(&then.to_json()), Ok(then), "{file}");
    }
}

/// The model's callback got another argument since.
#[test]
fn a_program_of_c_abi_1_that_calls_a_model_is_told_by_the_abi_version() {
    let output = run("0.1.0", &["write", env::temp_dir().to_str().unwrap()]);
    let words = "this program knows C ABI 1 of lmsd, the library has 2\n";
    assert_eq!((output.status.code(), said(&output).as_str()), (Some(3), words));
}

#[test]
fn a_program_with_the_shorter_structs_of_this_abi_runs() {
    let grown = ["size_t unwritten;", "(*features)(void *user_data"];
    let header = |path: PathBuf| fs::read_to_string(path).unwrap();
    let (then, now) = (header(folder("abi-2").join("lmsd.h")), header(folder("../../include/lmsd.h")));
    assert!(grown.iter().all(|field| now.contains(field) && !then.contains(field)));
    let output = run("abi-2", &[]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(said(&output).trim(), env!("CARGO_PKG_VERSION"));
}

/// The problem of that program.
struct Then;

impl Problem<CpuTensor> for Then {
    fn begin(&mut self, _: u64, _: &mut CpuTensor) -> Result<()> {
        panic!("refused before");
    }

    fn denoise(&mut self, _: &CpuTensor, _: &Call, _: &mut CpuTensor) -> Result<()> {
        panic!("refused before");
    }
}

#[test]
fn a_checkpoint_of_0_1_0_is_refused_with_a_sentence_and_left_as_it_is() {
    let (there, build) = (folder("0.1.0").join("checkpoint"), tempfile::tempdir().unwrap());
    let copy = build.path().join("checkpoint");
    fs::copy(&there, &copy).unwrap();
    let options = r#"{"nfe": 2, "trajectories": 4, "held_out": 4, "teacher_nfe": 8, "iterations": 2}"#;
    let config = Config { checkpoint: Some(copy.clone()), ..Config::from_json(options).unwrap() };
    let like = CpuTensor::zeros(Dtype::F64, &[2, 3]).unwrap();
    let error = distill(&Cpu, &config, &like, &mut Then).err().unwrap();
    assert_eq!(error.status, Status::Mismatch, "{error}");
    assert!(error.message.contains("another version"), "{error}");
    assert_eq!(fs::read(&copy).unwrap(), fs::read(&there).unwrap());
}
