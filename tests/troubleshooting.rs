//! docs/troubleshooting.md has every status, its texts are those of the code, and real errors are found in it.

use std::path::{Path, PathBuf};
use std::{fs, io};

use lmsd::distill::Config;
use lmsd::sample::sample;
use lmsd::solver::{Spec, solve};
use lmsd::tensor::{Cpu, CpuTensor, Dtype};
use lmsd::{Error, Schedule, Status, Tensors};
use syn::{Item, parse_file};

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

/// `InvalidArgument` as `INVALID_ARGUMENT`.
fn in_c(name: &str) -> String {
    let word =
        |(at, c): (usize, char)| if at > 0 && c.is_uppercase() { format!("_{c}") } else { c.to_string() };
    name.char_indices().map(word).collect::<String>().to_uppercase()
}

/// Name and number of each failure in src/error.rs.
fn statuses() -> Vec<(String, i32)> {
    let source = fs::read_to_string(root().join("src/error.rs")).unwrap();
    let items = parse_file(&source).unwrap().items;
    let status = items.into_iter().find_map(|item| match item {
        Item::Enum(found) if found.ident == "Status" => Some(found),
        _ => None,
    });
    let names = status.unwrap().variants.into_iter().map(|variant| variant.ident.to_string());
    names.enumerate().map(|(number, name)| (in_c(&name), number as i32)).skip(1).collect()
}

/// Status and text of each row: `(7, "checkpoint … was made")`.
fn rows() -> Vec<(i32, String)> {
    let page = fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    let (mut status, mut rows) = (None, Vec::new());
    for line in page.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            let (name, rest) = title.split_once(" (").unwrap();
            let number = rest.split_once(')').unwrap().0.parse().unwrap();
            assert!(statuses().contains(&(name.to_string(), number)), "there is no {title}");
            status = Some(number);
        } else if let Some(row) = line.strip_prefix("| `") {
            let cells: Vec<_> = row.split(" | ").collect();
            let text = cells[0].strip_suffix('`').unwrap_or_else(|| panic!("{line}"));
            assert!(cells.len() == 3 && cells[1].len() > 5 && cells[2].len() > 5, "{line}");
            rows.push((status.unwrap(), text.to_string()));
        }
    }
    rows
}

/// A file's text with `…` for each `{…}`, and literals that go over several lines in one.
fn simplified(source: &str) -> String {
    let mut text = String::new();
    let mut parts = source.split("\\\n");
    text.push_str(parts.next().unwrap_or_default());
    parts.for_each(|part| text.push_str(part.trim_start()));
    let mut out = String::new();
    for line in text.replace("\\\"", "\"").lines() {
        // Within a line: braces of code are open over several.
        let mut depth = 0;
        for c in line.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth > 0 => {
                    depth -= 1;
                    out.push_str(if depth == 0 { "…" } else { "" });
                }
                _ if depth == 0 => out.push(c),
                _ => {}
            }
        }
        out.push('\n');
    }
    out
}

fn sources(folder: &Path, all: &mut String) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, all)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push_str(&simplified(&fs::read_to_string(path)?));
        }
    }
    Ok(())
}

/// Whether a message is of this form.
fn fits(message: &str, form: &str) -> bool {
    let mut rest = message;
    form.split('…').all(|part| match rest.find(part) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    })
}

#[test]
fn every_status_has_a_row() {
    for (name, number) in statuses() {
        assert!(
            rows().iter().any(|(status, _)| *status == number),
            "{name} is not in docs/troubleshooting.md"
        );
    }
}

#[test]
fn every_text_is_one_of_the_code() {
    let mut code = String::new();
    sources(&root().join("src"), &mut code).unwrap();
    for (_, text) in rows() {
        assert!(code.contains(&text), "src/ has no text: {text}");
    }
}

#[test]
fn real_errors_are_found() {
    let start = CpuTensor::from_f64(Dtype::F64, &[1, 1], &[80.0]).unwrap();
    let other = CpuTensor::from_f64(Dtype::F32, &[1, 1], &[80.0]).unwrap();
    let euler = solve(&Spec { solver: "euler".into(), nfe: 2, ..Spec::default() }).unwrap();
    let nan = sample(&Cpu, &euler, &start, |x, _, d| Cpu.lincomb(d, &[(f64::NAN, x)]));
    let mut copy = Cpu.alloc(&start).unwrap();
    let errors: Vec<Error> = vec![
        Config::from_json("{\"nfes\": 3}").err().unwrap(),
        solve(&Spec { solver: "none".into(), ..Spec::default() }).err().unwrap(),
        solve(&Spec { solver: "heun".into(), nfe: 2, ..Spec::default() }).err().unwrap(),
        Schedule::from_json("{}").err().unwrap(),
        Schedule::from_json(&euler.to_json().replace("\"nfe\": 2", "\"nfe\": 3")).err().unwrap(),
        Schedule::load(Path::new("/no/such/file")).err().unwrap(),
        Cpu.lincomb(&mut copy, &[(1.0, &other)]).err().unwrap(),
        nan.err().unwrap(),
    ];
    for error in errors {
        let row = rows().into_iter().find(|(status, form)| {
            *status == error.status as i32 && form.len() > 12 && fits(&error.message, form)
        });
        assert!(row.is_some(), "not in docs/troubleshooting.md: {:?} {error}", error.status);
    }
    assert_eq!(statuses().len(), Status::Internal as usize);
}

#[test]
fn the_reading_of_the_page_and_of_the_code_can_fail() {
    assert!(fits("nfe is 3 but there are 2 nodes", "nfe is … but there are … nodes"));
    assert!(!fits("nfe is 3", "nfe is … but there are … nodes"));
    let source = "if x {\n format!(\"a {b} of \\\n    {c:?}; \\\"d\\\"\")\n}";
    assert!(simplified(source).contains("a … of …; \"d\""));
    assert_eq!(in_c("OutOfMemory"), "OUT_OF_MEMORY");
}
