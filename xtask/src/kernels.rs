//! The kernel matrix: the same static agent traces the ground-truth program on Debian's kernels,
//! booted under QEMU, and its output is checked against what that program measured itself.

use std::{
    fs,
    io::BufWriter,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    bpf,
    debian_kernels::{self, Series},
    initramfs::Initramfs,
    qemu::{self, Machine, Outcome},
    setup::{self, Package},
    step,
    workspace::Workspace,
};

pub const PACKAGES: [Package; 3] = [
    Package {
        name: "qemu-system-x86",
        purpose: "boots the kernels of the matrix",
    },
    Package {
        name: "busybox-static",
        purpose: "shell and mount of the machines it boots",
    },
    Package {
        name: "libc6-dev",
        purpose: "the static C library the agent is linked with there",
    },
];

/// Only this architecture has the kernels and the emulator named here.
const ARCHITECTURE: &str = "x86_64";
/// What is built for the machines, see `Cargo.toml`.
const PROFILE: &str = "kernels";
const STATIC_TARGET: &str = "x86_64-unknown-linux-gnu";
/// Software emulation stretches what the traced program does between two readings of its clock:
/// twenty threads that start at once wait some ten milliseconds for each other's page faults, which
/// the agent sees and the program cannot. Its phases are 150 ms and longer, so that time in a wrong
/// class still fails; the residual is held to the same bound as anywhere.
const TOLERANCE_PERCENT: &str = "10";
const TOLERANCE_MS: &str = "100";
/// Boots until the figures agree. A busy host stops an emulated CPU for long inside a lock of the
/// traced program, which no tolerance covers that still means something; a figure that is the
/// agent's fault is wrong each time. Only figures are measured again: anything else that goes wrong
/// fails at once.
const MEASUREMENTS: u32 = 3;

const INIT: &str = include_str!("init.sh");

/// What is asked of the matrix.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// One kernel of the matrix: 5.10, 6.1, 6.12 or newest.
    #[arg(long, value_name = "VERSION")]
    pub only: Option<String>,
    /// Seconds a kernel may take in all.
    #[arg(long, default_value_t = 180)]
    pub timeout: u64,
    /// `tcg` works everywhere; `kvm` is faster where the machine has it.
    #[arg(long, default_value = "tcg", value_parser = ["tcg", "kvm"])]
    pub accel: String,
    /// Download the kernels again.
    #[arg(long)]
    pub refresh: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            only: None,
            timeout: 180,
            accel: "tcg".to_owned(),
            refresh: false,
        }
    }
}

/// Kernels that passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
}

/// Runs the matrix; one line of standard output for each kernel.
///
/// # Errors
/// Where what all kernels need cannot be had. A kernel's own failure is in the tally.
pub fn run(workspace: &Workspace, options: &Options) -> Result<Tally> {
    if std::env::consts::ARCH != ARCHITECTURE {
        bail!("the kernel matrix boots {ARCHITECTURE} kernels; this machine is another kind");
    }
    let series: Vec<&Series> = debian_kernels::MATRIX
        .iter()
        .filter(|series| {
            options
                .only
                .as_deref()
                .is_none_or(|only| only == series.name)
        })
        .collect();
    if series.is_empty() {
        let names = debian_kernels::MATRIX.map(|series| series.name).join(", ");
        bail!("no such kernel in the matrix; it has {names}");
    }
    setup::install(&PACKAGES.each_ref())?;
    let programs = Programs::build(workspace)?;
    let mut tally = Tally::default();
    for series in series {
        let directory = workspace.target.join("kernels").join(series.name);
        match one(series, &directory, &programs, options) {
            Ok(line) => {
                tally.passed += 1;
                println!("kernel {line}");
            }
            Err(error) => {
                tally.failed += 1;
                println!("kernel {:<28} FAILED: {error:#}", series.name);
            }
        }
    }
    Ok(tally)
}

/// What goes into the machines, and what checks what comes out.
struct Programs {
    agent: PathBuf,
    truth: PathBuf,
    busybox: PathBuf,
    check: PathBuf,
}

impl Programs {
    fn build(workspace: &Workspace) -> Result<Self> {
        let object = bpf::build_object(workspace)?;
        let target = workspace.target.join("static");
        let build = |package: &str, arguments: &[&str]| {
            let mut command = workspace.cargo();
            command
                .args(["build", "--profile", PROFILE, "--target", STATIC_TARGET])
                .args(["--package", package])
                .args(arguments)
                .arg("--target-dir")
                .arg(&target)
                .env("PERF_AGENT_BPF", &object)
                .env_remove("RUSTFLAGS")
                .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
            step::run(&format!("building {package} statically"), &mut command)
        };
        build("perf-agent", &["--bin", "perf-agent"])?;
        // Without what only the machine that judges needs.
        let workload = ["--no-default-features", "--bin", "truth"];
        build("perf-agent-tests", &workload)?;
        let mut command = workspace.cargo();
        // With what the privileged tests have built.
        command.args(["build", "--release", "--package", "perf-agent-tests"]);
        command.args(["--bin", "check"]);
        step::run("building the checker", &mut command)?;
        let built = target.join(STATIC_TARGET).join(PROFILE);
        Ok(Programs {
            agent: built.join("perf-agent"),
            truth: built.join("truth"),
            busybox: setup::find_program("busybox").context("busybox is not in PATH")?,
            check: workspace.target.join("release/check"),
        })
    }

