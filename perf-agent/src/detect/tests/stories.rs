//! What follows from what: one cause is one story.

use super::*;
use crate::fixtures::connected;
use crate::model::ConnectionRow;

/// Category and cause, by category, in their order.
fn stories(found: &[Finding]) -> Vec<(&str, Option<&str>)> {
    let of = |id: &String| found.iter().find(|f| f.id == *id);
    let cause = |f: &Finding| {
        f.caused_by
            .as_ref()
            .map(|id| of(id).unwrap().category.clone())
    };
    let named = |name: String| RULES.iter().find(|rule| rule.name == name).unwrap().name;
    found
        .iter()
        .map(|f| (f.category.as_str(), cause(f).map(named)))
        .collect()
}

/// Two connections that a slow statement keeps busy, and six threads of which four wait for one.
fn exhausted(statement_ms: u64) -> ProcessReport {
    let count = 2_000 / statement_ms;
    let slow = asked("SELECT sum(amount) FROM orders", count, statement_ms * MS);
    let mut process = asking_report(0, vec![slow]);
    let times = [("idle", 670 * MS), ("net.postgresql", 330 * MS)];
    let threads = (1..=6).map(|tid| thread(tid, &times)).collect();
    process.ledger = report("app", threads).ledger;
    let connections = &mut process.connections.as_mut().unwrap().connections;
    *connections = vec![connected(PEER, count / 2); 2];
    process.profile.sites = vec![site("idle", "futex", count, 3_900 * MS, None)];
    process
}

#[test]
fn a_slow_statement_the_pool_it_exhausts_and_the_requests_it_delays_are_one_story() {
    let mut settings = settings::Settings::default();
    settings.rules.target_missed.min_samples = 1;
    let limit = settings::Time(100 * MS);
    settings.targets.all.set(targets::Percentile::P50, limit);
    let mut process = exhausted(250);
    let mut route = fixtures::statement("GET /report", 8, 400 * MS);
    (route.role, route.protocol) = ("server".into(), "http".into());
    process.statements.as_mut().unwrap().statements.push(route);
    let mut detector = Detector::new().with_settings(settings);
    let found = detector.window(&window_report(vec![process]));
    let mut told = stories(&found);
    assert_eq!(told.remove(0), ("slow_statement", None));
    told.sort_unstable();
    assert_eq!(
        told,
        [
            ("pool_saturation", Some("slow_statement")),
            // The request, and the targets that it and the statement miss.
            ("slow_statement", Some("pool_saturation")),
            ("target_missed", Some("slow_statement")),
            ("target_missed", Some("slow_statement")),
        ]
    );
    // 2 s/s of the statement, and what waits for the pool.
    assert_eq!(found[0].gain_bound_ns_per_s, (1_980 + 3_900) * MS);
    let follows = found[0]
        .evidence
        .iter()
        .find(|e| e.name == "follows_from_it");
    assert_eq!(follows.unwrap().value, 3.9e9);
}

#[test]
fn a_pool_of_quick_statements_is_its_own_story() {
    let found = findings(vec![exhausted(5)]);
    let pool = stories(&found)[0];
    assert_eq!(pool, ("pool_saturation", None));
}

#[test]
fn calls_that_fail_are_one_story_with_the_calls_and_the_cpu_time_they_take() {
    let times = [("cpu.kernel", 900 * MS), ("cpu.user", 100 * MS)];
    let mut process = report("app", vec![thread(1, &times)]);
    let mut opens = row("openat", 600_000, 1_000, 0);
    opens.errors = [("ENOENT".to_owned(), 600_000)].into();
    process.syscalls = Some(syscalls(vec![opens]));
    let found = findings(vec![process]);
    assert_eq!(
        stories(&found),
        [
            ("error_storm", None),
            ("cpu_bound", Some("error_storm")),
            ("syscall_storm", Some("error_storm")),
        ]
    );
    assert_eq!(found[0].gain_bound_ns_per_s, 900 * MS);
}

#[test]
fn who_waits_for_rows_of_a_transaction_left_open_follows_from_it() {
    let update = asked("UPDATE t SET n = n + ? WHERE id = ?", 40, 45 * MS);
    let mut process = asking_report(0, vec![update]);
    let waiting = [("net.postgresql", 600 * MS), ("timer", 400 * MS)];
    process.ledger = report("app", (1..=3).map(|tid| thread(tid, &waiting)).collect()).ledger;
    let held = ConnectionRow {
        idle_in_transaction_ns: 330 * MS,
        ..connected(PEER, 13)
    };
    process.connections.as_mut().unwrap().connections = vec![held; 3];
    let found = findings(vec![process]);
    assert_eq!(
        stories(&found),
        [
            ("idle_in_transaction", None),
            ("slow_statement", Some("idle_in_transaction")),
        ]
    );
    // What the others wait, not what the holders do meanwhile.
    assert_eq!(found[0].gain_bound_ns_per_s, 1_800 * MS);
    assert_eq!(found[0].impact, Level::High);
}

