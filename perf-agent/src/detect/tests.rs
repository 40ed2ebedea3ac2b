//! The rules together: order, states, ids, and what must not be said.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample;

use super::*;
use crate::fixtures::{self, latency, report, row, site, syscalls, thread, window_report};
use crate::model::{Detail, Latency, Lock, ProcessReport, Throttled, Waker};

const MS: u64 = 1_000_000;

fn findings(processes: Vec<ProcessReport>) -> Vec<Finding> {
    Detector::new().window(&window_report(processes))
}

fn categories(findings: &[Finding]) -> Vec<&str> {
    findings.iter().map(|f| f.category.as_str()).collect()
}

fn spinning() -> ProcessReport {
    let times = [("cpu.user", 960 * MS), ("runq", 40 * MS)];
    report("spin", vec![thread(1, &times), thread(2, &times)])
}

/// A thread that computes while it holds the lock others wait for nearly all the time.
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
    report.profile.sites = vec![site("lock", "futex", 100, 960 * MS, Some(detail))];
    report.profile.locks = vec![Lock {
        address: "0x1000".into(),
        waits: 100,
        sum_ns: 960 * MS,
        max_ns: 20 * MS,
        wakers: vec![Waker {
            waker_tid: 1,
            waker_comm: "thread-1".into(),
            waiter_tid: 2,
            waiter_comm: "thread-2".into(),
            count: 95,
            sum_ns: 940 * MS,
        }],
    }];
    report
}

#[test]
fn every_rule_is_registered() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/detect");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        assert!(
            ["explain", "mod", "settings", "targets", "tests", "view"].contains(&name.as_str())
                || RULES.iter().any(|r| r.name == name),
            "add to RULES in detect/mod.rs: Rule {{ name: \"{name}\", find: {name}::find, explain: {name}::EXPLAIN }},"
        );
    }
}

#[test]
fn an_idle_process_gives_no_finding() {
    let mut idle = report(
        "idle",
        vec![
            thread(1, &[("idle", 999 * MS), ("cpu.kernel", MS)]),
            thread(2, &[("timer", 1_000 * MS)]),
            thread(3, &[("child", 600 * MS), ("stopped", 400 * MS)]),
            thread(4, &[("net.tcp", 1_000 * MS)]),
        ],
    );
    idle.profile.sites = vec![site("net.tcp", "read", 0, 1_000 * MS, None)];
    assert_eq!(categories(&findings(vec![idle])), [""; 0]);
    assert!(findings(vec![fixtures::minimal_report("none")]).is_empty());
}

#[test]
fn a_healthy_server_under_moderate_load_has_nothing_above_low() {
    let worker = [
        ("idle", 700 * MS),
        ("cpu.user", 120 * MS),
        ("cpu.kernel", 80 * MS),
        ("net.tcp", 70 * MS),
        ("runq", 15 * MS),
        ("disk", 10 * MS),
        ("lock", 5 * MS),
    ];
    let mut server = report("server", (1..=4).map(|tid| thread(tid, &worker)).collect());
    let peer = Detail::Peer {
        peer: "10.0.0.5:5432".into(),
        port: 5432,
    };
    server.profile.sites = vec![site("net.tcp", "poll", 400, 280 * MS, Some(peer))];
    server.syscalls = Some(syscalls(vec![
        row("epoll_wait", 12_000, 2_000, 0),
        row("read", 12_000, 1_500, 1_200_000),
        row("write", 12_000, 6_000, 3_000_000),
    ]));
    server.ledger.faults.minor = 4_000;
    let runq = Latency {
        p99_ns: 90_000,
        ..latency(40_000)
    };
    let latencies = &mut server.ledger.process.latency;
    latencies.insert("runq".into(), runq);
    let found = findings(vec![server]);
    assert!(found.iter().all(|f| f.impact == Level::Low), "{found:#?}");
    assert_eq!(found[0].category, "network_wait");
}

