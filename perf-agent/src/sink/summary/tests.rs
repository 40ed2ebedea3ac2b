//! The summary as a reader sees it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use super::*;
use crate::detect::Detector;
use crate::fixtures::{self, frame, full_lines, latency, report, row, site, syscalls, thread};
use crate::model::{
    Body, Bye, Detail, Latency, Line, Lock, LockOwner, ProcessReport, Waker, Window, WindowReport,
};

const MS: u64 = 1_000_000;

/// Two threads, one of which waits for a lock the other computes under.
fn contended() -> ProcessReport {
    let mut report = report(
        "app",
        vec![
            thread(1, &[("cpu.user", 980 * MS), ("lock", 20 * MS)]),
            thread(2, &[("cpu.user", 60 * MS), ("lock", 940 * MS)]),
        ],
    );
    let detail = Detail::Futex {
        address: "0x1000".into(),
    };
    let mut waiting = site("lock", "futex", 100, 960 * MS, Some(detail));
    waiting.user_stack = vec![frame("update_cache", "/usr/bin/app")];
    report.profile.sites = vec![waiting];
    let lock = Latency {
        sum_ns: 960 * MS,
        ..latency(100)
    };
    let latencies = &mut report.ledger.process.latency;
    latencies.insert("lock".into(), lock);
    report.profile.locks = vec![Lock {
        address: "0x1000".into(),
        waits: 100,
        sum_ns: 960 * MS,
        max_ns: 20 * MS,
        wakers: vec![Waker {
            waker_tid: 1,
            waker_comm: "worker-1".into(),
            waiter_tid: 2,
            waiter_comm: "worker-2".into(),
            count: 100,
            sum_ns: 960 * MS,
        }],
        hold_ns: 960 * MS,
        owners: vec![LockOwner {
            owner_tid: 1,
            owner_comm: "worker-1".into(),
            hold_ns: 720 * MS,
            meanwhile: [("cpu".into(), 540 * MS), ("disk".into(), 180 * MS)].into(),
            ..LockOwner::default()
        }],
        ..Lock::default()
    }];
    report.syscalls = Some(syscalls(vec![row("futex", 200, 5_000, 0)]));
    report
}

/// The lines a trace of these windows emits.
fn lines(windows: &[Vec<ProcessReport>]) -> Vec<Line> {
    let mut detector = Detector::new();
    let mut lines = vec![full_lines().remove(0)];
    for processes in windows {
        let report: WindowReport = fixtures::window_report(processes.clone());
        let findings = detector.window(&report);
        for process in report.processes {
            lines.push(Line::new(Body::Ledger(process.ledger)));
            lines.extend(process.syscalls.map(|s| Line::new(Body::Syscalls(s))));
            lines.push(Line::new(Body::Profile(process.profile)));
        }
        lines.extend(findings.into_iter().map(|f| Line::new(Body::Finding(f))));
        lines.push(Line::new(Body::Coverage(report.coverage)));
    }
    lines.push(full_lines().pop().unwrap());
    lines
}

fn text(windows: &[Vec<ProcessReport>]) -> String {
    let mut total = State::default();
    for line in lines(windows) {
        total.add(&line.body);
    }
    render::render(&total, false).print(false)
}

#[test]
fn the_first_lines_are_the_top_finding_in_words_and_what_to_do_about_it() {
    let text = text(&[vec![contended()], vec![contended()]]);
    let mut lines = text.lines();
    assert_eq!(
        lines.next().unwrap(),
        "app (pid 4242): 48 % of 4.00 s thread time waiting for a lock — lock 0x1000 taken in \
         `update_cache`, held most by worker-1 (1), which meanwhile computes 75 %; a fix gains \
         at most 960 ms/s"
    );
    assert_eq!(
        lines.next().unwrap(),
        "→ worker-1 (1) computes 75 % of the time it holds it: take that out of the critical \
         section · for performance-engineer"
    );
}

