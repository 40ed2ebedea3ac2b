//! Response times and budgets that were asked for, on servers that keep them and do not: how far over, and
//! since when, against what their clients and the kernel measured.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use perf_agent_tests::agent::{Agent, Run, figure};
use perf_agent_tests::http_client::Client;
use perf_agent_tests::servers::{self, Postgres};
use perf_agent_tests::traced::Traced;
use perf_agent_tests::workloads::clock::clock_ns;
use perf_agent_tests::{PATIENCE, alone};
use serde_json::Value;

const CLIENTS: u64 = 4;
/// What a report is to take, what it takes where it keeps that and where it does not.
const LIMIT_MS: u64 = 40;
const QUICK_MS: u64 = 2;
const SLOW_MS: u64 = 80;

fn now_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

fn at(line: &Value, end: &str) -> u64 {
    line["window"][end].as_u64().unwrap_or(0)
}

fn written(directory: &Path, config: &str) -> String {
    let path = directory.join("config.toml");
    fs::write(&path, config).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Findings of a category about a subject.
fn of<'a>(run: &'a Run, category: &str, subject: &str) -> Vec<&'a Value> {
    let found = run
        .of_type("finding")
        .filter(|f| f["category"] == *category);
    found.filter(|f| f["subject"] == *subject).collect()
}

/// Asks for a report and for something quick in turn, until told to stop; the longest a report took.
fn client(port: u16, report_ms: &AtomicU64) -> u64 {
    let mut client = Client::connect(port);
    let mut longest_ns = 0;
    for n in 0.. {
        let ms = report_ms.load(Ordering::Relaxed);
        if ms == 0 {
            break;
        }
        let began = now_ns();
        client.ask(&format!("/report/{n}?pg={ms}"));
        longest_ns = longest_ns.max(now_ns() - began);
        client.ask(&format!("/now/{n}"));
    }
    longest_ns
}

#[test]
fn a_target_of_a_route_and_of_a_statement_is_missed_while_they_are_slow_and_no_longer() {
    let _alone = alone();
    let postgres = Postgres::start();
    let port = servers::free_port();
    let socket = postgres.socket().display().to_string();
    let connect = format!("{port}@{socket}@{CLIENTS}@{CLIENTS}");
    let mut server = Traced::workload(&[
        "http-server-pool",
        "--connect",
        &connect,
        "--realtime",
        "--hold",
    ]);
    let directory = tempfile::tempdir().unwrap();
    let config = written(
        directory.path(),
        &format!(
            "[[target]]\nroute = 'GET /report/:id'\np95 = '{LIMIT_MS}ms'\n\
             [[target]]\nroute = 'GET /now/:id'\np95 = '{LIMIT_MS}ms'\n\
             [[target]]\nstatement = 'SELECT pg_sleep(1)'\np95 = '{LIMIT_MS}ms'\n"
        ),
    );
    let agent = Agent::start([
        "trace",
        "-p",
        &server.pid().to_string(),
        "--config",
        &config,
    ]);
    agent.attached();
    server.go();
    let report_ms = AtomicU64::new(QUICK_MS);
    let (slow_ns, quick_ns, longest_ns) = thread::scope(|scope| {
        let asks = || scope.spawn(|| client(port, &report_ms));
        let clients: Vec<_> = (0..CLIENTS).map(|_| asks()).collect();
        let began = now_ns();
        agent.wait_for("a whole window", |line| at(line, "start_ns") > began);
        let slow_ns = now_ns();
        report_ms.store(SLOW_MS, Ordering::Relaxed);
        let goes_on = |line: &Value| {
            line["category"] == "target_missed" && at(line, "start_ns") > slow_ns + 1_000_000_000
        };
        agent.wait_for("a target that is missed", goes_on);
        let quick_ns = now_ns();
        report_ms.store(QUICK_MS, Ordering::Relaxed);
        let met = |line: &Value| line["category"] == "target_missed" && line["state"] == "resolved";
        agent.wait_for("a target that is met", met);
        report_ms.store(0, Ordering::Relaxed);
        let longest = clients.into_iter().map(|client| client.join().unwrap());
        (slow_ns, quick_ns, longest.max().unwrap())
    });
    server.done(PATIENCE);
    agent.interrupt();
    let run = agent.finish(PATIENCE);
    run.ended_well("interrupt").lost_nothing();
    for (subject, delegate) in [
        ("GET /report/*", "performance-engineer"),
        ("SELECT pg_sleep(?)", "database-specialist"),
    ] {
        let found = of(&run, "target_missed", subject);
        assert!(
            found.iter().all(|f| f["delegate_to"] == delegate),
            "{found:#?}"
        );
        told_while_slow(&run, &found, slow_ns, quick_ns);
        told_how_far(&found, slow_ns, quick_ns, longest_ns);
    }
    assert_eq!(
        of(&run, "target_missed", "GET /now/*"),
        Vec::<&Value>::new()
    );
}