#[test]
fn a_lock_whose_holder_waits_for_the_disk_follows_from_that() {
    let writer = [
        ("disk", 900 * MS),
        ("lock", 50 * MS),
        ("cpu.kernel", 50 * MS),
    ];
    let mut process = contended();
    process.ledger.threads[0] = thread(1, &writer);
    process.ledger = report("app", process.ledger.threads.clone()).ledger;
    process
        .profile
        .sites
        .push(site("disk", "fsync", 100, 900 * MS, None));
    let found = findings(vec![process.clone()]);
    assert_eq!(
        stories(&found),
        [("disk_wait", None), ("lock_contention", Some("disk_wait"))]
    );
    assert_eq!(found[0].gain_bound_ns_per_s, (900 + 960) * MS);

    // Another thread waits for the disk: two stories.
    process.ledger.threads[0] = thread(1, &[("cpu.user", 400 * MS), ("idle", 600 * MS)]);
    process.ledger.threads.push(thread(3, &writer));
    process.ledger = report("app", process.ledger.threads.clone()).ledger;
    let found = findings(vec![process]);
    assert!(
        stories(&found).iter().all(|(_, cause)| cause.is_none()),
        "{found:#?}"
    );
}

#[test]
fn a_resolved_effect_names_no_cause() {
    let mut detector = Detector::new();
    detector.window(&window_report(vec![exhausted(250)]));
    for _ in 0..2 {
        detector.window(&window_report(vec![]));
    }
    let resolved = detector.window(&window_report(vec![]));
    assert_eq!(resolved.len(), 2);
    assert!(resolved.iter().all(|f| f.caused_by.is_none()));
}

#[test]
fn a_finding_that_is_there_is_kept_down_to_half_the_floor() {
    let with = |disk_ns| {
        let times = [("disk", disk_ns), ("idle", 1_000 * MS - disk_ns)];
        window_report(vec![report("app", vec![thread(1, &times)])])
    };
    let mut detector = Detector::new();
    let seen = [9, 10, 6, 5, 4, 9, 4].map(|ms| detector.window(&with(ms * MS)).len());
    // The last two: gone for a window, there again, and not counted as resolved meanwhile.
    assert_eq!(seen, [0, 1, 1, 1, 0, 1, 0]);
}

#[test]
fn the_interpreters_lock_is_told_once() {
    let times = [
        ("cpu.user", 300 * MS),
        ("idle", 500 * MS),
        ("lock", 200 * MS),
    ];
    let mut process = report("python3", vec![thread(1, &times), thread(2, &times)]);
    let address = || {
        Some(Detail::Futex {
            address: "0xa5b8f8".into(),
        })
    };
    let of_gil = |guard: &str, class: &str, ns, detail| {
        let mut caller = fixtures::frame("python3.11+0xf94ed", "/usr/bin/python3.11");
        caller.symbolized = false;
        let mut wait = site(class, "futex", 100, ns, detail);
        wait.user_stack = vec![fixtures::frame(guard, "/lib/libc.so.6"), caller];
        wait
    };
    process.profile.sites = vec![
        of_gil("___pthread_cond_timedwait64", "idle", 800 * MS, None),
        of_gil("___pthread_mutex_lock", "lock", 400 * MS, address()),
    ];
    process.profile.locks = vec![Lock {
        address: "0xa5b8f8".into(),
        waits: 100,
        sum_ns: 400 * MS,
        max_ns: MS,
        ..Lock::default()
    }];
    let found = findings(vec![process]);
    let locks: Vec<&Finding> = found
        .iter()
        .filter(|f| f.category == "lock_contention")
        .collect();
    assert_eq!(locks.len(), 1, "{locks:#?}");
    assert_eq!(locks[0].gain_bound_ns_per_s, 1_200 * MS);
}

#[test]
fn who_waits_for_an_accelerator_in_short_sleeps_is_no_second_story() {
    let view_of = |name: &str| {
        let mut asleep = site("timer", "ppoll", 9_000, 700 * MS, None);
        asleep.user_stack = vec![fixtures::frame(name, "/usr/lib/libcuda.so.1")];
        let mut found = Candidate::new("x", 700 * MS, 0.7);
        found.stacks = vec![asleep];
        found
    };
    let rule = |name| RULES.iter().find(|rule| rule.name == name).unwrap();
    let process = report("train", vec![thread(1, &[("timer", 1_000 * MS)])]);
    let view = View::new(&process);
    for (other, cause) in [("cuStreamSynchronize", Some(0)), ("poll_for_work", None)] {
        let mut found = vec![
            (rule("gpu_wait"), view_of("cuStreamSynchronize")),
            (rule("sleep_poll"), view_of(other)),
        ];
        assert_eq!(causes::link_all(&view, &mut found), [None, cause]);
    }
}