#[test]
fn what_the_processes_of_a_program_share_is_one_thing_to_mend() {
    let worker = |pid: u32, times: &[(&str, u64)]| {
        let mut worker = report("worker", vec![thread(pid, times)]);
        (worker.ledger.who.pid, worker.profile.who.pid) = (pid, pid);
        worker
    };
    let computes = |pid, ns| worker(pid, &[("cpu.user", ns * MS), ("idle", (1_000 - ns) * MS)]);
    let mut other = contended();
    other.ledger.who.pid = 9;
    // Each of the three computes less than the other process waits.
    let text = text(&[vec![
        other,
        computes(1, 700),
        computes(2, 800),
        computes(3, 750),
    ]]);
    let first = text.lines().next().unwrap();
    assert!(
        first.starts_with("worker (pid 2) and 2 like it: "),
        "{first}"
    );
    assert!(
        first.ends_with("; a fix gains at most 2.25 s/s in all of them"),
        "{first}"
    );
}

#[test]
fn a_finding_of_one_window_in_four_bounds_a_quarter_of_its_gain() {
    let calm = || report("app", vec![thread(1, &[("idle", 1_000 * MS)])]);
    let windows = [vec![contended()], vec![calm()], vec![calm()], vec![calm()]];
    let text = text(&windows);
    assert!(
        text.contains("gain at most 240 ms/s · in 1 of 4 windows"),
        "{text}"
    );
}

#[test]
fn what_follows_from_a_finding_stands_below_it() {
    let mut opens = row("openat", 600_000, 1_000, 0);
    opens.errors = [("ENOENT".to_owned(), 600_000)].into();
    let times = [("cpu.kernel", 900 * MS), ("cpu.user", 100 * MS)];
    let mut failing = report("app", vec![thread(1, &times)]);
    failing.syscalls = Some(syscalls(vec![opens]));
    let text = text(&[vec![failing]]);
    assert!(
        text.contains("    1. high  Gets ENOENT from openat"),
        "{text}"
    );
    for below in ["Computes on 1.00 cores", "Calls openat 600 k"] {
        assert!(text.contains(&format!("       └ high  {below}")), "{text}");
    }
}

#[test]
fn without_a_finding_the_first_line_says_where_the_time_went() {
    let times = [
        ("idle", 990 * MS),
        ("cpu.user", 5 * MS),
        ("net.tcp", 5 * MS - 1),
        ("runq", 1),
    ];
    let text = text(&[vec![report("calm", vec![thread(1, &times)])]]);
    assert_eq!(
        text.lines().next().unwrap(),
        "calm (pid 4242): no bottleneck above 1 %; 99 % of 1.00 s thread time idle or asleep, \
         most of the rest in cpu.user (0.50 %)"
    );
    assert!(self::text(&[vec![]]).starts_with("No thread of the target was seen\n"));
}

#[test]
fn every_part_is_there_and_sums_are_over_the_whole_trace() {
    let text = text(&[vec![contended()], vec![contended()]]);
    for want in [
        "2.00 s in 2 windows · ended by duration · Linux 6.1.0 x86_64 · 2 CPUs · perf-agent 0.1.0",
        "app (pid 4242): 2 threads, 4.00 s thread time, 1.04 CPUs used",
        "    1. high  Threads wait 960 ms/s for the lock 0x1000 taken in `update_cache`",
        "for performance-engineer",
        "→ worker-1 (1) computes 75 % of the time it holds it",
        "    cpu.user  2.08 s   52 %  ██████████▍",
        "    lock      1.92 s   48 %  █████████▋              200  9.60 ms  ≤ 1.00 µs  1.00 µs",
        "lock 94 %",
        "48 %  lock futex 0x1000  200 times, max 9.60 ms",
        "update_cache (main.c:12)",
        "worker-1 (1), 75 %",
        "cpu 75 %, disk 25 %",
        "System calls  every call",
        "coverage: 0 ns thread time",
        "lost 0",
    ] {
        assert!(text.contains(want), "`{want}` not in:\n{text}");
    }
    assert!(text.lines().last().unwrap().starts_with("coverage: "));
    assert!(!text.contains('\x1b'));
}

