//! Packages of Python that the tests trace: real peers that Debian does not have, or not with what is to be
//! shown. They lie in the target directory and nowhere else.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};

use crate::{step, workspace::Workspace};

/// Each with the version that was tried, as wheels only: nothing of them is built.
const PACKAGES: [&str; 2] = ["grpcio==1.85.3", "typing_extensions==4.16.0"];

/// Installs what is not there, which takes a few seconds.
///
/// # Errors
/// Where pip fails; the message has its command.
pub fn install(workspace: &Workspace) -> Result<()> {
    let directory = workspace.target.join("python");
    let list = directory.join("installed");
    let wanted = PACKAGES.join("\n");
    if fs::read_to_string(&list).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    if directory.exists() {
        fs::remove_dir_all(&directory)
            .with_context(|| format!("removing {}", directory.display()))?;
    }
    step::run("pip install", &mut pip(&directory))?;
    fs::write(&list, wanted).with_context(|| format!("writing {}", list.display()))
}

fn pip(directory: &Path) -> Command {
    let mut command = Command::new("/usr/bin/python3");
    command
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ])
        .args(["--root-user-action", "ignore", "--no-deps"])
        .args(["--only-binary", ":all:", "--target"])
        .arg(directory)
        .args(PACKAGES);
    command
}
