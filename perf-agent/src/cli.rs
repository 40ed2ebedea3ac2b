//! The command line: what is asked for, checked as far as that needs no look at the host.
//!
//! [`Cli::parse`](clap::Parser::parse) ends the process itself on misuse (exit code 2) and on
//! `--help`; everything it lets through is well-formed.

mod profile;
mod streams;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use profile::{Mode, ProfileArgs, ProfileOutputs, Shown};
pub use streams::{ExplainArgs, FindingOptions, StreamOptions};

use crate::kernel::SAMPLE_HZ;
use crate::sink::Rotation;

/// Where the demo writes its lines unless told otherwise.
pub const DEMO_OUTPUT: &str = "perf-agent-demo.ndjson";

const EXAMPLES: &str = "\
Examples:
  perf-agent demo                          see what it shows, on a small workload of its own
  perf-agent trace -p 4242                 trace a process and its children until Ctrl-C
  perf-agent trace -p 4242 --duration 10s  the same for ten seconds
  perf-agent trace -- ./job --fast         start a command and trace it from its first instruction
  perf-agent trace -p 4242 | jq 'select(.type == \"finding\")'
                                           in a pipe the output is NDJSON, one object a line
  perf-agent profile -p 4242 --duration 10s
                                           the hottest call paths, on the CPU and off it
  perf-agent record run.parec -p 4242      keep the raw data; later, anywhere, without root:
  perf-agent replay run.parec
  perf-agent explain                       what can be found, and what it means
  perf-agent doctor                        what this host allows, and what to do about the rest

Tracing needs root (or CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE) and a kernel of 5.10 or newer with BTF.

Exit codes:
  0  done; also after Ctrl-C, SIGTERM, the end of the target, and when the reader of a pipe left
  1  it could not be done; the reason is on standard error
  2  wrong arguments";

const TRACE_USAGE: &str =
    "perf-agent trace [OPTIONS] <-p PID... | --comm NAME | --cgroup PATH | -- CMD [ARGS]...>";
const RECORD_USAGE: &str =
    "perf-agent record [OPTIONS] FILE <-p PID... | --comm NAME | --cgroup PATH | -- CMD [ARGS]...>";

const TRACE_EXAMPLES: &str = "\
Examples:
  perf-agent trace -p 4242
  perf-agent trace -p 4242,4243 --duration 1m --output run.ndjson
  perf-agent trace --comm postgres --duration 10s --format summary
  perf-agent trace --cgroup /sys/fs/cgroup/system.slice/redis-server.service
  perf-agent trace -p 4242 --target p95=200ms --exec 'database-specialist=./on-call.py'
  perf-agent trace -p 4242 --output run.ndjson --rotate 100MB,3 --listen /run/perf-agent.sock
  perf-agent trace --syscalls full -- dd if=/dev/zero of=/dev/null bs=1 count=1000000

What the classes of the ledger mean, and the shape of each line: perf-agent schema";

/// Answers "why is this process slow?": where every nanosecond of every thread went, and who
/// should act on it.
#[derive(Debug, Parser)]
#[command(name = "perf-agent", version, after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    /// More diagnostics on standard error (twice: even more)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Trace processes: summary on a terminal, NDJSON in a pipe
    #[command(override_usage = TRACE_USAGE, after_help = TRACE_EXAMPLES)]
    Trace(TraceArgs),
    /// Show where time goes by call stack: text, flame graph, pprof, speedscope, folded stacks
    // What the outputs have nothing of is not offered: system calls are not counted.
    #[command(
        override_usage = profile::USAGE,
        after_help = profile::EXAMPLES,
        mut_arg("syscalls", |a| a.hide(true).default_value("off")),
        mut_arg("stacks", |a| a.hide(true)),
        mut_arg("interval", |a| a.hide(true)),
        mut_arg("unsafe_raw", |a| a.hide(true)),
        mut_arg("tls", |a| a.hide(true)),
        mut_arg("inlines", |a| a.default_value("on"))
    )]
    Profile(ProfileArgs),
    /// Trace processes and keep the raw data in a file, for `replay` and `profile --replay`
    #[command(override_usage = RECORD_USAGE)]
    Record(RecordArgs),
    /// Print what a trace would have printed, from a recording; needs no root
    Replay(ReplayArgs),
    /// Say what this host allows: kernel, BTF, privilege, each signal on or off and why
    Doctor(DoctorArgs),
    /// Trace a small workload of its own: a first look, and a check that all works
    Demo(DemoArgs),
    /// Say what a finding means: what its rule looks at, thresholds, numbers, what to do next
    #[command(after_help = streams::EXPLAIN_EXAMPLES)]
    Explain(ExplainArgs),
    /// Print the JSON Schema of the NDJSON lines
    Schema,
    /// Load every kernel program and print its verified instruction count
    #[command(hide = true)]
    Verify,
    /// The workload that `demo` traces
    #[command(hide = true)]
    DemoWorkload(DemoWorkloadArgs),
}

