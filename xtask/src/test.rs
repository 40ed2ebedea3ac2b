//! Every test there is, in stages: without privilege, with it, and the kernel matrix.

use std::{env, time::Instant};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::{
    bpf,
    kernels::{self, Tally},
    python,
    setup::{self, Package},
    step::{self, Stream},
    workspace::{Profile, Workspace},
};

/// What the tests run beside the agent. Those of the kernel matrix are named there.
const PACKAGES: &[Package] = &[
    Package {
        name: "gcc",
        purpose: "links the tests and compiles their C workloads",
    },
    Package {
        name: "libc6-dev",
        purpose: "C library those are linked with",
    },
    Package {
        name: "jq",
        purpose: "the one-liners of the README",
    },
    Package {
        name: "g++",
        purpose: "compiles a workload in C++",
    },
    Package {
        name: "postgresql",
        purpose: "a real server to trace, and pgbench, the load on it",
    },
    Package {
        name: "python3",
        purpose: "an interpreter as installed, to trace",
    },
    Package {
        name: "mariadb-server",
        purpose: "a real server to trace, and mariadb-slap, the load on it",
    },
    Package {
        name: "memcached",
        purpose: "a real server to trace",
    },
    Package {
        name: "redis-server",
        purpose: "a real server to trace",
    },
    Package {
        name: "redis-tools",
        purpose: "redis-benchmark, the load on it",
    },
    Package {
        name: "nginx",
        purpose: "a real server to trace",
    },
    Package {
        name: "nghttp2-client",
        purpose: "h2load, the load on it",
    },
    Package {
        name: "wrk",
        purpose: "a load on it that does not end by itself",
    },
    Package {
        name: "curl",
        purpose: "a client over TLS",
    },
    Package {
        name: "wget",
        purpose: "a client that uses GnuTLS",
    },
    Package {
        name: "openssl",
        purpose: "makes the servers' certificates",
    },
    Package {
        name: "libssl-dev",
        purpose: "linked into a client over TLS",
    },
    Package {
        name: "python3-pip",
        purpose: "installs a gRPC library and a Kafka broker",
    },
    Package {
        name: "iproute2",
        purpose: "a network of its own to lose packets in",
    },
    Package {
        name: "nftables",
        purpose: "loses them",
    },
    Package {
        name: "linux-perf",
        purpose: "an independent unwinder",
    },
    Package {
        name: "golang-go",
        purpose: "compiles a workload in Go, and has pprof",
    },
    Package {
        name: "nodejs",
        purpose: "compiles at run time, and writes a perf map of that",
    },
    Package {
        name: "bpftool",
        purpose: "another count of what the kernel side's maps hold",
    },
    Package {
        name: "chromium",
        purpose: "opens a flame graph",
    },
    Package {
        name: "strace",
        purpose: "an independent count of system calls",
    },
];

/// A part of the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Everything that needs neither root nor a BPF toolchain.
    Unprivileged,
    /// On the running kernel, as root, one after the other.
    Privileged,
    /// Debian's kernels under QEMU.
    Kernels,
}

/// Runs the tests and prints `N passed, N failed` as the last line of standard output.
///
/// # Errors
/// The stage that failed.
pub fn run(workspace: &Workspace, only: Option<Part>) -> Result<()> {
    let mut tally = Tally::default();
    let result = stages(workspace, only, &mut tally);
    if result.is_err() && tally.failed == 0 {
        // A stage that could not run is not a pass.
        tally.failed = 1;
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    result
}

fn stages(workspace: &Workspace, only: Option<Part>, tally: &mut Tally) -> Result<()> {
    let wanted = |part| only.is_none_or(|only| only == part);
    let with_privilege = wanted(Part::Privileged) || wanted(Part::Kernels);
    let started = Instant::now();
    stage("packages", || packages(with_privilege))?;
    if wanted(Part::Unprivileged) {
        stage("unprivileged tests", || {
            let mut command = workspace.cargo();
            command.args(["test", "--workspace", "--exclude", "perf-ebpf"]);
            command.arg("--no-fail-fast");
            cargo_test("unprivileged tests", &mut command, tally)
        })?;
    }
    if with_privilege {
        stage("build", || bpf::build_all(workspace, Profile::Release))?;
    }
    if wanted(Part::Privileged) {
        stage("packages of Python", || python::install(workspace))?;
        stage("privileged tests", || privileged(workspace, tally))?;
    }
    if wanted(Part::Kernels) {
        stage("kernel matrix", || {
            let found = kernels::run(workspace, &kernels::Options::default())?;
            tally.passed += found.passed;
            tally.failed += found.failed;
            if found.failed > 0 {
                bail!("{} kernels of the matrix failed", found.failed);
            }
            Ok(())
        })?;
    }
    eprintln!("all stages passed in {} s", started.elapsed().as_secs());
    Ok(())
}

fn stage<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    eprintln!("==> {name}");
    let result = work();
    let seconds = started.elapsed().as_secs_f64();
    match &result {
        Ok(_) => eprintln!("==> {name}: passed in {seconds:.1} s"),
        Err(_) => eprintln!("==> {name}: FAILED after {seconds:.1} s"),
    }
    result.with_context(|| format!("stage `{name}`"))
}

