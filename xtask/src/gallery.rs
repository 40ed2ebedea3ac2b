//! Runs the gallery: sick programs and their healthy twins, and what the agent finds of each.

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::{
    bpf, setup, step, test,
    workspace::{Profile, Workspace, unset_library_path},
};

/// What is run.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// One row of the table, by its name; may be given more than once.
    #[arg(long, value_name = "ROW")]
    pub only: Vec<String>,
}

/// Builds, and prints the table on standard output; fails where a row is not as it should be.
///
/// # Errors
/// Where something cannot be installed, built or started.
pub fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    test::packages(true)?;
    let agent = bpf::build_all(workspace, Profile::Release)?;
    let mut build = workspace.cargo();
    build.args(["build", "--release", "--package", "perf-agent-tests"]);
    build.args(["--bin", "gallery"]);
    step::run("building the gallery", &mut build)?;
    let gallery = workspace
        .target
        .join(Profile::Release.directory())
        .join("gallery");
    let mut command = setup::as_root("env")?;
    command.arg(format!("PERF_AGENT_BIN={}", agent.display()));
    command.arg(&gallery);
    for row in &options.only {
        command.args(["--only", row]);
    }
    unset_library_path(&mut command);
    let status = command
        .status()
        .with_context(|| format!("starting {}", step::show(&command)))?;
    Ok(match status.success() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
