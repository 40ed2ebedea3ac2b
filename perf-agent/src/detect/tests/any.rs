//! Whatever the figures, findings keep within their bounds.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample;

use super::settings::{Settings, Time};
use super::targets::Percentile;
use super::*;
use crate::fixtures::{connected, full_memory};
use crate::model::{ConnectionRow, Throttled};

/// Categories that may be told below the floor.
const ALWAYS: &[&str] = &[
    "budget_exceeded",
    "cache_misses",
    "memory_growth",
    "retransmits",
    "slow_statement",
    "statement_errors",
    "target_missed",
];

/// Statements and connections with arbitrary figures.
fn any_traffic() -> impl Strategy<Value = (Vec<StatementRow>, Vec<ConnectionRow>)> {
    let role = || sample::select(vec!["client", "server"]);
    let protocol = || sample::select(vec!["postgresql", "redis", "http", "unknown", "kafka"]);
    let peer = || sample::select(vec!["10.0.0.9:5432", "[::1]:1", "/run/x", "", "::1"]);
    let text = sample::select(vec!["SELECT a", "GET", "COMMIT", "(other statements)"]);
    let few = || 0..2_000u64;
    let ns = || 0..2_000 * MS;
    let row = (
        role(),
        protocol(),
        peer(),
        text,
        (few(), few(), few()),
        (ns(), ns()),
    )
        .prop_map(
            |(role, protocol, peer, text, (count, of_it, runs), (each, queued))| {
                let mut row = asked(text, count, each);
                row.role = role.into();
                row.protocol = protocol.into();
                row.peer = peer.into();
                row.queued.sum_ns = queued;
                (row.hits, row.misses) = (of_it, runs);
                row.errors_by_code.insert("42601".into(), of_it.min(count));
                (row.runs, row.run_exchanges) = (runs, runs * 5 + of_it);
                row.led_by = Some("GET".into());
                row
            },
        );
    let connection = (
        role(),
        protocol(),
        peer(),
        (few(), few()),
        (ns(), ns()),
        0..4u8,
    )
        .prop_map(
            |(role, protocol, peer, (exchanges, resent), (rtt, least), how)| {
                let mut row = connected(peer, exchanges);
                row.role = role.into();
                row.protocol = protocol.into();
                row.retransmits = resent;
                (row.rtt_ns, row.rtt_min_ns, row.connect_ns) =
                    (Some(rtt), Some(least), Some(least));
                row.idle_in_transaction_ns = rtt;
                (row.opened, row.closed) = (how & 1 == 1, how & 2 == 2);
                row
            },
        );
    (vec(row, 0..6), vec(connection, 0..30))
}

/// A process with arbitrary figures, not all of which agree with each other.
fn any_process() -> impl Strategy<Value = ProcessReport> {
    let classes = sample::subsequence(
        vec![
            "cpu.user",
            "cpu.kernel",
            "runq",
            "lock",
            "disk",
            "fault",
            "net.tcp",
            "net.send",
            "timer",
            "idle",
            "other",
        ],
        0..=11,
    );
    let threads = vec((classes, vec(0..400 * MS, 11), 0..50_000u64), 0..5);
    let class = sample::select(vec![
        "cpu.user", "lock", "disk", "net.tcp", "net.send", "timer", "idle",
    ]);
    let call = sample::select(vec!["", "read", "fsync", "futex", "epoll_wait", "openat"]);
    let detail = sample::select(vec![
        None,
        Some(Detail::Futex {
            address: "0x10".into(),
        }),
        Some(Detail::Peer {
            peer: "::1".into(),
            port: 5432,
        }),
        Some(Detail::Unix {
            path: String::new(),
        }),
        Some(Detail::File {
            device: "8:1".into(),
            inode: 1,
            path: Some("/".into()),
        }),
    ]);
    let sites = vec((class, call, 0..50_000u64, 0..2_000 * MS, detail), 0..8);
    let name = sample::select(vec!["read", "futex", "epoll_wait", "openat"]);
    let rows = vec(
        (
            name,
            0..2_000_000u64,
            0..100_000u64,
            0..1u64 << 40,
            0..2_000_000u64,
        ),
        0..5,
    );
    (
        threads,
        sites,
        rows,
        0..10_000_000u64,
        0..20u64,
        any_traffic(),
    )
        .prop_map(
            |(threads, sites, rows, minor, throttled_periods, (statements, connections))| {
                let threads = threads
                    .iter()
                    .enumerate()
                    .map(|(i, (classes, times, switches))| {
                        let times: Vec<(&str, u64)> =
                            classes.iter().copied().zip(times.iter().copied()).collect();
                        let mut thread = thread(i as u32 + 1, &times);
                        thread.switches = *switches;
                        thread
                    });
                let mut report = report("any", threads.collect());
                let traffic = asking_report(0, statements);
                report.statements = traffic.statements;
                report.connections = traffic.connections;
                if let Some(line) = &mut report.connections {
                    line.connections = connections;
                }
                report.profile.sites = sites
                    .into_iter()
                    .map(|(class, call, count, sum_ns, detail)| {
                        site(class, call, count, sum_ns, detail)
                    })
                    .collect();
                let rows = rows
                    .into_iter()
                    .map(|(name, count, p50_ns, bytes, errors)| {
                        let mut row = row(name, count, p50_ns, bytes);
                        row.errors.insert("ENOENT".into(), errors.min(count));
                        row
                    });
                report.syscalls = Some(syscalls(rows.collect()));
                report.ledger.faults.minor = minor;
                let mut memory = full_memory();
                memory.grown_bytes = Some(minor * 512);
                memory.limit.left_bytes = minor * throttled_periods;
                if let Some(trend) = &mut memory.trend {
                    trend.change_bytes = 20 << minor.min(40);
                    trend.fallen_bytes = minor;
                }
                report.ledger.memory = Some(Box::new(memory));
                report.ledger.throttled = Some(Throttled {
                    periods: 20,
                    throttled_periods,
                    ..Throttled::default()
                });
                report
            },
        )
}