/// Installs what the tests need.
///
/// # Errors
/// Where it cannot be.
pub fn packages(with_privilege: bool) -> Result<()> {
    // What runs without privilege needs no package but what cargo itself needs to link.
    let mut wanted: Vec<&Package> = PACKAGES[..2].iter().collect();
    if with_privilege {
        wanted.extend(&PACKAGES[2..]);
        wanted.extend(&kernels::PACKAGES);
    }
    setup::install(&wanted)
}

fn privileged(workspace: &Workspace, tally: &mut Tally) -> Result<()> {
    let mut command = workspace.cargo();
    command
        .args(["test", "--release", "--package", "perf-agent-tests"])
        .args(["--features", "privileged", "--no-fail-fast"])
        .args(["--", "--test-threads=1"])
        .env("PERF_AGENT_BIN", workspace.agent(Profile::Release));
    if !setup::is_root() {
        // Built by this user, run by root: nothing below the target directory becomes root's.
        drop(setup::as_root("true")?);
        command.env(runner_variable()?, "sudo -n -E");
    }
    cargo_test("privileged tests", &mut command, tally)
}

/// `CARGO_TARGET_<TRIPLE>_RUNNER` of the host.
fn runner_variable() -> Result<String> {
    let version =
        step::output(std::process::Command::new("rustc").arg("-vV")).context("rustc -vV failed")?;
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("rustc -vV names no host")?;
    let host = host.to_uppercase().replace(['-', '.'], "_");
    Ok(format!("CARGO_TARGET_{host}_RUNNER"))
}

/// Runs `cargo test` and adds up its `test result:` lines.
fn cargo_test(label: &str, command: &mut std::process::Command, tally: &mut Tally) -> Result<()> {
    // A backtrace of a failed assertion says less than its message.
    if env::var_os("RUST_BACKTRACE").is_none() {
        command.env("RUST_BACKTRACE", "0");
    }
    let status = step::run_lines(label, command, |stream, line| {
        match stream {
            Stream::Out => println!("{line}"),
            Stream::Err => eprintln!("{line}"),
        }
        if let Some(found) = test_result(line) {
            tally.passed += found.passed;
            tally.failed += found.failed;
        }
    })?;
    if status.success() {
        return Ok(());
    }
    Err(anyhow!("{status}\n  command: {}", step::show(command)))
}

/// The counts of libtest's closing line.
fn test_result(line: &str) -> Option<Tally> {
    let (_, counts) = line.split_once("test result: ")?;
    let count = |what: &str| {
        counts
            .split([';', '.'])
            .find_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok())
    };
    Some(Tally {
        passed: count("passed")?,
        failed: count("failed")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_the_closing_line_of_a_test_binary() {
        let line = "test result: FAILED. 41 passed; 2 failed; 1 ignored; 0 measured; 0 filtered \
                    out; finished in 0.10s";
        let expected = Tally {
            passed: 41,
            failed: 2,
        };
        assert_eq!(test_result(line), Some(expected));
        let coloured = "test result: \u{1b}[32mok\u{1b}[0m. 3 passed; 0 failed; 0 ignored";
        assert_eq!(test_result(coloured).map(|t| t.passed), Some(3));
        assert_eq!(test_result("test a::b ... ok"), None);
    }
}
