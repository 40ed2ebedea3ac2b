//! Each kind of trouble with a database or a cache is found in a load on a real server that has it,
//! and not in its healthy twin.

use std::io::{Read, Write};
use std::net::TcpStream;

use perf_agent_tests::agent::{Agent, Run, figure, trace_command, trace_during};
use perf_agent_tests::servers::{self, Postgres};
use perf_agent_tests::traced::Traced;
use perf_agent_tests::{PATIENCE, alone};
use serde_json::Value;

fn of_category(run: &Run, category: &str) -> Vec<Value> {
    let findings = run.of_type("finding");
    findings
        .filter(|finding| finding["category"] == category)
        .cloned()
        .collect()
}

/// The one finding of a category, which is the database specialist's.
fn the(run: &Run, category: &str) -> Value {
    let found = of_category(run, category);
    let [finding] = &found[..] else {
        panic!("{} findings {category}: {}", found.len(), run.text);
    };
    assert_eq!(finding["delegate_to"], "database-specialist", "{finding}");
    finding.clone()
}

/// As [`the`], and the first of all.
fn first(run: &Run, category: &str) -> Value {
    let finding = the(run, category);
    assert_eq!(
        run.of_type("finding").next(),
        Some(&finding),
        "{}",
        run.text
    );
    finding
}

/// What a rate per second of wall time comes to in the finding's window.
fn in_window(finding: &Value, per_s: f64) -> f64 {
    let at = |field: &str| finding["window"][field].as_u64().unwrap();
    per_s * (at("end_ns") - at("start_ns")) as f64 / 1e9
}

/// The gain bound, over the window.
fn bound_ns(finding: &Value) -> f64 {
    in_window(finding, finding["gain_bound_ns_per_s"].as_f64().unwrap())
}

/// Traces pgbench with a script, one client, to its end; with the time its transactions took by its own
/// log.
fn pgbench(postgres: &Postgres, name: &str, script: &str, transactions: u32) -> (Run, f64) {
    let run = trace_command(&postgres.transactions("simple", script, (1, transactions), name));
    run.ended_well("target_exit").lost_nothing();
    let latencies_us = postgres.latencies_us(name);
    assert_eq!(latencies_us.len(), transactions as usize, "{}", run.text);
    (run, latencies_us.iter().sum::<u64>() as f64 * 1e3)
}

const ROWS: usize = 50;
const LIST: &str = "SELECT aid FROM pgbench_accounts WHERE bid = 1 ORDER BY aid LIMIT 50;\n";

#[test]
fn a_statement_for_each_row_of_a_list() {
    let _alone = alone();
    let postgres = Postgres::start();
    let single = |row| format!("SELECT abalance FROM pgbench_accounts WHERE aid = {row};\n");
    let singles: String = (1..=ROWS).map(single).collect();
    let (run, spent_ns) = pgbench(&postgres, "n-plus-one", &(LIST.to_owned() + &singles), 200);
    let finding = first(&run, "n_plus_one");
    assert_eq!(
        finding["subject"], "SELECT abalance FROM pgbench_accounts WHERE aid = ?",
        "{finding}"
    );
    assert_eq!(figure(&finding, "run_length"), ROWS as f64, "{finding}");
    assert_eq!(finding["area"], "database_performance", "{finding}");
    // All but one of each 50, of what pgbench says it took for these and the list.
    let expected_ns = spent_ns * (ROWS - 1) as f64 / ROWS as f64;
    let bound_ns = bound_ns(&finding);
    assert!(
        (expected_ns / 2.0..=expected_ns * 2.0).contains(&bound_ns),
        "{bound_ns} ns of {expected_ns} ns: {finding}"
    );
    assert_eq!(of_category(&run, "network_wait"), Vec::<Value>::new());

    let rows: Vec<String> = (1..=ROWS).map(|row| row.to_string()).collect();
    let all = format!(
        "SELECT abalance FROM pgbench_accounts WHERE aid IN ({});\n",
        rows.join(", ")
    );
    let (run, _) = pgbench(&postgres, "one-for-all", &(LIST.to_owned() + &all), 200);
    assert_eq!(of_category(&run, "n_plus_one"), Vec::<Value>::new());
}

#[test]
fn a_statement_over_the_target() {
    let _alone = alone();
    let postgres = Postgres::start();
    let (run, spent_ns) = pgbench(&postgres, "slow", "SELECT pg_sleep(0.3);\n", 5);
    let finding = first(&run, "slow_statement");
    assert_eq!(finding["subject"], "SELECT pg_sleep(?)", "{finding}");
    assert_eq!(finding["impact"], "high", "{finding}");
    assert!(figure(&finding, "p95") >= 300e6, "{finding}");
    let bound_ns = bound_ns(&finding);
    assert!(
        (1.5e9..=spent_ns).contains(&bound_ns),
        "{bound_ns} ns of {spent_ns} ns: {finding}"
    );

    let (run, _) = pgbench(&postgres, "quick", "SELECT pg_sleep(0.001);\n", 100);
    let over = of_category(&run, "slow_statement");
    assert!(over.iter().all(|f| f["impact"] == "low"), "{over:?}");
}

