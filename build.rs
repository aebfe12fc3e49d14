//! Names the shared library as a packaged one is named: programs that link it ask for liblmsd.so.0.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,liblmsd.so.0");
    }
}
