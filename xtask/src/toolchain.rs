//! The compiler and linker of the kernel side.
//!
//! The BPF target has no precompiled `core`, so the library source of the very compiler used is
//! needed, and a linker whose LLVM is not older than that compiler's. Looked for in this order:
//! the pinned rustup nightly with `rust-src`, then a distribution's compiler with matching source;
//! what can be set up is set up in the same order.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    setup::{self, Package},
    step,
    workspace::Workspace,
};

/// The pinned rustup toolchain: rustc 1.97.0-nightly (e50aa6fba 2026-05-19), LLVM 22.1.
const NIGHTLY: &str = "nightly-2026-05-20";
/// First line of what its `rustc -V` prints, for a toolchain installed under another name.
const NIGHTLY_RUSTC: &str = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)";
/// Major version of the LLVM that compiler and linker share.
const LLVM_MAJOR: &str = "22";
/// Where a distribution keeps its compiler.
const DISTRIBUTION_BIN: &str = "/usr/bin";
const BPF_LINKER: &str = "0.13.0";

const RUSTC: Package = Package {
    name: "rustc-web",
    purpose: "compiler of the kernel side",
};
const CARGO: Package = Package {
    name: "cargo-web",
    purpose: "cargo that goes with it",
};
const RUST_SOURCE: Package = Package {
    name: "rust-web-src",
    purpose: "its library source: the BPF target has no precompiled core",
};
const LLVM: Package = Package {
    name: "llvm-22-dev",
    purpose: "LLVM that bpf-linker is built against",
};
const CXX: Package = Package {
    name: "g++",
    purpose: "links bpf-linker to LLVM",
};

/// A compiler that can build the kernel side.
#[derive(Debug)]
pub struct Toolchain {
    pub rustc: PathBuf,
    pub cargo: PathBuf,
    /// What it is, for messages.
    pub name: String,
}

/// Finds the toolchain, setting it up where it is missing.
///
/// # Errors
/// Where there is none and none can be set up: the message names the commands to type.
pub fn find() -> Result<Toolchain> {
    if let Some(found) = rustup().or_else(distribution) {
        return Ok(found);
    }
    let mut reasons = Vec::new();
    if setup::find_program("rustup").is_some() {
        eprintln!("no compiler for the BPF target yet: installing {NIGHTLY} through rustup");
        let mut command = Command::new("rustup");
        command.args(["toolchain", "install", NIGHTLY]);
        command.args(["--profile", "minimal", "--component", "rust-src"]);
        match step::run("rustup toolchain install", &mut command) {
            Ok(()) => {
                if let Some(found) = rustup() {
                    return Ok(found);
                }
            }
            Err(error) => reasons.push(format!("{error:#}")),
        }
    }
    if setup::is_debian() {
        match setup::install(&[&RUSTC, &CARGO, &RUST_SOURCE]) {
            Ok(()) => match distribution() {
                Some(found) => return Ok(found),
                None => reasons.push(format!(
                    "{DISTRIBUTION_BIN}/rustc has no library source or another LLVM than \
                     {LLVM_MAJOR}"
                )),
            },
            Err(error) => reasons.push(format!("{error:#}")),
        }
    }
    for reason in &reasons {
        eprintln!("{reason}");
    }
    bail!(
        "no compiler for the BPF target. Either, with rustup:\n  \
         rustup toolchain install {NIGHTLY} --profile minimal --component rust-src\n\
         or, on Debian 12, as root:\n  \
         apt-get update && apt-get install {} {} {} {} {}",
        RUSTC.name,
        CARGO.name,
        RUST_SOURCE.name,
        LLVM.name,
        CXX.name,
    )
}

/// The pinned nightly under its own name, or as the installed `nightly`.
fn rustup() -> Option<Toolchain> {
    setup::find_program("rustup")?;
    [NIGHTLY, "nightly"].into_iter().find_map(|name| {
        let which = |program| {
            // Asking rustup about a toolchain that is absent must not make it fetch one.
            step::output(
                Command::new("rustup")
                    .env("RUSTUP_AUTO_INSTALL", "0")
                    .args(["which", "--toolchain", name, program]),
            )
            .map(PathBuf::from)
        };
        let rustc = which("rustc")?;
        let version = step::output(Command::new(&rustc).arg("-V"))?;
        let usable = version == NIGHTLY_RUSTC && has_library_source(&rustc);
        usable.then_some(())?;
        Some(Toolchain {
            cargo: which("cargo")?,
            rustc,
            name: format!("rustup's {name}"),
        })
    })
}