#[test]
fn the_dominant_bottleneck_comes_first() {
    let found = findings(vec![contended()]);
    assert_eq!(categories(&found)[..2], ["lock_contention", "cpu_bound"]);
    assert_eq!(found[0].impact, Level::High);
    assert_eq!(found[0].gain_bound_ns_per_s, 960 * MS);

    let found = findings(vec![spinning()]);
    assert_eq!(categories(&found), ["cpu_bound", "run_queue"]);
    assert_eq!(found[0].gain_bound_ns_per_s, 1_920 * MS);
    assert_eq!(
        (found[0].impact, found[1].impact),
        (Level::High, Level::Low)
    );

    let times = [
        ("disk", 900 * MS),
        ("cpu.kernel", 90 * MS),
        ("runq", 10 * MS),
    ];
    let mut syncing = report("log", vec![thread(1, &times)]);
    syncing.profile.sites = vec![site("disk", "fsync", 100, 900 * MS, None)];
    let found = findings(vec![syncing, contended()]);
    assert_eq!(
        categories(&found)[..3],
        ["lock_contention", "disk_wait", "cpu_bound"]
    );
}

#[test]
fn what_bounds_the_gain_under_one_per_cent_is_not_said() {
    let with = |disk_ns| {
        let times = [("disk", disk_ns), ("idle", 1_000 * MS - disk_ns)];
        findings(vec![report("app", vec![thread(1, &times)])]).len()
    };
    assert_eq!((with(10 * MS - 1), with(10 * MS)), (0, 1));
}

#[test]
fn a_finding_is_new_then_ongoing_then_resolved_once() {
    let mut detector = Detector::new();
    let mut states = Vec::new();
    for present in [
        true, true, false, false, true, false, false, false, false, true,
    ] {
        let processes = if present { vec![spinning()] } else { vec![] };
        let found = detector.window(&window_report(processes));
        states.push(
            found
                .iter()
                .find(|f| f.category == "cpu_bound")
                .map(|f| (f.state, f.gain_bound_ns_per_s)),
        );
    }
    let there = 1_920 * MS;
    assert_eq!(
        states,
        [
            Some((State::New, there)),
            Some((State::Ongoing, there)),
            None,
            None,
            Some((State::Ongoing, there)),
            None,
            None,
            Some((State::Resolved, 0)),
            None,
            Some((State::New, there)),
        ]
    );
}

#[test]
fn an_id_is_the_same_in_the_next_run_whatever_the_pid() {
    let mut other = spinning();
    other.ledger.who.pid = 7;
    let (first, second) = (findings(vec![spinning()]), findings(vec![other]));
    assert_eq!(first[0].id, second[0].id);
    assert_eq!(
        first[0].id,
        format!("{:016x}", fnv1a(&["cpu_bound", "spin", "cpu"]))
    );
    assert_ne!(first[0].id, first[1].id);
    // The published test vector of FNV-1a, with the separator taken into account.
    assert_eq!(fnv1a(&[]), 0xcbf2_9ce4_8422_2325);
    assert_ne!(fnv1a(&["ab", "c"]), fnv1a(&["a", "bc"]));
}

#[test]
fn delegates_can_be_renamed() {
    let names = [(PERFORMANCE_ENGINEER.to_owned(), "sre".to_owned())];
    let found = Detector::with_delegates(names).window(&window_report(vec![spinning()]));
    assert!(found.iter().all(|f| f.delegate_to == "sre"));
}

#[test]
fn a_window_of_a_few_milliseconds_is_not_judged() {
    let mut window = window_report(vec![spinning()]);
    window.coverage.window.end_ns = window.coverage.window.start_ns + 3 * MS;
    assert!(Detector::new().window(&window).is_empty());
}

/// A route that is over or under its target of 200 ms.
fn route_at(p95_ms: u64, count: u64) -> ProcessReport {
    let mut report = report("web", vec![thread(1, &[("idle", 1_000 * MS)])]);
    let mut row = fixtures::statement("GET /x", count, p95_ms * MS);
    (row.role, row.protocol) = ("server".into(), "http".into());
    report.statements = Some(crate::model::Statements {
        stamp: report.ledger.stamp.clone(),
        who: report.ledger.who.clone(),
        window: report.ledger.window,
        statements: vec![row],
    });
    report
}

