//! Which library of tensors is loaded beside which libtorch: all by small stand-ins, made by the C compiler.
//! One test: what a process has loaded stays.
#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::process::Command;

use lmsd::libtorch::host;
use lmsd::{Error, Status};

/// Compiles `code` to a shared library and returns its path.
fn library(folder: &Path, name: &str, code: &str) -> PathBuf {
    let (source, path) = (folder.join("source.c"), folder.join(name));
    std::fs::write(&source, code).unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", &format!("-Wl,-soname,{name}"), "-o"]).arg(&path).arg(&source);
    assert!(cc.status().expect("a C compiler, cc").success());
    path
}

/// A library of tensors whose table is empty, but is there.
fn tensors(version: &str, table: &str) -> String {
    format!(
        "static long functions[32]; const char *lmsd_torch_version(void) {{ return \"{version}\"; }}\n\
         const void *lmsd_torch_table(void) {{ return {table}; }}"
    )
}

fn refusal(library: Option<&Path>, status: Status, words: &str) {
    let error: Error = host(library).err().unwrap();
    assert!(error.status == status && error.message.contains(words), "{:?}: {error}", error.status);
}

#[test]
fn only_the_library_for_the_libtorch_that_is_loaded_is_taken() {
    const OWN: &str = env!("CARGO_PKG_VERSION");
    const FILE: &str = "liblmsd_torch_2_77.so";
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| {
        let folder = folder.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        folder
    };
    let good = library(&at("good"), FILE, &tensors(OWN, "functions"));
    refusal(Some(&good), Status::WrongState, "no libtorch");

    let torch = "unsigned long aoti_torch_abi_version(void) { return 2ul << 56 | 77ul << 48 | 1ul << 40; }";
    let torch = library(folder.path(), "libtorch_cpu.so", torch);
    // SAFETY: it has one function and nothing that runs when it is loaded.
    let torch = unsafe { libloading::Library::new(torch) }.unwrap();

    refusal(None, Status::Mismatch, FILE);
    refusal(Some(&folder.path().join("liblmsd_torch_2_11.so")), Status::Mismatch, "is not made for that");
    refusal(Some(&folder.path().join("missing").join(FILE)), Status::Mismatch, "there is no");
    refusal(Some(Path::new(FILE)), Status::Mismatch, "there is no");
    let text = at("text").join(FILE);
    std::fs::write(&text, "no library").unwrap();
    refusal(Some(&text), Status::Io, "file too short");
    for (name, code, words) in [
        ("empty", "int nothing;".into(), "is no library of tensors"),
        ("null", tensors(OWN, "0"), "is no library of tensors"),
        ("old", tensors("0.0.1", "functions"), "is of lmsd 0.0.1"),
    ] {
        refusal(Some(&library(&at(name), FILE, &code)), Status::Mismatch, words);
    }

    // After all these failures the right one is taken, and no second one.
    let table = std::ptr::from_ref(host(Some(&good)).unwrap());
    let link = at("link").join(FILE);
    std::os::unix::fs::symlink(&good, &link).unwrap();
    for same in [&good, &link] {
        assert_eq!(std::ptr::from_ref(host(Some(same)).unwrap()), table);
    }
    // A bare name is that of the file here, not of one that the loader finds.
    std::env::set_current_dir(good.parent().unwrap()).unwrap();
    assert_eq!(std::ptr::from_ref(host(Some(Path::new(FILE))).unwrap()), table);
    let second = library(&at("second"), FILE, &tensors(OWN, "functions"));
    refusal(Some(&second), Status::Mismatch, "has loaded");
    drop(torch);
}
