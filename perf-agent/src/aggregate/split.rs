//! The classes of a thread's account by name, with its CPU time split into user and kernel.

use perf_ebpf_common::{CLASS_NAMES, class};

use crate::{model::Classes, signals::ledger::Totals};

/// How a process's CPU time splits where a thread has no samples of its own.
pub struct Split {
    pub source: &'static str,
    pub user: u64,
    pub kernel: u64,
}

/// From its samples (user, kernel), else from the clock ticks of `/proc`.
pub fn split((user, kernel): (u64, u64), ticks: (u64, u64)) -> Split {
    if user + kernel > 0 {
        Split {
            source: "samples",
            user,
            kernel,
        }
    } else if ticks.0 + ticks.1 > 0 {
        Split {
            source: "proc",
            user: ticks.0,
            kernel: ticks.1,
        }
    } else {
        Split {
            source: "none",
            user: 1,
            kernel: 0,
        }
    }
}

/// Classes by output name, CPU split into user and kernel by samples.
pub fn classes(totals: &Totals, samples: (u64, u64), process: &Split) -> Classes {
    let mut out = Classes::new();
    for (i, ns) in totals.spent_ns.iter().enumerate() {
        if *ns == 0 || i == class::UNKNOWN as usize {
            continue;
        }
        if i != class::CPU as usize {
            out.insert(CLASS_NAMES[i].to_owned(), *ns);
            continue;
        }
        let (user, kernel) = if samples.0 + samples.1 > 0 {
            samples
        } else {
            (process.user, process.kernel)
        };
        let user_ns =
            (u128::from(*ns) * u128::from(user) / u128::from(user + kernel).max(1)) as u64;
        for (name, ns) in [("cpu.user", user_ns), ("cpu.kernel", ns - user_ns)] {
            if ns > 0 {
                out.insert(name.to_owned(), ns);
            }
        }
    }
    out
}

pub fn add_classes(sum: &mut Classes, part: &Classes) {
    for (class, ns) in part {
        *sum.entry(class.clone()).or_default() += ns;
    }
}
