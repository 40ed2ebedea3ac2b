//! Runs the agent as a user would: built, embedded, with privilege, in this process's place.

use std::{ffi::OsString, os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    bpf, setup, step,
    workspace::{Profile, Workspace, unset_library_path},
};

/// Builds and becomes `perf-agent ARGS`, so that signals and the exit code are the agent's own.
///
/// # Errors
/// Where it cannot be built or started; on success it does not return.
pub fn agent(workspace: &Workspace, mut args: Vec<OsString>) -> Result<()> {
    let agent = bpf::build_all(workspace, Profile::Release)?;
    if args.is_empty() {
        args.push("demo".into());
    }
    let mut command = if setup::is_root() {
        Command::new(&agent)
    } else {
        eprintln!("perf-agent needs root to trace; sudo may ask for your password");
        let mut command = Command::new("sudo");
        command.arg("--").arg(&agent);
        command
    };
    command.args(args);
    unset_library_path(&mut command);
    let error = command.exec();
    Err(error).with_context(|| format!("starting {}", step::show(&command)))
}
