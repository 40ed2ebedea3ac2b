//! `perf-agent doctor`: what this host allows, in about a second, and what to do about the rest.

use std::{
    fs,
    io::{self, Write as _},
};

use anyhow::{Context as _, Result};
use perf_ebpf_common::signals::allocations::DEFAULT_SAMPLE_BYTES;
use serde::Serialize;

use crate::{
    kernel::{Kernel, LoadOptions, btf, host},
    model::SignalState,
    sink::reader_gone,
};

/// One thing looked at.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    ok: bool,
    found: String,
    /// What to do, where it is not fine.
    #[serde(skip_serializing_if = "String::is_empty")]
    advice: String,
}

#[derive(Debug, Serialize)]
struct Report {
    agent: &'static str,
    can_trace: bool,
    checks: Vec<Check>,
    signals: Vec<SignalState>,
}

/// Looks, and prints. The exit code is 0 whatever is found: looking succeeded.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(json: bool) -> Result<()> {
    let report = report();
    let text = if json {
        serde_json::to_string(&report).context("serializing")? + "\n"
    } else {
        readable(&report)
    };
    match io::stdout().write_all(text.as_bytes()) {
        Err(e) if !reader_gone(&e) => Err(e).context("writing the output"),
        _ => Ok(()),
    }
}

fn report() -> Report {
    let mut checks = vec![
        kernel_version(),
        type_information(),
        privilege(),
        lockdown(),
        objects(),
        schedstat(),
    ];
    let mut signals = Vec::new();
    let can_trace = if checks.iter().all(|c| c.ok) {
        match attached_signals() {
            Ok(states) => {
                signals = states;
                true
            }
            Err(e) => {
                checks.push(Check {
                    name: "load and attach",
                    ok: false,
                    found: crate::commands::one_line(&e),
                    advice: "run `perf-agent -v verify` for the verifier's own words".to_owned(),
                });
                false
            }
        }
    } else {
        false
    };
    Report {
        agent: env!("CARGO_PKG_VERSION"),
        can_trace,
        checks,
        signals,
    }
}

/// Loads and attaches everything for a moment, on no target.
fn attached_signals() -> Result<Vec<SignalState>> {
    let mut kernel = Kernel::load(&LoadOptions {
        allocations: Some(DEFAULT_SAMPLE_BYTES),
        ..LoadOptions::default()
    })?;
    kernel.attach()?;
    if let Err(e) = kernel.set_syscalls(true)
        && let Some(state) = kernel.signals.iter_mut().find(|s| s.name == "syscalls")
    {
        state.on = false;
        state.reason = crate::commands::one_line(&e);
    }
    let allocations = kernel.allocations_state();
    let states = kernel.signals.iter().cloned();
    Ok(states.chain([allocations]).collect())
}

fn check(name: &'static str, ok: bool, found: String, advice: &str) -> Check {
    Check {
        name,
        ok,
        found,
        advice: if ok { String::new() } else { advice.to_owned() },
    }
}

fn kernel_version() -> Check {
    let release = host::kernel_release();
    let ok = host::version(&release) >= (5, 10);
    check(
        "kernel",
        ok,
        release,
        "perf-agent needs Linux 5.10 or newer",
    )
}

fn type_information() -> Check {
    let advice =
        "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y (every distribution's is, since 2021)";
    match btf::Btf::of_running_kernel() {
        Err(e) => check("BTF", false, e.to_string(), advice),
        Ok(types) => {
            let (_, absent) = btf::resolve(&types);
            let needed = absent
                .iter()
                .filter(|(_, need)| *need == perf_ebpf_common::offsets::Need::Ledger);
            let missing: Vec<_> = needed.map(|(name, _)| *name).collect();
            let found = if missing.is_empty() {
                "/sys/kernel/btf/vmlinux, every needed field found".to_owned()
            } else {
                format!("without {}", missing.join(", "))
            };
            check(
                "BTF",
                missing.is_empty(),
                found,
                "report this kernel: its structures are not known",
            )
        }
    }
}

fn privilege() -> Check {
    let missing = host::missing_capabilities(host::capabilities());
    let found = if missing.is_empty() {
        "sufficient".to_owned()
    } else {
        format!("without {}", missing.join(", "))
    };
    check(
        "privilege",
        missing.is_empty(),
        found,
        "run as root, for example with sudo",
    )
}

fn lockdown() -> Check {
    let mode = host::lockdown();
    let found = mode.clone().unwrap_or_else(|| "none".to_owned());
    check(
        "lockdown",
        mode.as_deref() != Some("confidentiality"),
        found,
        "in mode confidentiality the kernel lets nobody read its memory: boot with lockdown=integrity",
    )
}

fn objects() -> Check {
    let built = Kernel::built_in();
    let found = if built { "built in" } else { "not built in" };
    check(
        "kernel programs",
        built,
        found.to_owned(),
        "build with `cargo xtask build`",
    )
}

/// Only the cross-check needs it: never a reason not to trace.
fn schedstat() -> Check {
    let there = fs::exists("/proc/self/schedstat").unwrap_or(false);
    let found = if there {
        "/proc/PID/schedstat is there: the ledger is cross-checked"
    } else {
        "no /proc/PID/schedstat (CONFIG_SCHED_INFO): the ledger is not cross-checked"
    };
    check("schedstat", true, found.to_owned(), "")
}

fn readable(report: &Report) -> String {
    let mut text = if report.can_trace {
        "This host can be traced.\n\n".to_owned()
    } else {
        "This host cannot be traced as it is; see what is marked with a cross.\n\n".to_owned()
    };
    let mark = |ok| if ok { "✓" } else { "✗" };
    for c in &report.checks {
        text.push_str(&format!("{} {:16} {}\n", mark(c.ok), c.name, c.found));
        if !c.advice.is_empty() {
            text.push_str(&format!("  {:16} → {}\n", "", c.advice));
        }
    }
    if !report.signals.is_empty() {
        text.push_str("\nSignals\n");
    }
    for s in &report.signals {
        text.push_str(&format!("{} {:16} {}\n", mark(s.on), s.name, s.reason));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_comes_with_what_to_do() {
        let report = Report {
            agent: "0",
            can_trace: false,
            checks: vec![check(
                "privilege",
                false,
                "without CAP_BPF".into(),
                "use sudo",
            )],
            signals: Vec::new(),
        };
        let text = readable(&report);
        assert!(text.starts_with("This host cannot be traced"), "{text}");
        assert!(
            text.contains("✗ privilege        without CAP_BPF\n"),
            "{text}"
        );
        assert!(text.contains("→ use sudo"), "{text}");
    }
}
