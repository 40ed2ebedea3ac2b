//! A small trace with every kind of place, for the tests of the formats.

use super::stacks::Stacks;
use crate::{
    cli::{Mode, Shown},
    drain::Start,
    fixtures::{classes, frame, minimal_report, window},
    model::{Coverage, Detail, Frame, Site, WindowReport},
};

pub const PID: u32 = 77;

pub fn shown(mode: Mode, idle: bool) -> Shown {
    Shown { mode, idle }
}

fn site(class: &str, count: u64, sum_ns: u64, user: &[&str], kernel: &[&str]) -> Site {
    let frames = |names: &[&str], module: &str| -> Vec<Frame> {
        names.iter().map(|name| frame(name, module)).collect()
    };
    Site {
        class: class.into(),
        count,
        sum_ns,
        user_stack: frames(user, "/usr/bin/app"),
        kernel_stack: frames(kernel, "[kernel]"),
        ..Site::default()
    }
}

/// Innermost frames first, as in a report.
pub fn sites() -> Vec<Site> {
    let mut inlined = site("cpu.user", 3, 0, &["app::hash", "app::work", "main"], &[]);
    inlined.user_stack[0].inlined = true;
    let mut lock = site(
        "lock",
        5,
        2_000,
        &["app::update", "app::work", "main"],
        &["futex_wait"],
    );
    lock.syscall = Some("futex".into());
    lock.detail = Some(Detail::Futex {
        address: "0x1000".into(),
    });
    let mut other_lock = lock.clone();
    (other_lock.count, other_lock.sum_ns) = (1, 1_100);
    other_lock.detail = Some(Detail::Futex {
        address: "0x2000".into(),
    });
    let mut stripped = site("cpu.user", 1, 0, &["libx.so+0x12; 3", "main"], &[]);
    stripped.user_stack[0].symbolized = false;
    stripped.user_stack[0].source = None;
    vec![
        inlined,
        stripped,
        site("cpu.kernel", 1, 0, &["read", "main"], &["vfs_read"]),
        lock,
        other_lock,
        site("disk", 2, 300, &["fsync", "main"], &["ext4_sync_file"]),
        site("idle", 1, 1_000, &["epoll_wait", "main"], &["ep_poll"]),
    ]
}

/// One window of one process: 10,000 ns in all.
pub fn report() -> WindowReport {
    let mut process = minimal_report("app");
    process.ledger.who.pid = PID;
    process.ledger.process.lifetime_ns = 10_000;
    process.ledger.process.classes = classes(&[
        ("cpu.user", 4_000),
        ("cpu.kernel", 1_000),
        ("lock", 3_000),
        ("disk", 500),
        ("runq", 500),
        ("idle", 1_000),
    ]);
    process.profile.sites = sites();
    WindowReport {
        processes: vec![process],
        coverage: Coverage {
            window: window(),
            lifetime_ns: 10_000,
            ..Coverage::default()
        },
    }
}

/// A profile of one such window.
pub fn stacks(shown: Shown) -> Stacks {
    let mut stacks = Stacks::new(shown);
    stacks.start(&Start {
        realtime_ns: 1_700_000_000_000_000_000,
        monotonic_ns: window().start_ns,
        ..Start::default()
    });
    stacks.window(report());
    stacks
}
