//! One cause is one story: findings that follow from another name it, on real servers.

use std::thread;
use std::time::Duration;

use perf_agent_tests::agent::{Agent, Run};
use perf_agent_tests::http_client::Client;
use perf_agent_tests::servers::{self, Postgres};
use perf_agent_tests::traced::Traced;
use perf_agent_tests::{PATIENCE, alone};
use serde_json::Value;

const CLIENTS: usize = 10;
const REPORTS: u64 = 20;

/// Traces a server, in one window, whose `CLIENTS` threads share some sessions of PostgreSQL, while each
/// makes reports that take so long there, with a pause after each; with what the server measured.
fn reports(sessions: usize, pg_ms: u64, pause: Duration) -> (Run, Value) {
    let postgres = Postgres::start();
    let port = servers::free_port();
    let socket = postgres.socket().display().to_string();
    let connect = format!("{port}@{socket}@{sessions}@{CLIENTS}");
    let mut server = Traced::workload(&["http-server-pool", "--connect", &connect, "--hold"]);
    let pid = server.pid().to_string();
    let target = ["--target", "p95=100ms"];
    let agent = Agent::start(
        ["trace", "-p", &pid, "--interval", "100s"]
            .into_iter()
            .chain(target),
    );
    agent.attached();
    server.go();
    let ask = move || {
        let mut client = Client::connect(port);
        for n in 0..REPORTS {
            client.ask(&format!("/report/{n}?pg={pg_ms}"));
            thread::sleep(pause);
        }
    };
    let clients: Vec<_> = (0..CLIENTS).map(|_| thread::spawn(ask)).collect();
    clients
        .into_iter()
        .for_each(|client| client.join().unwrap());
    let done = server.done(PATIENCE);
    agent.interrupt();
    let run = agent.finish(PATIENCE);
    run.ended_well("interrupt").lost_nothing();
    (run, done)
}

fn finding<'a>(run: &'a Run, category: &str, subject: &str) -> &'a Value {
    let mut found = run.of_type("finding");
    let is_it =
        |f: &&Value| f["category"] == *category && f["subject"].as_str().unwrap().contains(subject);
    found
        .find(is_it)
        .unwrap_or_else(|| panic!("no {category} of {subject} in {}", run.text))
}

/// Categories and subjects of a finding and of what it follows from, up to the one to act on.
fn story<'a>(run: &'a Run, effect: &'a Value) -> Vec<(&'a str, &'a str)> {
    let text = |f: &'a Value, field: &str| f[field].as_str().unwrap();
    let mut told = Vec::new();
    let mut next = Some(effect);
    while let Some(finding) = next {
        told.push((text(finding, "category"), text(finding, "subject")));
        let cause = finding.get("caused_by");
        next = cause.map(|id| run.of_type("finding").find(|f| f["id"] == *id).unwrap());
    }
    told
}

#[test]
fn a_slow_statement_the_pool_it_exhausts_and_the_requests_it_delays_are_one_story() {
    let _alone = alone();
    let (run, done) = reports(2, 50, Duration::ZERO);
    let first = run.of_type("finding").next().unwrap();
    assert_eq!(first["category"], "slow_statement", "{first}");
    assert_eq!(first["subject"], "SELECT pg_sleep(?)", "{first}");
    assert_eq!(first["delegate_to"], "database-specialist", "{first}");
    let missed = finding(&run, "target_missed", "GET /report/*");
    let told = story(&run, missed);
    let pool = finding(&run, "pool_saturation", "")["subject"]
        .as_str()
        .unwrap();
    assert_eq!(
        told,
        [
            ("target_missed", "GET /report/*"),
            ("slow_statement", "GET /report/*"),
            ("pool_saturation", pool),
            ("slow_statement", "SELECT pg_sleep(?)"),
        ]
    );
    // A fix gains what the statement takes, and what threads wait for a session meanwhile.
    let of = |what: &str| done[what].as_f64().unwrap();
    let truth = of("asked_ns") + of("waited_ns");
    let window = |end: &str| first["window"][end].as_f64().unwrap();
    let bound = first["gain_bound_ns_per_s"].as_f64().unwrap();
    let bound = bound * (window("end_ns") - window("start_ns")) / 1e9;
    assert!(
        (bound / truth - 1.0).abs() < 0.05,
        "{bound} ns of {truth} ns: {done} {first}"
    );
}

#[test]
fn quick_statements_and_a_session_for_each_thread_are_no_story() {
    let _alone = alone();
    // Beside other work a statement of 2 ms took up to 62: rare enough, even these are no time to win.
    let (run, _) = reports(CLIENTS, 2, Duration::from_millis(200));
    let loud = run.of_type("finding").filter(|f| f["impact"] != "low");
    assert_eq!(loud.count(), 0, "{}", run.text);
    let missed = run
        .of_type("finding")
        .filter(|f| f["category"] == "target_missed");
    assert_eq!(missed.count(), 0, "{}", run.text);
}
