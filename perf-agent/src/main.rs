//! Thin shell: arguments in, exit code out.

use std::{io::IsTerminal as _, process::ExitCode};

use clap::Parser as _;
use perf_agent::cli::Cli;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr(cli.verbose);
    match perf_agent::commands::run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {}", perf_agent::commands::one_line(&e));
            ExitCode::from(perf_agent::commands::exit_code(&e))
        }
    }
}

/// Diagnostics: warnings by default, `RUST_LOG` overrides.
fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let filter = EnvFilter::builder()
        .with_default_directive(level.into())
        .from_env_lossy();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .init();
}
