//! No panic crosses the ABI, and the ABI is the header: every export in src/ffi runs its body
//! inside a guard, and the cdylib exports the functions of include/lmsd.h and nothing else.

use std::collections::BTreeSet;
use std::path::Path;
use std::{env, fs};

use object::Object;
use syn::{Block, Expr, Item, ItemFn, Stmt};

/// What turns a panic into a status; `give_schedule` is a guarded function itself.
const GUARDS: [&str; 3] = ["guard", "guard_or", "give_schedule"];

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn functions(source: &str) -> Vec<ItemFn> {
    let items = syn::parse_file(source).unwrap().items;
    items.into_iter().filter_map(|item| if let Item::Fn(f) = item { Some(f) } else { None }).collect()
}

fn is_export(f: &ItemFn) -> bool {
    f.sig.abi.is_some()
}

/// Whether the body is one call of a guard, perhaps within `unsafe { }`, with a closure as its last
/// argument. Items such as a local struct run nothing.
fn is_guarded(body: &Block) -> bool {
    let statements: Vec<_> = body.stmts.iter().filter(|s| !matches!(s, Stmt::Item(_))).collect();
    match statements.as_slice() {
        [Stmt::Expr(Expr::Unsafe(inner), None)] => is_guarded(&inner.block),
        [Stmt::Expr(Expr::Call(call), None)] => {
            let Expr::Path(called) = &*call.func else { return false };
            GUARDS.iter().any(|guard| called.path.is_ident(guard))
                && matches!(call.args.last(), Some(Expr::Closure(_)))
        }
        _ => false,
    }
}

fn unguarded(source: &str) -> Vec<String> {
    let all = functions(source);
    let due = all.iter().filter(|f| is_export(f) || f.sig.ident == "give_schedule");
    due.filter(|f| !is_guarded(&f.block)).map(|f| f.sig.ident.to_string()).collect()
}

fn exports_of_the_header() -> BTreeSet<String> {
    let header = read("include/lmsd.h");
    let code: String = header.split("/*").map(|part| part.split("*/").last().unwrap_or_default()).collect();
    let names = code.match_indices("lmsd_").map(|(at, _)| {
        let end =
            code[at..].find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(code.len() - at);
        (&code[at..at + end], code[at + end..].starts_with('('))
    });
    names.filter(|(_, called)| *called).map(|(name, _)| name.to_string()).collect()
}

#[test]
fn every_export_is_guarded() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ffi");
    let mut exports = BTreeSet::new();
    for file in fs::read_dir(folder).unwrap() {
        let source = fs::read_to_string(file.unwrap().path()).unwrap();
        assert_eq!(unguarded(&source), Vec::<String>::new(), "these run outside guard and guard_or");
        exports.extend(functions(&source).iter().filter(|f| is_export(f)).map(|f| f.sig.ident.to_string()));
    }
    assert_eq!(exports, exports_of_the_header(), "src/ffi on the left, include/lmsd.h on the right");
}

#[test]
fn the_scan_can_fail() {
    let bad = r#"
        pub extern "C" fn bare() -> i32 { 1 }
        pub unsafe extern "C" fn work_before(p: *const i32) -> i32 { let v = unsafe { *p }; guard_or(0, || v) }
        pub extern "C" fn work_after() -> i32 { guard(|| Ok(())) as i32 }
        pub extern "C" fn no_closure() -> i32 { guard(work()) }
        pub extern "C" fn other_call() -> i32 { gaurd(|| Ok(())) }
        extern "C" fn private() {}
        fn give_schedule() -> i32 { 0 }
    "#;
    let names = ["bare", "work_before", "work_after", "no_closure", "other_call", "private", "give_schedule"];
    assert_eq!(unguarded(bad), names);
    let good = r#"
        pub extern "C" fn plain() -> i32 { guard_or(0, || 1) }
        pub extern "C" fn with_item() -> i32 { struct Local; guard_or(0, || 1) }
        pub unsafe extern "C" fn within() -> i32 { unsafe { give_schedule(out, || Ok(())) } }
        unsafe fn give_schedule() -> i32 { guard(|| Ok(())) }
        fn helper() -> i32 { 1 }
    "#;
    assert_eq!(unguarded(good), Vec::<String>::new());
}

