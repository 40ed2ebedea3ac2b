//! Statements on real connections, against the servers' and the clients' own counts.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use perf_agent_tests::agent::{Agent, Run, trace_command, trace_during};
use perf_agent_tests::servers::{self, Mariadb, Postgres};
use perf_agent_tests::traced::Traced;
use perf_agent_tests::{PATIENCE, alone};
use serde_json::Value;

/// Rows of the `statements` lines of a role.
fn rows(run: &Run, role: &str) -> Vec<Value> {
    let lines = run.of_type("statements");
    let rows = lines.flat_map(|line| line["statements"].as_array().unwrap().clone());
    rows.filter(|row| row["role"] == role).collect()
}

/// Counts by the first word of the statement.
fn counts(rows: &[Value]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for row in rows {
        let text = row["text"].as_str().unwrap();
        let word = text.split(' ').next().unwrap_or_default().to_lowercase();
        *counts.entry(word).or_default() += row["count"].as_u64().unwrap();
    }
    counts
}

fn sum(rows: &[Value], field: &str) -> u64 {
    rows.iter().map(|row| row[field].as_u64().unwrap()).sum()
}

fn anomalies(run: &Run) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for line in run.of_type("coverage") {
        for (what, n) in line["sockets"]["anomalies"].as_object().unwrap() {
            *all.entry(what.clone()).or_default() += n.as_u64().unwrap();
        }
    }
    all
}

/// Nothing unread: every socket byte seen was decoded, and nothing was lost or left over.
fn read_everything(run: &Run) {
    run.lost_nothing();
    assert_eq!(anomalies(run), BTreeMap::new(), "{}", run.text);
    let (seen, decoded) = (
        run.sum("coverage", "/bytes_seen"),
        run.sum("coverage", "/bytes_decoded"),
    );
    assert!(seen > 0, "no socket bytes: {}", run.text);
    assert_eq!(decoded, seen, "{}", run.text);
}

#[test]
fn redis_commands_are_counted_as_the_server_counts_them() {
    let _alone = alone();
    let (server, port) = servers::redis();
    for depth in [1, 16, 100] {
        let before = servers::redis_counts(port);
        let run = trace_during(server.pid(), servers::redis_benchmark(port, 20_000, depth));
        let after = servers::redis_counts(port);
        let own = |name: &str| {
            after.get(name).copied().unwrap_or(0) - before.get(name).copied().unwrap_or(0)
        };
        run.ended_well("interrupt");
        read_everything(&run);
        let rows = rows(&run, "server");
        let counts = counts(&rows);
        for name in ["set", "get"] {
            assert!(own(name) >= 20_000, "{name}: {after:?}");
            assert_eq!(counts[name], own(name), "depth {depth}: {}", run.text);
        }
        assert_eq!(counts["config"], own("config|get"), "depth {depth}");
        assert_eq!(sum(&rows, "hits"), own("keyspace_hits"), "depth {depth}");
        assert_eq!(
            sum(&rows, "misses"),
            own("keyspace_misses"),
            "depth {depth}"
        );
    }
}

#[test]
fn redis_commands_are_counted_on_the_clients_side_too() {
    let _alone = alone();
    let (_server, port) = servers::redis();
    for depth in [1, 16, 100] {
        let before = servers::redis_counts(port);
        let run = trace_command(&servers::redis_benchmark(port, 20_000, depth));
        let after = servers::redis_counts(port);
        run.ended_well("target_exit").lost_nothing();
        let counts = counts(&rows(&run, "client"));
        for name in ["set", "get"] {
            let own = after[name] - before.get(name).copied().unwrap_or(0);
            assert_eq!(counts[name], own, "depth {depth}: {}", run.text);
        }
    }
}