/// New in the first window that has slow answers, there in each that has no others, and resolved in the end;
/// all since the first.
fn told_while_slow(run: &Run, found: &[&Value], slow_ns: u64, quick_ns: u64) {
    let states: Vec<&str> = found.iter().map(|f| f["state"].as_str().unwrap()).collect();
    assert_eq!(states[0], "new", "{found:#?}");
    assert_eq!(states[states.len() - 1], "resolved", "{found:#?}");
    let between = &states[1..states.len() - 1];
    assert!(
        between.iter().all(|state| *state == "ongoing"),
        "{states:?}"
    );
    let first = found[0];
    assert!(at(first, "end_ns") > slow_ns, "{first}");
    assert!(
        found.iter().all(|f| f["since"] == first["ts"]),
        "{found:#?}"
    );
    let windows = run.of_type("coverage");
    let slow =
        windows.filter(|line| at(line, "start_ns") > slow_ns && at(line, "end_ns") < quick_ns);
    for line in slow {
        let told = found.iter().any(|f| f["window"] == line["window"]);
        assert!(told, "not in {}: {found:#?}", line["window"]);
    }
}

/// In windows without a quick answer: the percentile is what the clients waited for, or less.
fn told_how_far(found: &[&Value], slow_ns: u64, quick_ns: u64, longest_ns: u64) {
    // An answer that is on its way when the work changes is of the other kind.
    let slow_ns = slow_ns + QUICK_MS * 1_000_000;
    let slow: Vec<_> = found
        .iter()
        .filter(|f| at(f, "start_ns") > slow_ns && at(f, "end_ns") < quick_ns)
        .collect();
    assert!(!slow.is_empty(), "{found:#?}");
    for finding in slow {
        let measured = figure(finding, "measured");
        let (least, most) = (SLOW_MS as f64 * 1e6, longest_ns as f64);
        // The histogram's error.
        let possible = least * 31.0 / 32.0..=most * 33.0 / 32.0;
        assert!(possible.contains(&measured), "{possible:?}: {finding}");
        let times = measured / (LIMIT_MS as f64 * 1e6);
        assert_eq!(figure(finding, "times_the_target"), times, "{finding}");
        assert_eq!(
            figure(finding, "target"),
            LIMIT_MS as f64 * 1e6,
            "{finding}"
        );
        let title = finding["title"].as_str().unwrap();
        assert!(
            title.contains(&format!("{times:.2} times the target of 40.0 ms")),
            "{title}"
        );
    }
}

/// Traces a Redis server with a budget while it is busy, or not; with the CPU time it took meanwhile.
fn redis_with(budget: &str, commands: u32) -> (Run, u64, u64) {
    let (server, port) = servers::redis();
    let directory = tempfile::tempdir().unwrap();
    let config = written(directory.path(), &format!("[budget]\n{budget}\n"));
    let pid = server.pid().to_string();
    let agent = Agent::start([
        "trace",
        "-p",
        &pid,
        "--interval",
        "100s",
        "--config",
        &config,
    ]);
    agent.attached();
    let before = cpu_ns(server.pid());
    servers::to_end(servers::redis_benchmark(port, commands, 1));
    let used = cpu_ns(server.pid()) - before;
    let resident = resident_bytes(server.pid());
    agent.interrupt();
    let run = agent.finish(PATIENCE);
    run.ended_well("interrupt");
    (run, used, resident)
}

/// CPU time of all threads, by the scheduler.
fn cpu_ns(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |task: fs::DirEntry| fs::read_to_string(task.path().join("schedstat")).ok();
    let figures = tasks.filter_map(|task| of(task.ok()?));
    figures
        .filter_map(|text| text.split(' ').next()?.parse::<u64>().ok())
        .sum()
}

fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap() << 10
}

#[test]
fn a_server_that_takes_more_than_its_budget_is_told_by_how_much() {
    let _alone = alone();
    let (run, used_ns, resident) = redis_with("cpu = 0.02\nrss = '2MiB'", 50_000);
    let found = of(&run, "budget_exceeded", "CPU budget");
    let [cpu] = found[..] else {
        panic!("{found:#?}");
    };
    let window_ns = (at(cpu, "end_ns") - at(cpu, "start_ns")) as f64;
    let used = used_ns as f64 / window_ns;
    assert!(
        (figure(cpu, "used") / used - 1.0).abs() < 0.05,
        "{used}: {cpu}"
    );
    let over = (figure(cpu, "used") - 0.02) * 1e9;
    let bound = cpu["gain_bound_ns_per_s"].as_f64().unwrap();
    assert!((bound / over - 1.0).abs() < 0.001, "{over}: {cpu}");
    assert_eq!(cpu["delegate_to"], "performance-engineer", "{cpu}");
    let found = of(&run, "budget_exceeded", "memory budget");
    let [memory] = found[..] else {
        panic!("{found:#?}");
    };
    let held = figure(memory, "used");
    assert!(
        (held / resident as f64 - 1.0).abs() < 0.02,
        "{resident}: {memory}"
    );
    let times = held / f64::from(2 << 20);
    assert_eq!(figure(memory, "times_the_budget"), times, "{memory}");
    assert_eq!(memory["impact"], "high", "{memory}");
}

#[test]
fn a_server_that_keeps_its_budget_is_not_told_of() {
    let _alone = alone();
    let (run, used_ns, _) = redis_with("cpu = 1.5\nrss = '512MiB'", 50_000);
    assert!(used_ns > 0);
    let found = run
        .of_type("finding")
        .filter(|f| f["category"] == "budget_exceeded");
    assert_eq!(found.count(), 0, "{}", run.text);
}
