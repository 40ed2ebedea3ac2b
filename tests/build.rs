//! Sets `corpora` where public captures lie for `tests/corpora.rs`, so that a run without them says
//! that its tests were left out.

use std::{env, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=PERF_AGENT_CORPORA");
    println!("cargo::rustc-check-cfg=cfg(corpora)");
    let named = env::var_os("PERF_AGENT_CORPORA").map(PathBuf::from);
    let manifest = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let beside = manifest.map(|tests| tests.join("../../shared/corpora"));
    let Some(directory) = named.or(beside) else {
        return;
    };
    println!("cargo::rerun-if-changed={}", directory.display());
    if directory.join("deepflow").is_dir() {
        println!("cargo::rustc-cfg=corpora");
        println!(
            "cargo::rustc-env=PERF_AGENT_CORPORA={}",
            directory.display()
        );
    }
}
