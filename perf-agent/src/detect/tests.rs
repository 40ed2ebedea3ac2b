//! The rules together: order, states, ids, and what must not be said.

mod any;
mod stories;

use super::*;
use crate::fixtures::{
    self, asked, asking_report, latency, report, row, site, syscalls, thread, window_report,
};
use crate::hash::fnv1a;
use crate::model::{Detail, Latency, Lock, ProcessReport, State, StatementRow, Waker};

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
        ..Lock::default()
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
            [
                "causes",
                "detector",
                "explain",
                "gil",
                "lock_holder",
                "mod",
                "services",
                "settings",
                "statements",
                "targets",
                "tests",
                "view"
            ]
            .contains(&name.as_str())
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

const PEER: &str = "10.0.0.9:5432";

/// A client that waits for PostgreSQL for 800 ms of its second, and these statements.
fn waiting_for_postgresql(rows: Vec<StatementRow>) -> ProcessReport {
    let mut report = asking_report(800 * MS, rows);
    let peer = Detail::Peer {
        peer: PEER.into(),
        port: 5432,
    };
    report.profile.sites = vec![site("net.postgresql", "poll", 400, 800 * MS, Some(peer))];
    report
}

#[test]
fn waits_that_a_statement_explains_are_told_once() {
    let slow = |count| asked("SELECT pg_sleep(?)", count, 200 * MS);
    let found = findings(vec![waiting_for_postgresql(vec![slow(3)])]);
    assert_eq!(categories(&found), ["slow_statement"]);
    assert_eq!(found[0].impact, Level::High);
    assert_eq!(found[0].gain_bound_ns_per_s, 600 * MS);
    assert_eq!(found[0].stacks.len(), 1);

    // It explains a quarter.
    let found = findings(vec![waiting_for_postgresql(vec![slow(1)])]);
    assert_eq!(categories(&found), ["network_wait", "slow_statement"]);
    assert!(
        found[0].recommendations[0].starts_with("Begin with `SELECT pg_sleep(?)`: 25 % of it"),
        "{:?}",
        found[0].recommendations
    );

    // It explains enough, and says that it matters little.
    let quick = asked("SELECT ?", 300, 2 * MS);
    let found = findings(vec![waiting_for_postgresql(vec![quick])]);
    assert_eq!(categories(&found), ["network_wait", "slow_statement"]);
    assert_eq!(
        (found[0].impact, found[1].impact),
        (Level::High, Level::Low)
    );
}

#[test]
fn single_rows_after_a_list_come_first() {
    let list = asked("SELECT id FROM orders", 8, MS);
    let single = StatementRow {
        runs: 8,
        run_exchanges: 400,
        longest_run: 50,
        led_by: Some(list.text.clone()),
        ..asked(
            "SELECT * FROM items WHERE order_id = ?",
            400,
            2 * MS - MS / 10,
        )
    };
    let found = findings(vec![waiting_for_postgresql(vec![single, list])]);
    assert_eq!(categories(&found), ["n_plus_one"]);
    assert_eq!(found[0].impact, Level::High);
}

#[test]
fn what_is_worth_something_else_than_time_is_told_below_the_floor() {
    let failing = StatementRow {
        errors: 10,
        errors_by_code: [("23505".to_owned(), 10)].into(),
        ..asked("INSERT INTO t VALUES (?)", 40, 10_000)
    };
    let found = findings(vec![asking_report(MS, vec![failing])]);
    assert_eq!(categories(&found), ["statement_errors"]);
    assert_eq!(found[0].impact, Level::Medium);
    assert_eq!(found[0].gain_bound_ns_per_s, 100_000);
}

#[test]
fn statements_in_good_health_give_nothing() {
    let rows = vec![
        asked("SELECT * FROM users WHERE id = ?", 900, 200_000),
        asked("UPDATE users SET seen = ? WHERE id = ?", 100, 400_000),
        asked("COMMIT", 100, 500_000),
    ];
    assert_eq!(categories(&findings(vec![asking_report(0, rows)])), [""; 0]);
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
        let missed = found.iter().find(|f| f.category == "target_missed");
        seen.push(missed.map(|f| (f.state, f.since.clone())));
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
    let limit = settings::Time(10 * MS);
    settings.targets.all.set(targets::Percentile::P95, limit);
    let mut detector = Detector::new().with_settings(settings);
    let found = detector.window(&window_report(vec![route_at(11, 20), spinning()]));
    // Of the others one bounds two seconds a second; the statement is slow by the same target.
    assert_eq!(
        categories(&found),
        ["cpu_bound", "slow_statement", "target_missed"]
    );
    let missed = (found[2].impact, found[2].gain_bound_ns_per_s);
    assert_eq!(missed, (Level::Low, 20 * MS));
    assert_eq!(found[2].caused_by.as_ref(), Some(&found[1].id));
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

/// The names of evidence in the text of a rule, its tests aside.
fn evidence_in(source: &str) -> Vec<&str> {
    let rule = source.split("#[cfg(test)]").next().unwrap_or_default();
    let names = rule.split("evidence(").skip(1).filter_map(|call| {
        let argument = call.trim_start().strip_prefix('"')?;
        argument.split('"').next()
    });
    names.collect()
}

#[test]
fn every_figure_of_evidence_is_explained_and_every_one_explained_is_given() {
    for rule in RULES {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/detect");
        let source = std::fs::read_to_string(format!("{folder}/{}.rs", rule.name)).unwrap();
        let mut given = evidence_in(&source);
        let mut explained: Vec<&str> = rule.explain.numbers.iter().map(|(n, _)| *n).collect();
        given.sort_unstable();
        given.dedup();
        explained.sort_unstable();
        assert_eq!(
            explained, given,
            "numbers of EXPLAIN (left) in detect/{}.rs",
            rule.name
        );
    }
}

#[test]
fn a_function_of_the_programs_stays_its_own_with_a_line_of_code_inlined_into_it() {
    let at = |name: &str, source: &str, inlined: bool| {
        let mut frame = fixtures::frame(name, "/usr/bin/app");
        (frame.source, frame.inlined, frame.symbolized) = (Some(source.into()), inlined, true);
        view::is_own(&frame)
    };
    let std = "/rustc/59807616/library/std/src/sys/sync/mutex/futex.rs:33";
    assert!(at("app::checkout", std, false));
    assert!(at("app::checkout", "src/main.rs:7", false));
    assert!(!at("lock<app::Inventory>", std, true));
    let of_debian = "/usr/src/rustc-1.96.0/library/std/src/sync/mutex.rs:512";
    assert!(!at("lock<app::Inventory>", of_debian, true));
    assert!(!at("call_once<app::main::{closure_env#0}, ()>", std, false));
    assert!(!at(
        "<std::sys::sync::mutex::futex::Mutex>::lock_contended",
        std,
        false
    ));
}