#[test]
fn no_command_is_attributed_wrongly_when_the_trace_comes_and_goes_in_the_middle() {
    let _alone = alone();
    let (server, port) = servers::redis();
    let _load = servers::redis_load(port);
    for _ in 0..3 {
        let before = servers::redis_counts(port)["set"];
        let agent = Agent::start(["trace", "-p", &server.pid().to_string(), "--duration", "1s"]);
        let run = agent.finish(PATIENCE);
        let after = servers::redis_counts(port);
        run.ended_well("duration").lost_nothing();
        let rows = rows(&run, "server");
        assert!(
            rows.iter()
                .all(|r| r["text"].as_str().unwrap().starts_with("SET ")),
            "{rows:?}"
        );
        let counted = sum(&rows, "count");
        assert!(
            counted > 100 && counted <= after["set"] - before,
            "{counted} of {} sets",
            after["set"] - before
        );
        // Each of the 20 connections may have had one command under way at each end, and answers are
        // seen a little before requests: 68 once, where the agent lost its CPU in between.
        for (what, n) in anomalies(&run) {
            assert!(
                ["orphan_answers", "unanswered"].contains(&what.as_str())
                    && n <= 20 + counted / 100
                    && counted + n <= after["set"] - before + 20,
                "{n} {what} beside {counted}"
            );
        }
    }
}

/// A value at a quantile of pgbench's own log.
fn quantile(latencies_us: &mut [u64], q: f64) -> u64 {
    latencies_us.sort_unstable();
    let rank = (latencies_us.len() as f64 * q).ceil() as usize;
    latencies_us[rank.clamp(1, latencies_us.len()) - 1] * 1000
}

const SELECT: &str =
    "\\set aid random(1, 100000)\nSELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n";

/// Runs of which one must have been timed as pgbench did. Its clock is read in its own thread, before
/// it builds a message and after it read the result: where other work takes the CPU in between, the
/// time is in pgbench's latency and not in the connection's.
const RUNS: u32 = 3;

#[test]
fn pgbench_is_counted_and_timed_as_it_does_itself() {
    let _alone = alone();
    let postgres = Postgres::start();
    for mode in ["simple", "extended", "prepared"] {
        let mut wrong = Vec::new();
        let right = (1..=RUNS).any(|run| {
            let differences = differences(&postgres, mode, run);
            let right = differences.is_empty();
            wrong.push(differences);
            right
        });
        assert!(right, "{mode}: {wrong:#?}");
    }
}

/// Counts a run exactly; which of its quantiles are further than 3 % + 20 us from those of pgbench's
/// own log.
fn differences(postgres: &Postgres, mode: &str, run: u32) -> Vec<String> {
    let log = format!("select-{mode}-{run}-");
    let run = trace_command(&postgres.transactions(mode, SELECT, (8, 500), &log));
    run.ended_well("target_exit").lost_nothing();
    let mut own = postgres.latencies_us(&log);
    assert_eq!(own.len(), 4000);
    let selects: Vec<Value> = rows(&run, "client")
        .into_iter()
        .filter(|r| r["text"].as_str().unwrap().contains("pgbench_accounts"))
        .collect();
    let [select] = &selects[..] else {
        panic!("{mode}: {selects:?}");
    };
    assert_eq!(select["count"], 4000, "{mode}: {select}");
    assert_eq!(select["protocol"], "postgresql");
    assert_eq!(select["errors"], 0, "{mode}: {select}");
    let quantiles = [("p50_ns", 0.50), ("p95_ns", 0.95), ("p99_ns", 0.99)];
    quantiles
        .into_iter()
        .filter_map(|(field, q)| {
            let ours = select["latency"][field].as_u64().unwrap();
            let theirs = quantile(&mut own, q);
            (ours.abs_diff(theirs) > theirs * 3 / 100 + 20_000)
                .then(|| format!("{field}: {ours} ns, pgbench {theirs} ns"))
        })
        .collect()
}