#[test]
fn a_transaction_that_is_left_open() {
    let _alone = alone();
    let postgres = Postgres::start();
    let update = "UPDATE pgbench_branches SET bbalance = bbalance + 1 WHERE bid = 1;\n";
    let open = format!("BEGIN;\n{update}\\sleep 300 ms\nCOMMIT;\n");
    let (run, spent_ns) = pgbench(&postgres, "open", &open, 5);
    let finding = the(&run, "idle_in_transaction");
    let idle_ns = in_window(&finding, figure(&finding, "idle_in_transaction"));
    assert!(
        (1.5e9..=spent_ns).contains(&idle_ns),
        "{idle_ns} ns of {spent_ns} ns: {finding}"
    );

    let shut = format!("BEGIN;\n{update}COMMIT;\n\\sleep 100 ms\n");
    let (run, _) = pgbench(&postgres, "shut", &shut, 5);
    assert_eq!(
        of_category(&run, "idle_in_transaction"),
        Vec::<Value>::new()
    );
}

/// Traces PostgreSQL while two clients update a row each and keep it locked for 20 ms; with what was found of
/// its locks of rows, and how long they waited by pgbench's log, which holds as long as one of them has the lock.
fn trace_locks(row: &str, name: &str) -> (Vec<Value>, f64) {
    let postgres = Postgres::start();
    let update = "UPDATE pgbench_branches SET bbalance = bbalance + 1 WHERE bid = :row;\n";
    let script = format!("\\set row {row}\nBEGIN;\n{update}\\sleep 20 ms\nCOMMIT;\n");
    let load = postgres.transactions("simple", &script, (2, 40), name);
    let run = trace_during(postgres.server.pid(), load);
    run.ended_well("interrupt").lost_nothing();
    let log = postgres.log_us(name);
    assert_eq!(log.len(), 80, "{log:?}");
    let first = log.iter().map(|(end, took)| end - took).min().unwrap();
    let last = log.iter().map(|(end, _)| *end).max().unwrap();
    let took: u64 = log.iter().map(|(_, took)| took).sum();
    let waited_ns = took.saturating_sub(last - first) as f64 * 1e3;
    let mut found = of_category(&run, "database_locks");
    // They wait for each other to write the log, too.
    found.retain(|finding| finding["subject"] == "locks of the database: rows");
    (found, waited_ns)
}

#[test]
fn a_row_that_another_transaction_holds() {
    let _alone = alone();
    let (found, waited_ns) = trace_locks("1", "one-row");
    assert!(
        waited_ns > 0.7e9,
        "{waited_ns}: they did not wait for each other"
    );
    // A backend is a process of its own.
    let wait_ns: f64 = found.iter().map(|f| in_window(f, figure(f, "wait"))).sum();
    let missed = (waited_ns - wait_ns) / waited_ns;
    // What comes before the wait in a transaction is in the log's time.
    assert!(
        (-0.02..0.10).contains(&missed),
        "{wait_ns} of {waited_ns} ns: {found:#?}"
    );
    for finding in found {
        assert_eq!(finding["delegate_to"], "database-specialist", "{finding}");
    }

    let (found, _) = trace_locks(":client_id + 1", "own-rows");
    assert_eq!(found, Vec::<Value>::new());
}

#[test]
fn a_connection_for_each_query() {
    let _alone = alone();
    let postgres = Postgres::start();
    let script = "SELECT abalance FROM pgbench_accounts WHERE aid = 1;\n";
    let load = |name: &str, more: &[&str]| {
        let mut command = postgres.transactions("simple", script, (1, 90), name);
        command.args(more);
        let run = trace_command(&command);
        run.ended_well("target_exit").lost_nothing();
        run
    };
    let run = load("churn", &["-C"]);
    let finding = the(&run, "connection_churn");
    // One for each of the 90 transactions, and perhaps pgbench's own before them.
    let made = in_window(&finding, figure(&finding, "connections"));
    assert!((89.5..91.5).contains(&made), "{made}: {finding}");

    let run = load("reused", &[]);
    assert_eq!(of_category(&run, "connection_churn"), Vec::<Value>::new());
}

/// Asks Redis for one thing after another.
struct Redis(TcpStream);

impl Redis {
    fn connect(port: u16) -> Redis {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        Redis(stream)
    }

    /// Sends a command and returns its answer, which is of one piece.
    fn ask(&mut self, command: &str) -> String {
        let words: Vec<&str> = command.split(' ').collect();
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.0.write_all(request.as_bytes()).unwrap();
        let mut answer = [0; 256];
        let n = self.0.read(&mut answer).unwrap();
        assert!(answer[..n].ends_with(b"\r\n"), "{command}");
        String::from_utf8_lossy(&answer[..n]).into_owned()
    }
}

