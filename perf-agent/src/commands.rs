//! What each subcommand does.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Write as _},
    process::Command as Process,
};

use anyhow::{Context as _, Result, bail};
use perf_ebpf_common::signals::allocations::DEFAULT_SAMPLE_BYTES;

use crate::{
    aggregate::Pipeline,
    cli::{
        Collect, Command, DemoArgs, FindingOptions, Format, Mode, OutputOptions, ProfileArgs,
        RecordArgs, ReplayArgs, Sizes, StreamOptions, Switch, SyscallMode, TraceArgs,
    },
    config::{self, Config},
    detect::{DELEGATES, Detector},
    doctor, explain,
    kernel::{Kernel, LoadOptions, SAMPLE_HZ},
    profile::Profiler,
    replay, schema, sink, streams,
    target::Target,
    trace::{self, Lines, Recording},
};

/// Runs a subcommand.
///
/// # Errors
/// What the user is to be told, the cause last.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Trace(args) => trace(&args),
        Command::Profile(args) => profile(&args),
        Command::Record(args) => record(&args),
        Command::Replay(args) => replay(&args),
        Command::Doctor(args) => doctor::run(args.json),
        Command::Demo(args) => demo(&args),
        Command::Explain(args) => print(&explain::run(&args)?),
        Command::Schema => print(schema::SCHEMA),
        Command::Verify => verify(),
        Command::DemoWorkload(args) => crate::demo::run_workload(args.seconds),
    }
}

/// An error and its causes on one line: a verifier's log has thousands, and is kept for `-v`.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for (i, cause) in error.chain().enumerate() {
        let full = cause.to_string();
        let (line, rest) = full.split_once('\n').unwrap_or((&full, ""));
        // Causes of aya repeat what they wrap.
        if text.contains(line) {
            continue;
        }
        if i > 0 {
            text.push_str(": ");
        }
        text.push_str(line);
        if !rest.is_empty() {
            tracing::debug!("{full}");
        }
    }
    text
}

/// Arguments that are well-formed and cannot be meant.
#[derive(Debug)]
pub struct Misuse(pub String);

impl std::fmt::Display for Misuse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Misuse {}

/// What the process ends with: 2 where the arguments or the config file are wrong, else 1.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<Misuse>() || error.is::<config::Error>() {
        2
    } else {
        1
    }
}

/// The config file with the command line over it.
fn configured(options: &FindingOptions) -> Result<Config> {
    let mut config = config::load(options.config.as_deref())?;
    for (percentile, limit) in &options.targets {
        config.settings.targets.all.set(*percentile, *limit);
    }
    // The last of a name is in effect.
    config.delegates.extend(options.delegates.iter().cloned());
    Ok(config)
}

/// Demands that every command can be given something.
fn check_execs(streams: &StreamOptions, config: &Config) -> Result<()> {
    let replaced: BTreeMap<&str, &str> = config
        .delegates
        .iter()
        .map(|(from, to)| (from.as_str(), to.as_str()))
        .collect();
    let names = || {
        DELEGATES
            .iter()
            .map(|name| replaced.get(name).unwrap_or(name))
    };
    for (delegate, _) in &streams.execs {
        if !names().any(|name| name == delegate) {
            let near = config::nearest(delegate, names().copied());
            let text = format!("--exec {delegate}=…: no findings are for `{delegate}`{near}");
            return Err(Misuse(text).into());
        }
    }
    Ok(())
}

/// Opens the outputs; `live` says that a trace must not be held up by them.
fn lines(
    output: &OutputOptions,
    streams: &StreamOptions,
    config: Config,
    live: bool,
) -> Result<Lines> {
    let detector = Detector::with_delegates(config.delegates).with_settings(config.settings);
    Ok(Lines {
        pipeline: Pipeline::new(detector),
        sink: streams::open(sink::open(output)?, streams, live)?,
    })
}

fn trace(args: &TraceArgs) -> Result<()> {
    let config = configured(&args.findings)?;
    check_execs(&args.streams, &config)?;
    let target = Target::new(&args.target)?;
    // What can be refused is refused before a file is made or emptied.
    crate::kernel::host::check_privilege()?;
    let mut lines = lines(&args.output, &args.streams, config, true)?;
    trace::run(target, &args.collect, &mut lines)
}