/// With targets, so that they may be missed.
fn with_targets() -> Detector {
    let mut settings = Settings::default();
    let limits = [(Percentile::P50, 300 * MS), (Percentile::P99, 900 * MS)];
    for (percentile, limit_ns) in limits {
        settings.targets.all.set(percentile, Time(limit_ns));
    }
    Detector::new().with_settings(settings)
}

/// With every threshold as low as it can be set.
fn at_the_lowest() -> Detector {
    let lowest = |line: &str| match line.split_once(" = ") {
        Some((key, value)) if value.starts_with('"') => format!("{key} = \"0.000001ms\"\n"),
        Some((key, _)) => format!("{key} = 0\n"),
        None => format!("{line}\n"),
    };
    let example = include_str!("../../../../perf-agent.example.toml");
    let rules = &example[example.find("[rules.").unwrap()..];
    let lines = rules.lines().filter(|line| !line.starts_with('#'));
    let text: String = lines.map(lowest).collect();
    let settings = crate::config::parse("lowest", &text).unwrap().settings;
    Detector::new().with_settings(settings)
}

proptest! {
    #[test]
    fn the_lowest_thresholds_break_nothing(process in any_process()) {
        for finding in at_the_lowest().window(&window_report(vec![process])) {
            prop_assert!(!finding.title.is_empty() && !finding.title.ends_with(' '), "{:?}", finding);
        }
    }

    #[test]
    fn whatever_the_figures_a_finding_keeps_within_its_bounds(process in any_process()) {
        let lifetime_ns = process.ledger.process.lifetime_ns;
        let found = with_targets().window(&window_report(vec![process]));
        for finding in &found {
            // The window is one second long.
            let floor = match ALWAYS.contains(&finding.category.as_str()) {
                true => 0,
                false => 10 * MS,
            };
            prop_assert!(finding.gain_bound_ns_per_s >= floor, "{:?}", finding);
            prop_assert!(finding.gain_bound_ns_per_s <= lifetime_ns, "{:?}", finding);
            prop_assert!((0.0..=1.0).contains(&finding.confidence), "{:?}", finding);
            prop_assert!(!finding.subject.is_empty() && !finding.title.is_empty(), "{:?}", finding);
            prop_assert!(!finding.recommendations.is_empty(), "{:?}", finding);
            for evidence in &finding.evidence {
                prop_assert!(evidence.value.is_finite() && evidence.value >= 0.0, "{:?}", finding);
            }
            prop_assert!(finding.stacks.len() <= MAX_STACKS);
            let rule = RULES.iter().find(|rule| rule.name == finding.category).unwrap();
            for evidence in &finding.evidence {
                prop_assert!(
                    rule.explain.number(&evidence.name).is_some(),
                    "add to EXPLAIN.numbers in detect/{}.rs: (\"{}\", \"…\"),",
                    rule.name,
                    evidence.name
                );
            }
        }
        let roots: Vec<&Finding> = found.iter().filter(|f| f.caused_by.is_none()).collect();
        prop_assert!(roots.is_sorted_by(|a, b| score(a) >= score(b)));
        for (at, finding) in found.iter().enumerate() {
            let cause = finding.caused_by.as_ref();
            let before = |id: &String| found[..at].iter().any(|f| f.id == *id);
            prop_assert!(cause.is_none_or(before), "not behind its cause: {:?}", finding);
        }
    }
}