    fn write_initramfs(&self, path: &Path) -> Result<()> {
        let file =
            fs::File::create(path).with_context(|| format!("creating {}", path.display()))?;
        let mut archive = Initramfs::new(BufWriter::new(file));
        for directory in ["bin", "dev", "etc", "proc", "run", "sys", "tmp"] {
            archive.directory(directory)?;
        }
        // The kernel opens the console before the program it starts can mount anything.
        archive.character_device("dev/console", 5, 1)?;
        archive.symlink("bin/sh", "busybox")?;
        archive.program("bin/busybox", &self.busybox)?;
        archive.program("perf-agent", &self.agent)?;
        archive.program("truth", &self.truth)?;
        archive.file("etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\n")?;
        archive.file("init", 0o755, INIT.as_bytes())?;
        archive
            .finish()
            .with_context(|| format!("writing {}", path.display()))
    }
}

/// Boots and checks one kernel; the line that tells of it.
fn one(
    series: &Series,
    directory: &Path,
    programs: &Programs,
    options: &Options,
) -> Result<String> {
    if options.refresh {
        let _ = fs::remove_dir_all(directory);
    }
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    let kernel = debian_kernels::fetch(series, directory)?;
    let initramfs = directory.join("initramfs.cpio");
    programs.write_initramfs(&initramfs)?;
    let machine = Machine {
        kernel: &kernel.image,
        initramfs: &initramfs,
        accelerator: &options.accel,
        limit: Duration::from_secs(options.timeout),
        directory,
        label: series.name,
    };
    let result = measure(&machine, directory, programs);
    let _ = fs::remove_file(&initramfs);
    let line = result.with_context(|| kernel.release.clone())?;
    Ok(format!("{:<28} {line}", kernel.release))
}

/// Boots until the figures agree; what there is to say of the boot that passed.
fn measure(machine: &Machine<'_>, directory: &Path, programs: &Programs) -> Result<String> {
    for measurement in 1..=MEASUREMENTS {
        let started = Instant::now();
        let outcome = machine.run()?;
        qemu::save(directory, &outcome.files)?;
        let kept = || format!("what it sent is in {}", directory.display());
        completed(&outcome).with_context(kept)?;
        let Err(difference) = compare(directory, programs) else {
            return Ok(format!(
                "up after {:.1} s, passed after {:.1} s, measurement {measurement}, every signal on",
                outcome.boot.as_secs_f64(),
                started.elapsed().as_secs_f64(),
            ));
        };
        eprintln!(
            "{}, measurement {measurement}: {difference:#}",
            machine.label
        );
    }
    bail!(
        "its figures were wrong {MEASUREMENTS} times; the last ones are in {}",
        directory.display()
    )
}

/// Whether everything ran to its end, with every signal on: none of these kernels lacks anything
/// that a signal cannot do without.
fn completed(outcome: &Outcome) -> Result<()> {
    for (file, what) in [
        ("doctor.txt", "perf-agent doctor"),
        ("trace.err", "perf-agent trace"),
    ] {
        let sent = outcome
            .files
            .get(file)
            .with_context(|| format!("{what} was not run"))?;
        if sent.code != 0 {
            let lines: Vec<&str> = sent.text.lines().collect();
            let end = lines[lines.len().saturating_sub(5)..].join("\n  ");
            bail!("{what} ended with {}:\n  {end}", sent.code);
        }
    }
    let left = |file: &str, what: &str| {
        let sent = outcome.files.get(file).filter(|sent| !sent.text.is_empty());
        sent.with_context(|| format!("{what} left nothing in {file}"))
    };
    left("truth.json", "the traced program")?;
    let off = signals_off(&left("out.ndjson", "the trace")?.text)?;
    if !off.is_empty() {
        bail!("off: {}", off.join("; "));
    }
    Ok(())
}

/// Holds the agent's figures against the traced program's own.
fn compare(directory: &Path, programs: &Programs) -> Result<()> {
    let mut command = Command::new(&programs.check);
    command
        .arg(directory.join("out.ndjson"))
        .arg(directory.join("truth.json"))
        .args(["--tolerance-percent", TOLERANCE_PERCENT])
        .args(["--tolerance-ms", TOLERANCE_MS])
        .args(["--cpu-tolerance-percent", TOLERANCE_PERCENT])
        .args(["--cpu-tolerance-ms", TOLERANCE_MS]);
    step::run("check", &mut command)
}

fn signals_off(ndjson: &str) -> Result<Vec<String>> {
    let hello: serde_json::Value = ndjson
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .find(|line: &serde_json::Value| line["type"] == "hello")
        .context("the output has no hello line")?;
    let signals = hello["signals"]
        .as_array()
        .context("hello names no signals")?;
    Ok(signals
        .iter()
        .filter(|signal| signal["on"] == false)
        .map(|signal| {
            let text = |key: &str| signal[key].as_str().unwrap_or("?").to_owned();
            // A verifier's complaint goes on for lines; the file has all of it.
            let reason = text("reason");
            let reason: String = reason
                .lines()
                .next()
                .unwrap_or("?")
                .chars()
                .take(90)
                .collect();
            format!("{} ({reason})", text("name"))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_are_off_are_named_with_their_reason() {
        let ndjson = r#"{"v":1,"type":"hello","signals":[{"name":"ledger","on":true,"reason":"tp_btf"},{"name":"syscalls","on":false,"reason":"asked"}]}
{"v":1,"type":"bye"}"#;
        assert_eq!(signals_off(ndjson).expect("a hello"), ["syscalls (asked)"]);
        assert!(signals_off("").is_err());
    }
}
