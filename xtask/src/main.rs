//! `cargo xtask`: everything a person types in this repository that plain cargo cannot do.
//!
//! Each subcommand sets up what it needs, says what it does on standard error, and fails with the
//! command that mends the failure. Standard output belongs to the program that is run.

mod bench;
mod bpf;
mod debian_kernels;
mod gallery;
mod initramfs;
mod kernels;
mod python;
mod qemu;
mod run;
mod setup;
mod step;
mod test;
mod toolchain;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::workspace::{Profile, Workspace};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about, version)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the kernel side, then the agent that embeds it (in release).
    Build {
        /// The default; kept so that the command reads as cargo's own.
        #[arg(long, conflicts_with = "debug")]
        release: bool,
        /// Build the agent without optimisation. The kernel side is always optimised.
        #[arg(long)]
        debug: bool,
    },
    /// Build, then run `perf-agent` with privilege; without arguments its demo.
    Run {
        /// Arguments of `perf-agent`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<std::ffi::OsString>,
    },
    /// Install what the tests need, then run every test there is.
    Test {
        /// One part of them.
        #[arg(long, value_enum)]
        only: Option<test::Part>,
    },
    /// Trace a program of known times on Debian's kernels, 5.10 to the newest, under QEMU.
    Kernels(kernels::Options),
    /// Measure what tracing costs, beside what its peers cost.
    Bench(bench::Options),
    /// Trace sick programs and their healthy twins, and print what is found of each as a table.
    Gallery(gallery::Options),
    /// Load every program on the running kernel and print what the verifier counted.
    Verify,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(cli.task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(task: Task) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    match task {
        Task::Build { debug, release: _ } => {
            let profile = if debug {
                Profile::Debug
            } else {
                Profile::Release
            };
            let agent = bpf::build_all(&workspace, profile)?;
            eprintln!("built {}", agent.display());
        }
        Task::Run { args } => run::agent(&workspace, args)?,
        Task::Test { only } => test::run(&workspace, only)?,
        Task::Kernels(options) => {
            let tally = kernels::run(&workspace, &options)?;
            println!("{} passed, {} failed", tally.passed, tally.failed);
            if tally.failed > 0 {
                return Ok(ExitCode::FAILURE);
            }
        }
        Task::Bench(options) => bench::run(&workspace, &options)?,
        Task::Gallery(options) => return gallery::run(&workspace, &options),
        Task::Verify => run::agent(&workspace, vec!["verify".into()])?,
    }
    Ok(ExitCode::SUCCESS)
}