fn record(args: &RecordArgs) -> Result<()> {
    let target = Target::new(&args.target)?;
    crate::kernel::host::check_privilege()?;
    let name = args.file.display();
    let file = File::create(&args.file).with_context(|| format!("cannot write to {name}"))?;
    let mut recording =
        Recording::new(BufWriter::new(file)).with_context(|| format!("writing {name}"))?;
    trace::run(target, &args.collect, &mut recording)
}

fn replay(args: &ReplayArgs) -> Result<()> {
    let config = configured(&args.findings)?;
    check_execs(&args.streams, &config)?;
    // Checked before the output file is emptied: it may be asked to replay a file onto itself.
    if args.output.output.as_deref() == Some(args.file.as_path()) {
        bail!(
            "{} is both the recording and the output",
            args.file.display()
        );
    }
    // What is no recording is refused before a file is emptied.
    let recording = replay::open(&args.file)?;
    let mut lines = lines(&args.output, &args.streams, config, false)?;
    recording.play(&mut lines)
}

fn profile(args: &ProfileArgs) -> Result<()> {
    // As above: what can be refused is refused before a file is emptied.
    if let Some(file) = &args.replay {
        if args.outputs.paths().any(|output| output == file) {
            bail!("{} is both the recording and an output", file.display());
        }
        let recording = replay::open(file)?;
        return recording.play(&mut Profiler::new(args.shown, &args.outputs)?);
    }
    let target = Target::new(&args.target)?;
    crate::kernel::host::check_privilege()?;
    let mut profiler = Profiler::new(args.shown, &args.outputs)?;
    let mut collect = args.collect.clone();
    collect.alloc_bytes = (args.shown.mode == Mode::Alloc).then_some(args.sample_bytes);
    trace::run(target, &collect, &mut profiler)
}

/// Traces a workload of its own, as any other process.
fn demo(args: &DemoArgs) -> Result<()> {
    crate::kernel::host::check_privilege()?;
    // Some seconds more than the trace, so that the trace and not the workload ends it.
    let seconds = args.duration.as_secs() + 5;
    let program = std::env::current_exe().context("finding this program")?;
    let mut workload = Process::new(program)
        .args(["demo-workload", "--seconds", &seconds.to_string()])
        .spawn()
        .context("starting the workload")?;
    eprintln!(
        "tracing a workload of its own (pid {}) for {} s; NDJSON goes to {}",
        workload.id(),
        args.duration.as_secs_f64(),
        args.output.display()
    );
    let result = trace_demo(args, workload.id());
    let _ = workload.kill();
    let _ = workload.wait();
    result
}

fn trace_demo(args: &DemoArgs, pid: u32) -> Result<()> {
    let output = OutputOptions {
        format: Format::Summary,
        output: Some(args.output.clone()),
        rotate: None,
    };
    let collect = Collect {
        duration: Some(args.duration),
        interval: std::time::Duration::from_secs(1),
        no_children: false,
        syscalls: SyscallMode::Sampled,
        stacks: Switch::On,
        frequency: SAMPLE_HZ,
        debug_dirs: Vec::new(),
        inlines: Switch::Off,
        sockets: Switch::On,
        alloc_bytes: None,
        tls: Switch::Off,
        unsafe_raw: false,
        sizes: Sizes::default(),
    };
    let mut lines = lines(&output, &StreamOptions::default(), Config::default(), true)?;
    trace::run(Target::Pids(vec![pid]), &collect, &mut lines)
}

/// Loads every program; prints what the verifier counted.
fn verify() -> Result<()> {
    let kernel = Kernel::load(&LoadOptions {
        every_program: true,
        allocations: Some(DEFAULT_SAMPLE_BYTES),
        ..LoadOptions::default()
    })?;
    let mut text = String::new();
    for (name, instructions) in kernel.verified()? {
        let count =
            instructions.map_or_else(|| "not told before 5.16".to_owned(), |n| n.to_string());
        text.push_str(&format!("{name:24} {count:>10}\n"));
    }
    print(&text)
}

/// Prints text; a reader that left is no error.
fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if !sink::reader_gone(&e) => Err(e).context("writing the output"),
        _ => Ok(()),
    }
}