#[derive(Debug, Args)]
pub struct TraceArgs {
    #[command(flatten)]
    pub target: Target,
    #[command(flatten)]
    pub collect: Collect,
    #[command(flatten)]
    pub output: OutputOptions,
    #[command(flatten)]
    pub streams: StreamOptions,
    #[command(flatten)]
    pub findings: FindingOptions,
}

#[derive(Debug, Args)]
pub struct RecordArgs {
    /// Where the recording goes
    pub file: PathBuf,
    #[command(flatten)]
    pub target: Target,
    #[command(flatten)]
    pub collect: Collect,
}

#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// A recording made by `record`
    pub file: PathBuf,
    #[command(flatten)]
    pub output: OutputOptions,
    #[command(flatten)]
    pub streams: StreamOptions,
    #[command(flatten)]
    pub findings: FindingOptions,
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// As one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// How long to trace
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub duration: Duration,
    /// Where the NDJSON lines go; the summary is on standard output
    #[arg(long, value_name = "FILE", default_value = DEMO_OUTPUT)]
    pub output: PathBuf,
}

#[derive(Debug, Args)]
pub struct DemoWorkloadArgs {
    #[arg(long, value_name = "N")]
    pub seconds: u64,
}

/// Whom to trace: exactly one of these.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Target {
    /// Processes to trace; repeatable, or a comma-separated list
    #[arg(
        short,
        long = "pid",
        value_name = "PID",
        value_delimiter = ',',
        value_parser = clap::value_parser!(u32).range(1..=i32::MAX as i64)
    )]
    pub pid: Vec<u32>,
    /// All processes of this name (as in /proc/PID/comm)
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub comm: Option<String>,
    /// All processes in this cgroup (v2) and those below it
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
    /// A command to start and trace from its first instruction
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// What to collect, and for how long.
#[derive(Clone, Debug, Args)]
pub struct Collect {
    /// Stop after this time: 500ms, 10s, 2m, 1h; without it, at Ctrl-C or when the target ends
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// Length of a window: each has its own lines
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_interval)]
    pub interval: Duration,
    /// Trace only the processes named, not those they start
    #[arg(long)]
    pub no_children: bool,
    /// System calls: counted in a tenth of the time, always, or never
    #[arg(long, value_enum, default_value_t = SyscallMode::Sampled)]
    pub syscalls: SyscallMode,
    /// Stacks of blocked and running threads
    #[arg(long, value_enum, default_value_t = Switch::On)]
    pub stacks: Switch,
    /// Samples of each CPU a second
    #[arg(
        long,
        value_name = "HZ",
        default_value_t = SAMPLE_HZ,
        value_parser = clap::value_parser!(u32).range(1..=10_000)
    )]
    pub frequency: u32,
    /// Connections and the statements on them, decoded from the bytes that pass
    #[arg(long, value_enum, default_value_t = Switch::On)]
    pub sockets: Switch,
    /// Plaintext of OpenSSL connections, by probes on its functions: each call pays some 10 µs for
    /// them, in every process that uses the library
    #[arg(long, value_enum, default_value_t = Switch::Off)]
    pub tls: Switch,
    /// Allocations are sampled, one for each so many bytes: of `profile --mode alloc`.
    #[arg(skip)]
    pub alloc_bytes: Option<u32>,
    /// Let keys and other literal payload leave the process; without it statements are shown as
    /// shapes and keys as hashes
    #[arg(long)]
    pub unsafe_raw: bool,
    /// Functions inlined into others as frames of their own, where debug information names them:
    /// takes more memory
    #[arg(long, value_enum, default_value_t = Switch::Off)]
    pub inlines: Switch,
    /// Also look for separate debug files here, before /usr/lib/debug; may be given several times
    #[arg(long = "debug-dir", value_name = "DIR")]
    pub debug_dirs: Vec<PathBuf>,
    #[command(flatten)]
    pub sizes: Sizes,
}