/// Traces a Redis server while it is asked, in one window.
fn trace_redis(asks: impl Fn(&mut Redis)) -> Run {
    let (server, port) = servers::redis();
    let mut redis = Redis::connect(port);
    assert_eq!(redis.ask("MSET there:1 a there:2 b"), "+OK\r\n");
    let pid = server.pid().to_string();
    let agent = Agent::start(["trace", "--interval", "100s", "-p", &pid]);
    agent.attached();
    asks(&mut redis);
    servers::until_it_sleeps(server.pid());
    agent.interrupt();
    let run = agent.finish(PATIENCE);
    run.ended_well("interrupt").lost_nothing();
    run
}

#[test]
fn a_cache_that_does_not_have_it() {
    let _alone = alone();
    let run = trace_redis(|redis| {
        for i in 0..3000 {
            let (key, answer) = match i % 10 {
                0 => ("there:1", "$1\r\na\r\n"),
                _ => ("gone:1", "$-1\r\n"),
            };
            assert_eq!(redis.ask(&format!("GET {key}")), answer);
        }
    });
    let finding = the(&run, "cache_misses");
    assert_eq!(figure(&finding, "hit_ratio"), 0.1, "{finding}");
    assert_eq!(finding["area"], "caching", "{finding}");

    let run = trace_redis(|redis| {
        for _ in 0..3000 {
            redis.ask("GET there:2");
        }
    });
    assert_eq!(of_category(&run, "cache_misses"), Vec::<Value>::new());
    assert_eq!(of_category(&run, "statement_errors"), Vec::<Value>::new());
}

#[test]
fn requests_that_end_with_an_error() {
    let _alone = alone();
    let run = trace_redis(|redis| {
        for i in 0..4000 {
            let (command, begins) = match i % 4 {
                3 => ("LPUSH there:1 x", "-WRONGTYPE"),
                _ => ("GET there:1", "$1"),
            };
            assert!(redis.ask(command).starts_with(begins));
        }
    });
    let finding = the(&run, "statement_errors");
    let subject = finding["subject"].as_str().unwrap();
    assert!(
        subject.starts_with("error WRONGTYPE of LPUSH "),
        "{finding}"
    );
    assert_eq!(figure(&finding, "share_of_requests"), 0.25, "{finding}");
    assert_eq!(finding["impact"], "medium", "{finding}");
}

/// Traces a server that asks Redis for a dozen things to answer a request, under so many requests.
fn trace_chatty(path: &str, requests: usize) -> Run {
    let (_redis, redis_port) = servers::redis();
    let port = servers::free_port();
    let connect = format!("{port}@{redis_port}");
    let mut server = Traced::workload(&["chatty-server", "--connect", &connect]);
    let pid = server.pid().to_string();
    let agent = Agent::start(["trace", "--interval", "100s", "-p", &pid]);
    agent.attached();
    server.go();
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let expected = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    for _ in 0..requests {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        client.write_all(request.as_bytes()).unwrap();
        let mut answer = [0; 38];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, expected);
    }
    drop(client);
    assert_eq!(server.done(PATIENCE)["served"], requests);
    let run = agent.finish(PATIENCE);
    run.ended_well("target_exit").lost_nothing();
    run
}

#[test]
fn many_round_trips_for_each_request() {
    let _alone = alone();
    let run = trace_chatty("/each", 2000);
    let finding = the(&run, "chatty");
    let each = figure(&finding, "round_trips_per_request");
    assert_eq!(each, 12.0, "{finding}");
    let samples = |name: &str| {
        let figures = finding["evidence"].as_array().unwrap();
        let figure = figures.iter().find(|figure| figure["name"] == name);
        figure.unwrap()["samples"].as_u64().unwrap()
    };
    assert_eq!(samples("round_trips"), 12 * 2000, "{finding}");
    // All but one of the twelve.
    let bound_ns = bound_ns(&finding);
    let time_ns = in_window(&finding, figure(&finding, "time"));
    assert!(
        bound_ns > 0.0 && bound_ns <= time_ns * 11.0 / 12.0 * 1.001,
        "{bound_ns} ns of {time_ns} ns: {finding}"
    );

    let run = trace_chatty("/together", 2000);
    assert_eq!(of_category(&run, "chatty"), Vec::<Value>::new());
}

#[test]
fn pgbench_and_redis_in_good_health_have_nothing_above_low_of_their_statements() {
    let _alone = alone();
    let postgres = Postgres::start();
    let (server, port) = servers::redis();
    let mut tpcb = postgres.pgbench();
    tpcb.args(["-n", "-c", "4", "-T", "2", "postgres"]);
    let redis = trace_during(server.pid(), servers::redis_benchmark(port, 50_000, 1));
    redis.ended_well("interrupt");
    for run in [trace_command(&tpcb), redis] {
        let loud = run.of_type("finding").filter(|finding| {
            STATEMENT_RULES.contains(&finding["category"].as_str().unwrap())
                && finding["impact"] != "low"
        });
        assert_eq!(loud.count(), 0, "{}", run.text);
    }
}

const STATEMENT_RULES: &[&str] = &[
    "slow_statement",
    "n_plus_one",
    "chatty",
    "idle_in_transaction",
    "connection_churn",
    "pool_saturation",
    "statement_errors",
    "cache_misses",
    "retransmits",
];
