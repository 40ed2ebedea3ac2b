//! What findings are looked for, and who is given them beside standard output.

use std::path::PathBuf;

use clap::Args;

use crate::detect::{settings::Time, targets::Percentile};

pub const EXPLAIN_EXAMPLES: &str = "\
Examples:
  perf-agent explain                       what can be found
  perf-agent explain lock_contention       what that means, and its thresholds
  perf-agent explain a7336e806753f9d3 --from trace.ndjson
                                           a finding of a trace, with its own numbers";

/// What counts as a finding, and whom it is for.
#[derive(Clone, Debug, Default, Args)]
pub struct FindingOptions {
    /// Thresholds, targets and delegates; without it
    /// $XDG_CONFIG_HOME/perf-agent/perf-agent.toml or /etc/perf-agent.toml, where there is one
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Response time of every statement and route: --target p95=200ms (p50, p90, p95, p99); a missed
    /// one is a finding
    #[arg(long = "target", value_name = "PERCENTILE=TIME", value_parser = parse_target)]
    pub targets: Vec<(Percentile, Time)>,
    /// Hand findings to somebody else: --delegate database-specialist=dba-team
    #[arg(long = "delegate", value_name = "FROM=TO", value_parser = parse_delegate)]
    pub delegates: Vec<(String, String)>,
}

/// Readers beside standard output and the file.
#[derive(Clone, Debug, Default, Args)]
pub struct StreamOptions {
    /// Give the lines to whoever connects to this Unix socket (mode 0600); late comers get `hello` and
    /// the newest window first
    #[arg(long, value_name = "PATH")]
    pub listen: Option<PathBuf>,
    /// Give one delegate's findings to a command, as NDJSON on its standard input; started again when
    /// it ends early. Its standard output goes to standard error
    #[arg(long = "exec", value_name = "DELEGATE=CMD", value_parser = parse_exec)]
    pub execs: Vec<(String, String)>,
    /// How far a reader of these may be behind
    #[arg(long, hide = true, value_name = "N")]
    pub queue_bytes: Option<usize>,
}

/// What to explain.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// A finding's `category` or `id`; without it, all categories
    #[arg(value_name = "CATEGORY|ID")]
    pub what: Option<String>,
    /// The lines the finding with that id is in (`-`: standard input)
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,
    /// As of `trace`: its thresholds are shown
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

fn parse_pair(text: &str, example: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((from, to)) if !from.is_empty() && !to.is_empty() => {
            Ok((from.to_owned(), to.to_owned()))
        }
        _ => Err(format!("use {example}")),
    }
}

fn parse_delegate(text: &str) -> Result<(String, String), String> {
    parse_pair(text, "FROM=TO, as in database-specialist=dba-team")
}

fn parse_exec(text: &str) -> Result<(String, String), String> {
    parse_pair(text, "DELEGATE=CMD, as in database-specialist=./advise")
}

fn parse_target(text: &str) -> Result<(Percentile, Time), String> {
    let (name, limit) = parse_pair(text, "PERCENTILE=TIME, as in p95=200ms")?;
    let known = Percentile::ALL.into_iter().find(|p| p.name() == name);
    let percentile = known.ok_or_else(|| {
        let names = Percentile::ALL.map(Percentile::name).join(", ");
        format!("`{name}` is none of {names}")
    })?;
    Ok((percentile, Time::parse(&limit)?))
}
