//! Builds the kernel side into one object, and the agent that embeds it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    step, toolchain,
    workspace::{Profile, Workspace},
};

#[cfg(target_endian = "little")]
const BPF_TARGET: &str = "bpfel-unknown-none";
#[cfg(target_endian = "big")]
const BPF_TARGET: &str = "bpfeb-unknown-none";

/// Builds both sides; the agent's path.
///
/// # Errors
/// Where the toolchain is missing or a build fails.
pub fn build_all(workspace: &Workspace, profile: Profile) -> Result<PathBuf> {
    build_object(workspace)?;
    let mut command = workspace.cargo();
    // With the features of shared dependencies that the tests ask for: by itself it, and all it stands on, would
    // be built again for them. What is built is the agent alone.
    command.args([
        "build",
        "--package",
        "perf-agent",
        "--package",
        "perf-agent-tests",
    ]);
    command.args(["--bin", "perf-agent"]);
    if profile == Profile::Release {
        command.arg("--release");
    }
    step::run("building perf-agent", &mut command)?;
    Ok(workspace.agent(profile))
}

/// Builds the kernel side; the object's path.
///
/// # Errors
/// Where the toolchain is missing or the build fails.
pub fn build_object(workspace: &Workspace) -> Result<PathBuf> {
    let toolchain = toolchain::find()?;
    let linker = toolchain::linker(workspace, &toolchain)?;
    // A target directory of its own: the compiler differs from the host's, and sharing one would
    // make each build throw away the other's fingerprints.
    let target = workspace.target.join("bpf-build");
    let flags = [
        format!("-Clinker={}", linker.display()),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // Expanded in order, a structure is zeroed by a call of a loop over its bytes: 24 rounds at the end of
        // each block for the sums of a site, and as many for the verifier.
        "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
        format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
    ];
    let mut command = workspace.foreign_cargo(&toolchain.cargo);
    command
        .args(["build", "--release", "--package", "perf-ebpf"])
        .args(["--target", BPF_TARGET, "-Zbuild-std=core", "--target-dir"])
        .arg(&target)
        .env("RUSTC", &toolchain.rustc)
        // The distribution's compiler is a stable one; build-std wants to be asked twice there.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    step::run(
        &format!("building the kernel side with {}", toolchain.name),
        &mut command,
    )?;
    let built = target.join(BPF_TARGET).join("release/perf-ebpf");
    let object = workspace.bpf_object();
    copy_if_changed(&built, &object)?;
    Ok(object)
}

/// Leaves the destination's time alone where its bytes are right, so that the agent is not built
/// again for nothing.
fn copy_if_changed(source: &Path, destination: &Path) -> Result<()> {
    let bytes = fs::read(source).with_context(|| format!("reading {}", source.display()))?;
    if fs::read(destination).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    if let Some(directory) = destination.parent() {
        fs::create_dir_all(directory)
            .with_context(|| format!("creating {}", directory.display()))?;
    }
    fs::write(destination, bytes).with_context(|| format!("writing {}", destination.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_equal_file_keeps_its_time() {
        let directory = std::env::temp_dir().join(format!("xtask-copy-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory below the temporary one");
        let (source, destination) = (directory.join("a"), directory.join("b/c"));
        fs::write(&source, "one").expect("written");
        copy_if_changed(&source, &destination).expect("copied");
        let past = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        let set = |time| {
            let file = fs::File::options().write(true).open(&destination);
            file.and_then(|file| file.set_modified(time)).expect("set");
        };
        let time = || fs::metadata(&destination).and_then(|m| m.modified());
        set(past);
        copy_if_changed(&source, &destination).expect("compared");
        assert_eq!(time().expect("there"), past);
        fs::write(&source, "two").expect("written");
        copy_if_changed(&source, &destination).expect("copied");
        assert_ne!(time().expect("there"), past);
        assert_eq!(fs::read(&destination).expect("read"), b"two");
        fs::remove_dir_all(directory).expect("removed");
    }
}