fn distribution() -> Option<Toolchain> {
    let bin = Path::new(DISTRIBUTION_BIN);
    let (rustc, cargo) = (bin.join("rustc"), bin.join("cargo"));
    let version = step::output(Command::new(&rustc).arg("-vV"))?;
    let usable =
        llvm_major(&version) == Some(LLVM_MAJOR) && cargo.is_file() && has_library_source(&rustc);
    usable.then(|| Toolchain {
        name: version.lines().next().unwrap_or("rustc").to_owned(),
        rustc,
        cargo,
    })
}

/// `LLVM version: 22.1.8` of `rustc -vV`, the part before the first point.
fn llvm_major(verbose_version: &str) -> Option<&str> {
    verbose_version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?
        .split('.')
        .next()
}

fn has_library_source(rustc: &Path) -> bool {
    step::output(Command::new(rustc).args(["--print", "sysroot"])).is_some_and(|sysroot| {
        Path::new(&sysroot)
            .join("lib/rustlib/src/rust/library/core/Cargo.toml")
            .is_file()
    })
}

/// The linker, built once and kept below the target directory.
///
/// # Errors
/// Where its LLVM is missing and cannot be installed, or where it cannot be built.
pub fn linker(workspace: &Workspace, toolchain: &Toolchain) -> Result<PathBuf> {
    let root = workspace.target.join("tools");
    let linker = root.join("bin/bpf-linker");
    let expected = format!("bpf-linker {BPF_LINKER}");
    if step::output(Command::new(&linker).arg("--version")).is_some_and(|found| found == expected) {
        return Ok(linker);
    }
    let prefix = llvm_prefix()?;
    eprintln!("building {expected} (once, about a minute)");
    let mut path = vec![prefix.join("bin")];
    path.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    let mut command = workspace.foreign_cargo(&toolchain.cargo);
    command
        .args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked"])
        .args(["--force", "--no-default-features"])
        .args(["--features", &format!("llvm-{LLVM_MAJOR}"), "--root"])
        .arg(&root)
        .env("CARGO_TARGET_DIR", root.join("build"))
        .env("RUSTC", &toolchain.rustc)
        .env("LLVM_PREFIX", &prefix)
        .env("PATH", std::env::join_paths(path).context("PATH")?);
    step::run("cargo install bpf-linker", &mut command)?;
    let found = step::output(Command::new(&linker).arg("--version")).unwrap_or_default();
    if found != expected {
        bail!("{} says {found:?}, not {expected:?}", linker.display());
    }
    // The intermediate files are some hundred megabytes and never used again.
    let _ = std::fs::remove_dir_all(root.join("build"));
    Ok(linker)
}

/// Installation prefix of the LLVM to link with.
fn llvm_prefix() -> Result<PathBuf> {
    if let Some(prefix) = installed_llvm() {
        if setup::is_debian() {
            setup::install(&[&CXX])?;
        }
        return Ok(prefix);
    }
    if setup::is_debian() {
        setup::install(&[&LLVM, &CXX])?;
    }
    installed_llvm().with_context(|| {
        format!(
            "bpf-linker needs the development files of LLVM {LLVM_MAJOR}; on Debian 12, as root: \
             apt-get install {} {}",
            LLVM.name, CXX.name
        )
    })
}

fn installed_llvm() -> Option<PathBuf> {
    let versioned = format!("/usr/lib/llvm-{LLVM_MAJOR}/bin/llvm-config");
    [
        versioned,
        format!("llvm-config-{LLVM_MAJOR}"),
        "llvm-config".to_owned(),
    ]
    .iter()
    .find_map(|config| {
        let version = step::output(Command::new(config).arg("--version"))?;
        (version.split('.').next() == Some(LLVM_MAJOR)).then_some(())?;
        step::output(Command::new(config).arg("--prefix")).map(PathBuf::from)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_major_is_read_from_the_verbose_version() {
        let text = "rustc 1.96.0 (ac68faa20 2026-05-25)\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(llvm_major(text), Some("22"));
        assert_eq!(llvm_major("rustc 1.96.0\n"), None);
    }
}
