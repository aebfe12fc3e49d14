//! include/lmsd.h is what cbindgen makes of the exports in src/ffi, and of the types that they name.

use std::path::Path;
use std::{env, fs};

/// In the order in which the header has them.
const SOURCES: [&str; 11] = [
    "error",
    "call",
    "tensor/descriptor",
    "host",
    "ffi/library",
    "ffi/schedule",
    "ffi/solvers",
    "ffi/tensors",
    "ffi/sample",
    "ffi/problem",
    "ffi/distill",
];

fn generated() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    // Not the whole crate: public constants of other modules are no part of the ABI.
    let builder = SOURCES
        .iter()
        .fold(cbindgen::Builder::new(), |b, file| b.with_src(root.join(format!("src/{file}.rs"))));
    let bindings = builder.with_config(config).generate().unwrap();
    let mut text = Vec::new();
    bindings.write(&mut text);
    let text = String::from_utf8(text).unwrap();
    // The types of src/ffi/pointers.rs, which cbindgen.toml names by what they are.
    with_options(
        &text
            .replace("void * ", "void *")
            .replace("char * ", "char *")
            .replace("lmsd_host * ", "lmsd_host *"),
    )
}

/// Public fields of a struct in a source file, but for those that are not written.
fn fields(source: &str, name: &str) -> Vec<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(source)).unwrap();
    let file = syn::parse_file(&text).unwrap();
    let structs = file.items.iter().filter_map(|item| match item {
        syn::Item::Struct(found) if found.ident == name => Some(found),
        _ => None,
    });
    let skipped = |field: &&syn::Field| field.attrs.iter().any(|a| quote_of(a) == "skip");
    let fields = structs.flat_map(|found| &found.fields).filter(|field| !skipped(field));
    fields.map(|field| field.ident.as_ref().unwrap().to_string()).collect()
}

/// What is in `#[serde(...)]`, where that is one word.
fn quote_of(attribute: &syn::Attribute) -> String {
    if !attribute.path().is_ident("serde") {
        return String::new();
    }
    attribute.parse_args::<syn::Ident>().map_or(String::new(), |word| word.to_string())
}

#[test]
fn every_field_of_the_report_and_of_made_for_is_named() {
    let header = generated();
    let report = "src/distill/report.rs";
    for (source, name, least) in [
        (report, "Distilled", 12),
        (report, "Fitted", 4),
        (report, "Trace", 3),
        ("src/schedule.rs", "MadeFor", 14),
    ] {
        let fields = fields(source, name);
        assert!(fields.len() >= least, "{name}: {fields:?}");
        for field in fields {
            assert!(header.contains(&format!("`\"{field}\"`")), "the header does not name {field} of {name}");
        }
    }
}

/// Lines " * [options of NAME]" replaced by the manual of these options, 110 columns wide.
fn with_options(header: &str) -> String {
    let all = lmsd::options::all();
    let line = |line: &str| match line.strip_prefix(" * [options of ").and_then(|l| l.strip_suffix(']')) {
        Some(name) => lmsd::options::manual(&all[name]).iter().flat_map(|text| wrapped(text)).collect(),
        None => vec![line.to_string()],
    };
    let lines: Vec<String> = header.split('\n').flat_map(line).collect();
    assert!(!lines.iter().any(|line| line.contains("[options of")), "an unknown list of options");
    lines.join("\n")
}

fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![" * ".to_string()];
    for (i, word) in text.split(' ').enumerate() {
        let last = lines.last_mut().unwrap();
        if last.len() + word.len() > 108 {
            lines.push(format!(" *   {word}"));
        } else {
            *last += &format!("{}{word}", if i == 0 { "" } else { " " });
        }
    }
    lines
}

#[test]
fn the_header_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/lmsd.h");
    let new = generated();
    if env::var_os("LMSD_UPDATE_HEADER").is_some_and(|v| v == "1") {
        fs::write(&path, new).unwrap();
        return;
    }
    let old = fs::read_to_string(&path).unwrap_or_default();
    if let Some(line) = first_difference(&old, &new) {
        panic!(
            "include/lmsd.h differs from src/ffi, first at line {line}; update it with\n    \
             LMSD_UPDATE_HEADER=1 cargo test --test header"
        );
    }
}

/// The number of the first line that differs, from 1.
fn first_difference(a: &str, b: &str) -> Option<usize> {
    let same = a.split('\n').zip(b.split('\n')).take_while(|(a, b)| a == b).count();
    (a != b).then_some(same + 1)
}

#[test]
fn a_difference_is_seen() {
    assert_eq!(first_difference("a\nb\n", "a\nb\n"), None);
    assert_eq!(first_difference("a\nb\n", "a\nc\n"), Some(2));
    assert_eq!(first_difference("a\n", "a\nb\n"), Some(2));
    assert_eq!(first_difference("a\nb", "a\nb\n"), Some(3));
}
