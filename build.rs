//! Names the shared library as a packaged one is named: programs that link it ask for liblmsd.so.0.
//! With the feature `torch`, lets tests and benchmarks find libtorch where they were built with it;
//! what ships has no rpath.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Without the C ABI this is not that library, but part of another one.
    let abi = std::env::var_os("CARGO_FEATURE_ABI").is_some();
    if abi && std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,liblmsd.so.0");
        // Stays loaded after dlclose: its threads, asleep, have their code in it.
        println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
    // Set by torch-sys. Packages that depend on this one set their own.
    if let Ok(folder) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        for target in ["tests", "benches", "examples"] {
            println!("cargo::rustc-link-arg-{target}=-Wl,-rpath,{folder}");
        }
    }
}
