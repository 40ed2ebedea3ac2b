//! Puts the kernel side's object where the agent embeds it from: `$OUT_DIR/perf-agent.o`.
//!
//! The object is `PERF_AGENT_BPF` where that is set, else what `cargo xtask build` left in
//! `<target>/bpf/`. Without one an empty file is embedded, so that the host side builds and its
//! tests run on a machine that has no BPF toolchain; the agent says so when asked to trace.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=PERF_AGENT_BPF");
    println!("cargo:rerun-if-env-changed=CARGO_TARGET_DIR");

    let destination = variable("OUT_DIR")?.join("perf-agent.o");
    let object = match env::var_os("PERF_AGENT_BPF") {
        Some(path) => {
            let path = PathBuf::from(path);
            println!("cargo:rerun-if-changed={}", path.display());
            path
        }
        None => {
            let directory = target_directory()?.join("bpf");
            // A path that does not exist would make cargo run this script on every build; the
            // directory is watched in its place, and exists from here on.
            fs::create_dir_all(&directory)?;
            println!("cargo:rerun-if-changed={}", directory.display());
            let path = directory.join("perf-agent.o");
            if !path.is_file() {
                return fs::write(destination, []);
            }
            path
        }
    };
    fs::copy(&object, &destination)
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", object.display())))?;
    Ok(())
}

fn target_directory() -> io::Result<PathBuf> {
    let workspace = variable("CARGO_MANIFEST_DIR")?;
    let workspace = workspace.parent().unwrap_or(Path::new("."));
    Ok(match env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => workspace.join(directory),
        None => workspace.join("target"),
    })
}

fn variable(name: &str) -> io::Result<PathBuf> {
    env::var_os(name)
        .map(PathBuf::from)
        .ok_or_else(|| io::Error::other(format!("{name} is not set: cargo runs this script")))
}