#[test]
fn a_target_is_missed_since_the_first_window_and_until_it_is_met_for_a_while() {
    let mut settings = settings::Settings::default();
    let limit = settings::Time(200 * MS);
    settings.targets.all.set(targets::Percentile::P95, limit);
    let mut detector = Detector::new().with_settings(settings);
    let mut seen = Vec::new();
    // Near the target it is not begun; near it, and in a window with too few answers, it stays.
    for (at, (p95_ms, count)) in [
        (195, 40),
        (300, 40),
        (195, 40),
        (100, 40),
        (400, 3),
        (195, 40),
        (100, 40),
        (100, 40),
        (100, 40),
        (195, 40),
    ]
    .into_iter()
    .enumerate()
    {
        let mut process = route_at(p95_ms, count);
        process.ledger.stamp.ts = format!("window {at}");
        let found = detector.window(&window_report(vec![process]));
        seen.push(found.first().map(|f| (f.state, f.since.clone())));
    }
    let since = |state| Some((state, "window 1".to_owned()));
    assert_eq!(
        seen,
        [
            None,
            since(State::New),
            since(State::Ongoing),
            None,
            None,
            since(State::Ongoing),
            None,
            None,
            since(State::Resolved),
            None,
        ]
    );
}

#[test]
fn a_missed_target_is_said_however_little_there_is_to_gain() {
    let mut settings = settings::Settings::default();
    settings.general.min_gain = settings::Share(1.0);
    let limit = settings::Time(200 * MS);
    settings.targets.all.set(targets::Percentile::P95, limit);
    let mut detector = Detector::new().with_settings(settings);
    let found = detector.window(&window_report(vec![route_at(300, 20), spinning()]));
    // Of the others one bounds two seconds a second.
    assert_eq!(categories(&found), ["cpu_bound", "target_missed"]);
}

#[test]
fn a_rule_that_is_off_finds_nothing() {
    let settings = settings::Settings {
        off: vec![settings::RuleName("cpu_bound")],
        ..settings::Settings::default()
    };
    let mut detector = Detector::new().with_settings(settings);
    let found = detector.window(&window_report(vec![spinning()]));
    assert_eq!(categories(&found), ["run_queue"]);
}

#[test]
fn thresholds_are_those_that_were_set() {
    let mut settings = settings::Settings::default();
    settings.rules.cpu_bound.busy = settings::Share(0.2);
    let times = [("cpu.user", 300 * MS), ("idle", 700 * MS)];
    let process = report("app", vec![thread(1, &times)]);
    assert!(findings(vec![process.clone()]).is_empty());
    let mut detector = Detector::new().with_settings(settings);
    let found = detector.window(&window_report(vec![process]));
    assert_eq!(categories(&found), ["cpu_bound"]);
}

#[test]
fn every_rule_explains_itself() {
    for rule in RULES {
        let explain = rule.explain;
        assert!(
            !explain.looks_at.is_empty() && !explain.next.is_empty(),
            "{}",
            rule.name
        );
        assert!(!explain.numbers.is_empty(), "{}", rule.name);
    }
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
    (threads, sites, rows, 0..10_000_000u64, 0..20u64).prop_map(
        |(threads, sites, rows, minor, throttled_periods)| {
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
            report.ledger.throttled = Some(Throttled {
                periods: 20,
                throttled_periods,
                ..Throttled::default()
            });
            report
        },
    )
}

proptest! {
    #[test]
    fn whatever_the_figures_a_finding_keeps_within_its_bounds(process in any_process()) {
        let lifetime_ns = process.ledger.process.lifetime_ns;
        let found = findings(vec![process]);
        for finding in &found {
            // The window is one second long.
            prop_assert!(finding.gain_bound_ns_per_s >= 10 * MS, "{:?}", finding);
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
        prop_assert!(found.is_sorted_by(|a, b| score(a) >= score(b)));
    }
}