#[test]
fn each_statement_of_a_pipeline_is_counted() {
    let _alone = alone();
    let postgres = Postgres::start();
    let script = "\\startpipeline\nSELECT 1;\nSELECT 2 + 3;\nSELECT 'x';\n\\endpipeline\n";
    let run = trace_command(&postgres.transactions("extended", script, (8, 200), "pipeline"));
    run.ended_well("target_exit").lost_nothing();
    assert_eq!(postgres.latencies_us("pipeline").len(), 1600);
    let mut by_text: BTreeMap<String, u64> = BTreeMap::new();
    for row in rows(&run, "client") {
        let text = row["text"].as_str().unwrap().to_owned();
        *by_text.entry(text).or_default() += row["count"].as_u64().unwrap();
    }
    assert_eq!(by_text["SELECT ?"], 3200, "{by_text:?}");
    assert_eq!(by_text["SELECT ? + ?"], 1600, "{by_text:?}");
}

#[test]
fn servers_backends_are_counted_by_their_own_statistics() {
    let _alone = alone();
    let postgres = Postgres::start();
    let run = trace_during(
        postgres.server.pid(),
        postgres.transactions("prepared", SELECT, (4, 500), "server"),
    );
    run.ended_well("interrupt").lost_nothing();
    let selects: u64 = rows(&run, "server")
        .iter()
        .filter(|r| r["text"].as_str().unwrap().contains("pgbench_accounts"))
        .map(|r| r["count"].as_u64().unwrap())
        .sum();
    let unattributed = run.sum("coverage", "/sockets/unattributed_statements");
    assert_eq!(postgres.latencies_us("server").len(), 2000);
    // Backends that live for less than a second have no lines; theirs are counted in `coverage`.
    assert!(
        selects <= 2000 && selects + unattributed >= 2000,
        "{selects} and {unattributed}: {}",
        run.text
    );
}

/// Asks memcached and returns its answer up to `end`.
fn ask(stream: &mut TcpStream, request: &str, end: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    let mut piece = [0; 4096];
    while !answer.ends_with(end) {
        let n = stream.read(&mut piece).unwrap();
        assert!(n > 0, "memcached closed the connection after {answer:?}");
        answer += std::str::from_utf8(&piece[..n]).unwrap();
    }
    answer
}

#[test]
fn memcached_hits_and_misses_are_the_servers_own() {
    let _alone = alone();
    let (server, port) = servers::memcached();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let stat = |stream: &mut TcpStream, name: &str| -> u64 {
        let answer = ask(stream, "stats\r\n", "END\r\n");
        let line = answer
            .lines()
            .find_map(|l| l.strip_prefix(&format!("STAT {name} ")));
        line.unwrap().trim().parse().unwrap()
    };
    let agent = Agent::start(["trace", "-p", &server.pid().to_string()]);
    agent.attached();
    for i in 0..300 {
        let set = format!("set item:{i} 0 0 5\r\nvalue\r\n");
        assert_eq!(ask(&mut stream, &set, "\r\n"), "STORED\r\n");
    }
    for i in 0..200 {
        let (there, gone) = (i, i + 1000);
        ask(
            &mut stream,
            &format!("get item:{there} item:{gone}\r\n"),
            "END\r\n",
        );
    }
    let own = ["get_hits", "get_misses"].map(|name| stat(&mut stream, name));
    agent.interrupt();
    let run = agent.finish(PATIENCE);
    run.ended_well("interrupt");
    read_everything(&run);
    assert_eq!(own, [200, 200]);
    let rows = rows(&run, "server");
    assert_eq!(
        [sum(&rows, "hits"), sum(&rows, "misses")],
        own,
        "{}",
        run.text
    );
    let counts = counts(&rows);
    assert_eq!(
        (counts["set"], counts["get"], counts["stats"]),
        (300, 200, 2)
    );
}

/// What the kernel says is in a map of the one agent that runs.
fn map_entries(name: &str) -> usize {
    let mut dump = Command::new("bpftool");
    dump.args(["-j", "map", "dump", "name", name]);
    let output = dump.output().unwrap_or_else(|e| panic!("bpftool: {e}"));
    assert!(output.status.success(), "{output:?}");
    let entries: Value = serde_json::from_slice(&output.stdout).unwrap();
    entries.as_array().unwrap().len()
}