/// Sizes of kernel maps, made small by the tests of loss accounting.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct Sizes {
    /// Size of the event ring
    #[arg(long, hide = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub ring_bytes: Option<u32>,
    /// Threads followed at the same time
    #[arg(long, hide = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_threads: Option<u32>,
    /// Distinct sites (stack, class, detail) in a window
    #[arg(long, hide = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_sites: Option<u32>,
    /// Size of the ring of captured bytes
    #[arg(long, hide = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub data_ring_bytes: Option<u32>,
    /// Connections followed at the same time
    #[arg(long, hide = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: Option<u32>,
    /// Most bytes of one send or receive that are looked at
    #[arg(long, hide = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16384))]
    pub capture_bytes: Option<u32>,
    /// Memory for unwind tables, in the kernel, in bytes
    #[arg(long, hide = true, value_name = "BYTES")]
    pub unwind_bytes: Option<u32>,
    /// One in so many remembered stacks is walked again, to be compared; rounded up to a power of two
    #[arg(long, hide = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub memo_check_one_in: Option<u32>,
}

/// Where the output goes. With a file the NDJSON goes there, and standard output is left to the
/// summary.
#[derive(Clone, Debug, Default, Args)]
pub struct OutputOptions {
    /// What standard output shows
    #[arg(long, value_enum, default_value_t = Format::Auto)]
    pub format: Format,
    /// Write NDJSON to this file (`-`: to standard output)
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Begin a new file at this size: FILE becomes FILE.1, and so on; KEEP old ones are kept (5).
    /// Each begins with `hello`
    #[arg(
        long,
        value_name = "SIZE[,KEEP]",
        requires = "output",
        value_parser = Rotation::parse
    )]
    pub rotate: Option<Rotation>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Summary on a terminal, else NDJSON
    #[default]
    Auto,
    /// One JSON object a line
    Ndjson,
    /// Readable text, live on a terminal, else once at the end
    Summary,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SyscallMode {
    /// Counted in random slices of a tenth of the time, figures scaled and marked so
    Sampled,
    /// Every call, exact
    Full,
    /// Not at all
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

/// `500ms`, `10s`, `1.5m`, `1h`; a bare number is seconds. More than zero, at most ten years.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    const MAX_S: f64 = 10.0 * 366.0 * 86_400.0;
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit_s = match unit {
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("no unit of time: `{unit}` (use ms, s, m or h)")),
    };
    let number: f64 = number
        .parse()
        .map_err(|_| "no time: use a number and a unit, as in 500ms, 10s, 2m, 1h".to_owned())?;
    let seconds = number * unit_s;
    if seconds > MAX_S {
        return Err("more than ten years".to_owned());
    }
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("must be more than zero".to_owned()),
    }
}