#[test]
fn three_processes_have_a_section_and_the_others_a_row() {
    let process = |pid: u32, busy_ms: u64| {
        let times = [("cpu.user", busy_ms * MS), ("idle", (1_000 - busy_ms) * MS)];
        let mut report = report(&format!("p{pid}"), vec![thread(pid, &times)]);
        report.ledger.who.pid = pid;
        report.profile.who = report.ledger.who.clone();
        report
    };
    let text = text(&[(1..=6).map(|pid| process(pid, pid.into())).collect()]);
    for pid in [6, 5, 4] {
        assert!(
            text.contains(&format!("\np{pid} (pid {pid}): 1 thread")),
            "{text}"
        );
    }
    assert!(text.contains("\n3 other processes\n"), "{text}");
    assert!(text.contains("      3  p3    3.00 ms"), "{text}");
}

#[test]
fn loss_is_named_by_reason() {
    let mut total = State::default();
    for line in full_lines() {
        total.add(&line.body);
    }
    let text = render::render(&total, false).print(false);
    assert!(text.contains("lost 1 (ring_full 1)"), "{text}");
    assert!(
        text.contains("CPU quota of /system.slice/server.service: 2 of 10 periods"),
        "{text}"
    );
    assert!(
        text.contains("short-lived processes: 1 (1.00/s; sh 1)"),
        "{text}"
    );
}

/// Feeds a sink whose destination is said to be a terminal or not; what it wrote.
fn fed(terminal: bool, lines: &[Line]) -> String {
    let mut file: File = tempfile::tempfile().unwrap();
    let mut sink = Summary {
        out: Destination {
            file: file.try_clone().unwrap(),
            name: "a file".into(),
            terminal,
        },
        colour: false,
        screen: terminal.then(Screen::default),
        total: State::default(),
    };
    for line in lines {
        sink.line(line).unwrap();
    }
    sink.finish().unwrap();
    let mut out = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut out).unwrap();
    out
}

#[test]
fn elsewhere_than_on_a_terminal_only_the_whole_trace_is_printed() {
    let windows = [vec![contended()], vec![contended()]];
    assert_eq!(fed(false, &lines(&windows)), text(&windows));
}

#[test]
fn on_a_terminal_each_window_is_drawn_over_the_last_and_the_whole_remains() {
    let windows = [vec![contended()], vec![contended()]];
    let out = fed(true, &lines(&windows));
    // The size is the fallback's: 24 rows, of which the cursor takes one.
    assert_eq!(out.matches("last 1.00 s (Ctrl-C ends)").count(), 2);
    assert_eq!(
        out.matches("\x1b[23A\r").count(),
        2,
        "before the second and before the end"
    );
    let (live, whole) = out.rsplit_once("\x1b[23A\r\x1b[J").unwrap();
    assert_eq!(whole, text(&windows));
    for screen in live.split("\x1b[23A\r") {
        assert_eq!(screen.matches('\n').count(), 23);
        for line in screen.lines() {
            let shown = line.replace("\x1b[K", "").replace("\x1b[J", "");
            assert!(shown.chars().count() < 80, "{shown}");
        }
    }
}

#[test]
fn windows_too_short_to_read_are_drawn_together() {
    let mut short = fixtures::window_report(vec![]);
    short.coverage.window = Window {
        start_ns: 0,
        end_ns: 50 * MS,
    };
    let line = Line::new(Body::Coverage(short.coverage));
    let out = fed(true, &vec![line; 9]);
    assert_eq!(out.matches("last 200 ms").count(), 2);
}

#[test]
fn a_trace_without_a_window_still_ends_in_a_summary() {
    let bye = Line::new(Body::Bye(Bye {
        stamp: fixtures::stamp(),
        reason: "target_exit".into(),
        windows: 0,
        lifetime_ns: 0,
        residual_ns: 0,
        generated: 0,
        received: 0,
        lost: Default::default(),
        streams: Vec::new(),
        exit_code: None,
    }));
    let out = fed(false, &[bye]);
    assert!(
        out.starts_with("No thread of the target was seen\n"),
        "{out}"
    );
    assert!(out.contains("ended by target_exit"), "{out}");
}
