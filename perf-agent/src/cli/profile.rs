//! Arguments of `profile`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use perf_ebpf_common::signals::allocations::DEFAULT_SAMPLE_BYTES;

use super::{Collect, Target};

pub const USAGE: &str = "perf-agent profile [OPTIONS] <-p PID... | --comm NAME | --cgroup PATH | --replay FILE | -- CMD [ARGS]...>";

pub const EXAMPLES: &str = "\
Examples:
  perf-agent profile -p 4242 --duration 10s         the hottest call paths, as text
  perf-agent profile -p 4242 --mode off             only where its threads wait
  perf-agent profile -p 4242 --duration 30s --flamegraph wall.svg --pprof wall.pb.gz
  perf-agent profile -p 4242 --mode alloc --pprof heap.pb.gz
  perf-agent profile --mode cpu --folded - -- ./job > job.folded
  perf-agent record run.parec -p 4242 --inlines on  keep the raw data; later, without root:
  perf-agent profile --replay run.parec --speedscope run.json";

#[derive(Debug, Args)]
pub struct ProfileArgs {
    #[command(flatten)]
    pub target: Target,
    /// Profile a recording made by `record`; needs no root
    #[arg(
        long,
        value_name = "FILE",
        group = "Target",
        conflicts_with_all = ["duration", "interval", "no_children", "inlines"]
    )]
    pub replay: Option<PathBuf>,
    /// Of allocations, one is sampled for each so many bytes: a power of two
    #[arg(
        long,
        value_name = "BYTES",
        default_value_t = DEFAULT_SAMPLE_BYTES,
        value_parser = parse_sample_bytes,
        conflicts_with = "replay"
    )]
    pub sample_bytes: u32,
    #[command(flatten)]
    pub collect: Collect,
    #[command(flatten)]
    pub shown: Shown,
    #[command(flatten)]
    pub outputs: ProfileOutputs,
}

fn parse_sample_bytes(text: &str) -> Result<u32, String> {
    let bytes: u32 = text.parse().map_err(|e| format!("{e}"))?;
    match bytes.is_power_of_two() {
        true => Ok(bytes),
        false => Err(format!("{bytes} is no power of two")),
    }
}

/// Which time is shown.
#[derive(Clone, Copy, Debug, Args)]
pub struct Shown {
    /// Time on the CPU, off it, or both; or memory: what was allocated, and what of it was freed
    #[arg(long, value_enum, default_value_t = Mode::Wall)]
    pub mode: Mode,
    /// Time of threads that wait for work (class `idle`) too. Left out otherwise, and its sum is
    /// said with the coverage
    #[arg(long)]
    pub idle: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Classes cpu.user and cpu.kernel
    Cpu,
    /// Every other class: locks, disks, peers, the run queue, ...
    Off,
    /// Both
    Wall,
    /// Bytes allocated, by probes on malloc, calloc, realloc and free: each call pays a microsecond or
    /// two for them, or ten where it must be single-stepped, in every process that uses the library
    Alloc,
}

/// Where the profile goes, instead of text on standard output. `-` is standard output.
#[derive(Clone, Debug, Default, Args)]
pub struct ProfileOutputs {
    /// Flame graph: each class of the ledger a tower of its own colour, widths in nanoseconds
    #[arg(long, value_name = "FILE.svg")]
    pub flamegraph: Option<PathBuf>,
    /// Folded stacks, `process;[class];function;... nanoseconds` a line; kernel functions end
    /// with _[k], inlined ones with _[i]
    #[arg(long, value_name = "FILE")]
    pub folded: Option<PathBuf>,
    /// For pprof (profile.proto, compressed); labels class, process, pid, syscall, on
    #[arg(long, value_name = "FILE.pb.gz")]
    pub pprof: Option<PathBuf>,
    /// For https://www.speedscope.app, a profile for each process
    #[arg(long, value_name = "FILE.json")]
    pub speedscope: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::{Parser as _, error::ErrorKind};

    use super::*;
    use crate::cli::{Cli, Command, Switch, SyscallMode};

    fn parse(line: &str) -> Result<ProfileArgs, clap::Error> {
        let cli = Cli::try_parse_from(line.split_whitespace())?;
        match cli.command {
            Command::Profile(args) => Ok(args),
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn a_profile_is_of_wall_time_without_idle_and_with_inlined_functions() {
        let args = parse("perf-agent profile -p 1").unwrap();
        assert_eq!((args.shown.mode, args.shown.idle), (Mode::Wall, false));
        assert_eq!(args.collect.inlines, Switch::On);
        assert_eq!(args.collect.syscalls, SyscallMode::Off);
        assert_eq!(args.collect.duration, None);
        assert_eq!(args.outputs.paths().count(), 0);
        let args = parse("perf-agent profile -p 1 --folded - --pprof a --mode off --idle");
        let args = args.unwrap();
        assert_eq!(args.outputs.paths().count(), 2);
        assert_eq!((args.shown.mode, args.shown.idle), (Mode::Off, true));
    }

    #[test]
    fn a_recording_is_a_target_of_its_own_and_was_collected_already() {
        let args = parse("perf-agent profile --replay a.parec --mode cpu").unwrap();
        assert_eq!(args.replay, Some(PathBuf::from("a.parec")));
        for (line, kind) in [
            ("perf-agent profile", ErrorKind::MissingRequiredArgument),
            (
                "perf-agent profile -p 1 --replay a",
                ErrorKind::ArgumentConflict,
            ),
            (
                "perf-agent profile --replay a -- ls",
                ErrorKind::ArgumentConflict,
            ),
            (
                "perf-agent profile --replay a --duration 1s",
                ErrorKind::ArgumentConflict,
            ),
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.kind(), kind, "{line}: {error}");
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