#[test]
fn a_thousand_connections_a_second_leave_nothing_behind() {
    let _alone = alone();
    let mut program = Traced::workload(&["churn", "--seconds", "30", "--hold"]);
    let agent = Agent::start(["trace", "-p", &program.pid().to_string()]);
    agent.attached();
    program.go();
    let made = program.done(4 * PATIENCE)["connections"].as_u64().unwrap();
    // A whole window after the last connection.
    let at = std::time::Instant::now();
    agent.wait_for("quiet window", |line| {
        line["type"] == "coverage" && line["sockets"]["connections"] == 0
            || at.elapsed() > PATIENCE / 2
    });
    for map in ["connections", "connecting", "protocols"] {
        assert_eq!(map_entries(map), 0, "{map}");
    }
    agent.interrupt();
    let run = agent.finish(PATIENCE);
    run.ended_well("interrupt").lost_nothing();
    assert!(made >= 29_900, "{made} connections");
    let coverage: Vec<&Value> = run.of_type("coverage").collect();
    let used = run.sum("coverage", "/sockets/connections");
    // Both ends are the program's; one that lasts over the end of a window is used in two.
    assert!(
        used >= 2 * made && used <= 2 * made + 4 * coverage.len() as u64,
        "{used} of {made} connections"
    );
    let last = coverage[coverage.len() - 1];
    assert_eq!(last["maps"]["connections"], 0, "{last}");
    let rss = |line: &Value| line["agent"]["rss_bytes"].as_u64().unwrap();
    let early = coverage[5..10].iter().map(|c| rss(c)).max().unwrap();
    assert!(
        rss(last) <= early + (4 << 20),
        "{} bytes after {early}",
        rss(last)
    );
}

#[test]
fn mariadb_queries_are_counted_as_its_log_has_them() {
    let _alone = alone();
    let mariadb = Mariadb::start();
    let before = mariadb.logged("Query", "SELECT 1 + ");
    let mut slap = mariadb.client("mariadb-slap");
    slap.args([
        "--concurrency=4",
        "--number-of-queries=2000",
        "--delimiter=;",
    ])
    .arg("--query=SELECT 1 + 2; SELECT 'x' FROM missing_table")
    .args(["--create-schema=mysql", "--no-drop"])
    .stdout(std::process::Stdio::null());
    // It stops at the first error, which is an answer too.
    let run = {
        let agent = Agent::start(["trace", "-p", &mariadb.server.pid().to_string()]);
        agent.attached();
        _ = slap.status().unwrap();
        let mut select = mariadb.client("mariadb");
        select.args(["-N", "-e"]).arg("SELECT 1 + 3; ".repeat(500));
        select.stdout(std::process::Stdio::null());
        servers::to_end(select);
        mariadb.until_left();
        agent.interrupt();
        agent.finish(PATIENCE)
    };
    run.ended_well("interrupt");
    read_everything(&run);
    let own = mariadb.logged("Query", "SELECT 1 + ") - before;
    let missing = mariadb.logged("Query", "SELECT 'x' FROM missing_table");
    let rows = rows(&run, "server");
    assert!(
        rows.iter().all(|row| row["protocol"] == "mysql"),
        "{rows:?}"
    );
    let of = |text: &str, field: &str| -> u64 {
        let rows = rows.iter().filter(|row| row["text"] == text);
        rows.map(|row| row[field].as_u64().unwrap()).sum()
    };
    assert!(own >= 500 && missing >= 1, "{own}, {missing}");
    assert_eq!(of("SELECT ? + ?", "count"), own, "{}", run.text);
    assert_eq!(of("SELECT ? FROM missing_table", "count"), missing);
    assert_eq!(of("SELECT ? FROM missing_table", "errors"), missing);
}