/// A duration of at least 10 ms: the drain would spend its time on nothing but windows.
fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text)?;
    if interval < Duration::from_millis(10) {
        return Err("must be at least 10ms".to_owned());
    }
    Ok(interval)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    fn trace(line: &str) -> TraceArgs {
        match parse(line).map(|cli| cli.command) {
            Ok(Command::Trace(args)) => args,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn pids_are_repeatable_and_comma_separated() {
        assert_eq!(
            trace("perf-agent trace -p 1,2 --pid 3").target.pid,
            [1, 2, 3]
        );
    }

    #[test]
    fn a_command_follows_two_dashes_and_keeps_its_own_options() {
        let args = trace("perf-agent trace --duration 2m -- ls -l -p 3");
        assert_eq!(args.target.command, ["ls", "-l", "-p", "3"]);
        assert_eq!(args.collect.duration, Some(Duration::from_secs(120)));
    }

    #[test]
    fn exactly_one_kind_of_target_is_required() {
        for line in ["perf-agent trace", "perf-agent record f.parec"] {
            let error = parse(line).unwrap_err();
            assert_eq!(
                error.kind(),
                ErrorKind::MissingRequiredArgument,
                "{line}: {error}"
            );
            assert_eq!(error.exit_code(), 2);
        }
        for line in [
            "perf-agent trace -p 1 --comm redis-server",
            "perf-agent trace -p 1 -- ls",
            "perf-agent trace --cgroup / --comm a",
            "perf-agent record f.parec --cgroup / -- ls",
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ArgumentConflict, "{line}: {error}");
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn impossible_pids_and_values_are_usage_errors() {
        for line in [
            "perf-agent trace -p 0",
            "perf-agent trace -p -1",
            "perf-agent trace -p x",
            "perf-agent trace -p 2147483648",
            "perf-agent trace -p 1 --interval 1ms",
            "perf-agent trace -p 1 --duration 0",
            "perf-agent trace -p 1 --format xml",
            "perf-agent trace -p 1 --delegate nobody",
            "perf-agent trace -p 1 --target 200ms",
            "perf-agent trace -p 1 --target p42=200ms",
            "perf-agent trace -p 1 --target p95=soon",
            "perf-agent trace -p 1 --rotate 1MB",
            "perf-agent trace -p 1 --output f --rotate much",
            "perf-agent trace -p 1 --exec true",
            "perf-agent trace --comm=",
            "perf-agent replay",
            "perf-agent",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn defaults_are_those_the_help_states() {
        let args = trace("perf-agent trace -p 1");
        assert_eq!(args.collect.duration, None);
        assert_eq!(args.collect.interval, Duration::from_secs(1));
        assert!(!args.collect.no_children);
        assert_eq!(args.collect.syscalls, SyscallMode::Sampled);
        assert_eq!(args.collect.stacks, Switch::On);
        assert_eq!(args.collect.sockets, Switch::On);
        assert_eq!(args.collect.tls, Switch::Off);
        assert_eq!(args.output.format, Format::Auto);
        assert_eq!(args.output.output, None);
        match parse("perf-agent demo").map(|cli| cli.command) {
            Ok(Command::Demo(args)) => {
                assert_eq!(args.duration, Duration::from_secs(10));
                assert_eq!(args.output, PathBuf::from(DEMO_OUTPUT));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_duration_is_a_number_and_a_unit() {
        for (text, want_ms) in [
            ("500ms", 500),
            ("10s", 10_000),
            ("10", 10_000),
            ("1.5s", 1_500),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("0.1", 100),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(want_ms)),
                "{text}"
            );
        }
        for text in [
            "", "s", "ms", "0", "0ms", "-1s", "1x", "1 s", "1.2.3s", "1e9", "99999h", "10S", "inf",
            "nan", "1\u{b5}s", "1.",
        ] {
            let parsed = parse_duration(text);
            assert_eq!(parsed.is_err(), text != "1.", "{text}: {parsed:?}");
        }
    }

    #[test]
    fn only_what_users_need_is_in_the_help() {
        let help = Cli::command().render_long_help().to_string();
        for word in [
            "trace",
            "profile",
            "record",
            "replay",
            "doctor",
            "demo",
            "explain",
            "schema",
            "Exit codes:",
        ] {
            assert!(help.contains(word), "{word} missing:\n{help}");
        }
        for word in ["verify", "demo-workload", "ring-bytes"] {
            assert!(!help.contains(word), "{word} shown:\n{help}");
        }
    }
}