/// The shared library of this build.
fn library() -> Vec<u8> {
    let name = format!("{}lmsd{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX);
    let path = env::current_exe().unwrap().with_file_name(name);
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn the_library_exports_the_header_and_nothing_else() {
    let bytes = library();
    let file = object::File::parse(&*bytes).unwrap();
    let exported = file.exports().unwrap();
    let exported: BTreeSet<_> = exported
        .iter()
        .map(|e| String::from_utf8_lossy(e.name()).trim_start_matches('_').to_string())
        .collect();
    assert_eq!(exported, exports_of_the_header(), "the library on the left, include/lmsd.h on the right");
}

#[cfg(target_os = "linux")]
type Pairs<A> = Vec<(A, A)>;

/// Segments as (type, flags), and the dynamic section as (tag, value).
#[cfg(target_os = "linux")]
fn tables(bytes: &[u8]) -> (Pairs<u32>, Pairs<u64>) {
    use object::read::elf::{Dyn, FileHeader, ProgramHeader};

    let head = object::elf::FileHeader64::<object::Endianness>::parse(bytes).unwrap();
    let end = head.endian().unwrap();
    let segments = head.program_headers(end, bytes).unwrap();
    let entries = segments.iter().find_map(|segment| segment.dynamic(end, bytes).unwrap()).unwrap();
    let segments = segments.iter().map(|segment| (segment.p_type(end), segment.p_flags(end))).collect();
    (segments, entries.iter().map(|entry| (entry.d_tag(end), entry.d_val(end))).collect())
}

/// What is wrong with memory that a loader makes of these.
#[cfg(target_os = "linux")]
fn soft_spots(segments: &[(u32, u32)], entries: &[(u64, u64)]) -> Vec<&'static str> {
    use object::elf::*;

    let flags =
        |tag: u32| entries.iter().filter(|(t, _)| *t == u64::from(tag)).fold(0, |all, (_, f)| all | f);
    let has = |tag: u32| entries.iter().any(|(t, _)| *t == u64::from(tag));
    let now = has(DT_BIND_NOW)
        || flags(DT_FLAGS) & u64::from(DF_BIND_NOW) != 0
        || flags(DT_FLAGS_1) & u64::from(DF_1_NOW) != 0;
    let relro = segments.iter().any(|(kind, _)| *kind == PT_GNU_RELRO);
    let stack = segments.iter().find(|(kind, _)| *kind == PT_GNU_STACK);
    let both = |flags: u32| flags & PF_W != 0 && flags & PF_X != 0;
    [
        ("no full RELRO", !(now && relro)),
        ("an executable stack", stack.is_none_or(|(_, flags)| flags & PF_X != 0)),
        ("memory to write and to run", segments.iter().any(|(kind, flags)| *kind == PT_LOAD && both(*flags))),
        ("relocations in code", has(DT_TEXTREL) || flags(DT_FLAGS) & u64::from(DF_TEXTREL) != 0),
        ("a search path of its own", has(DT_RPATH) || has(DT_RUNPATH)),
    ]
    .into_iter()
    .filter_map(|(what, bad)| bad.then_some(what))
    .collect()
}

#[test]
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn the_library_has_full_relro_no_executable_stack_and_no_search_path() {
    let (segments, entries) = tables(&library());
    assert_eq!(soft_spots(&segments, &entries), Vec::<&str>::new());
    use object::elf::*;
    let soft =
        soft_spots(&[(PT_LOAD, PF_R | PF_W | PF_X)], &[(DT_TEXTREL.into(), 0), (DT_RUNPATH.into(), 1)]);
    assert_eq!(soft.len(), 5, "{soft:?}");
}
