//! Ledgers of single requests, against what servers measured of themselves.

use std::collections::BTreeMap;
use std::thread;

use perf_agent_tests::agent::{Agent, Run};
use perf_agent_tests::http_client::Client;
use perf_agent_tests::servers::{self, Postgres};
use perf_agent_tests::traced::Traced;
use perf_agent_tests::workloads::http_server::CONNECTIONS;
use perf_agent_tests::{PATIENCE, alone};
use serde_json::{Value, json};

/// Requests of a connection.
const EACH: u64 = 20;
/// What may lie between a receive or a send and the server's reading of its clocks, of one request.
const BESIDE_NS: u64 = 50_000;

/// Traces a server of the workloads, in one window, while `clients` ask it on a port. It runs before
/// others, so that a client that is woken by an answer does not take the CPU between the server's last byte
/// and its reading of its clocks; its threads do wait for each other's.
fn trace(name: &str, peers: &str, clients: impl FnOnce(u16)) -> (Run, Value) {
    let port = servers::free_port();
    let connect = format!("{port}{peers}");
    let mut server = Traced::workload(&[name, "--connect", &connect, "--hold", "--realtime"]);
    let pid = server.pid().to_string();
    let agent = Agent::start(["trace", "-p", &pid, "--interval", "100s"]);
    agent.attached();
    server.go();
    clients(port);
    let done = server.done(PATIENCE);
    agent.interrupt();
    let run = agent.finish(PATIENCE);
    run.ended_well("interrupt").lost_nothing();
    (run, done)
}

/// Rows of `requests` by text.
fn rows(run: &Run) -> BTreeMap<String, Value> {
    let lines = run.of_type("requests");
    let rows = lines.flat_map(|line| line["requests"].as_array().unwrap().clone());
    rows.map(|row| (row["text"].as_str().unwrap().to_owned(), row))
        .collect()
}

fn coverage(run: &Run) -> (u64, u64, BTreeMap<String, u64>) {
    let mut unattributed = BTreeMap::new();
    for line in run.of_type("coverage") {
        for (reason, n) in line["requests"]["unattributed"].as_object().unwrap() {
            *unattributed.entry(reason.clone()).or_default() += n.as_u64().unwrap();
        }
    }
    let of = |what: &str| run.sum("coverage", &format!("/requests/{what}"));
    (of("served"), of("attributed"), unattributed)
}

/// What the server measured of a request, or of several, in nanoseconds.
type Measured = BTreeMap<String, u64>;

fn add(sum: &mut Measured, request: &Measured) {
    for (what, ns) in request {
        *sum.entry(what.clone()).or_default() += ns;
    }
}

/// A ledger says what the server measured of so many requests. That it sums to its latency is asserted of
/// every line of every test.
fn agrees(ledger: &Value, requests: u64, measured: &Measured) {
    let latency = ledger["latency_ns"].as_u64().unwrap();
    let classes = ledger["classes"].as_object().unwrap();
    let of = |names: &[&str]| -> u64 {
        let found = names.iter().filter_map(|name| classes.get(*name));
        found.map(|ns| ns.as_u64().unwrap()).sum()
    };
    // To a ledger it runs meanwhile, by the scheduler's clock it does not.
    let taken = measured["on_cpu"].saturating_sub(measured["cpu"]);
    let allowed = |truth: u64| truth / 100 + BESIDE_NS * requests + taken;
    for (what, told) in [
        ("wall", latency),
        ("cpu", of(&["cpu"])),
        ("runq", of(&["runq"])),
        ("lock", of(&["lock"])),
        // Until it is known what a new connection speaks, waiting for it is the socket's.
        ("postgresql", of(&["net.postgresql", "net.unix"])),
        ("redis", of(&["net.redis", "net.tcp"])),
    ] {
        let (truth, allowed) = (measured[what], allowed(measured[what]));
        println!("{what} of {requests}: {told} ns told, {truth} ns measured, {allowed} ns allowed");
        assert!(
            told.abs_diff(truth) <= allowed,
            "{what}: {told} ns told, {truth} ns measured, {allowed} ns allowed\n{ledger}\n{measured:?}"
        );
    }
}

/// Protocol and count of what was asked of others.
fn asked(row: &Value) -> BTreeMap<String, u64> {
    let peers = row["downstream"].as_array().unwrap().iter();
    peers
        .map(|peer| {
            let statements = peer["statements"].as_array().unwrap();
            assert_eq!(statements.len(), 1, "{peer}");
            assert_eq!(statements[0]["count"], peer["count"], "{peer}");
            let protocol = peer["protocol"].as_str().unwrap();
            let text = statements[0]["text"].as_str().unwrap();
            match protocol {
                "postgresql" => assert_eq!(text, "SELECT pg_sleep(?)"),
                _ => assert!(text.starts_with("GET "), "{text}"),
            }
            (protocol.to_owned(), peer["count"].as_u64().unwrap())
        })
        .collect()
}

#[test]
fn each_request_of_a_thread_has_the_ledger_that_its_server_measured() {
    let _alone = alone();
    let postgres = Postgres::start();
    let (_redis, redis_port) = servers::redis();
    let peers = format!("@{redis_port}@{}", postgres.socket().display());
    let (run, done) = trace("http-server-threads", &peers, |port| {
        let clients: Vec<_> = (0..CONNECTIONS as u64)
            .map(|i| {
                thread::spawn(move || {
                    let mut client = Client::connect(port);
                    for n in 0..EACH {
                        let pg = if (i, n) == (1, 7) { 400 } else { 4 };
                        let numbers = format!("cpu=3&lock={}&pg={pg}&redis={}", 3 + i, 1 + i);
                        let target = format!("/job/{n}?{numbers}");
                        client.send(&target, Some(&format!("{:016x}{:016x}", i + 1, n)));
                        client.receive();
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().unwrap();
        }
    });
    let measured: Vec<Measured> = serde_json::from_value(done["requests"].clone()).unwrap();
    let served = CONNECTIONS as u64 * EACH;
    assert_eq!(measured.len() as u64, served, "{done}");
    assert_eq!(coverage(&run), (served, served, BTreeMap::new()));
    let rows = rows(&run);
    assert_eq!(rows.keys().collect::<Vec<_>>(), ["GET /job/*"]);
    let row = &rows["GET /job/*"];
    assert_eq!(row["protocol"], "http", "{row}");
    assert_eq!(
        (&row["count"], &row["attributed"]),
        (&json!(served), &json!(served))
    );
    assert_eq!(
        (&row["errors"], &row["unattributed"]),
        (&json!(0), &json!({}))
    );
    assert_eq!(row["latency"]["sum_ns"], row["ledger"]["latency_ns"]);
    let mut sum = Measured::new();
    measured.iter().for_each(|request| add(&mut sum, request));
    agrees(&row["ledger"], served, &sum);
    let gets = (1 + 2 + 3) * EACH;
    let expected = [
        ("postgresql".to_owned(), served),
        ("redis".to_owned(), gets),
    ];
    assert_eq!(asked(row), BTreeMap::from(expected));
    let calls = |what: &str| run.sum("coverage", &format!("/requests/{what}"));
    assert_eq!(calls("calls") - calls("calls_elsewhere"), served + gets);

    let told = &row["slowest"][0];
    assert_eq!(told["trace_id"], format!("{:016x}{:016x}", 2, 7), "{row}");
    let slowest = measured.iter().max_by_key(|request| request["wall"]);
    agrees(&told["ledger"], 1, slowest.unwrap());
    let expected = [("postgresql".to_owned(), 1), ("redis".to_owned(), 2)];
    assert_eq!(asked(told), BTreeMap::from(expected));
}

#[test]
fn interleaved_requests_of_one_thread_are_not_attributed_and_coverage_says_so() {
    let _alone = alone();
    let (run, _) = trace("http-server-all", "", |port| {
        let mut clients: Vec<Client> = (0..CONNECTIONS).map(|_| Client::connect(port)).collect();
        for n in 0..EACH {
            let (target, trace_id) = (format!("/pair/{n}"), format!("{:032x}", n + 1));
            clients[0].send(&target, Some(&trace_id));
            clients[1].send(&target, Some(&trace_id));
            assert_eq!(
                (clients[0].receive(), clients[1].receive()),
                ("both".into(), "both".into())
            );
            // One at a time, on the same connections.
            let first = n as usize % CONNECTIONS;
            assert_eq!(clients[first].ask(&format!("/now/{n}")), "now");
        }
    });
    let interleaved = BTreeMap::from([("interleaved".to_owned(), 2 * EACH)]);
    assert_eq!(coverage(&run), (3 * EACH, EACH, interleaved));
    let rows = rows(&run);
    let pair = &rows["GET /pair/*"];
    assert_eq!(
        (&pair["count"], &pair["attributed"]),
        (&json!(2 * EACH), &json!(0))
    );
    assert_eq!(pair["unattributed"], json!({"interleaved": 2 * EACH}));
    let nothing = json!({"latency_ns": 0, "classes": {}, "residual_ns": 0});
    assert_eq!(pair["ledger"], nothing);
    for slow in pair["slowest"].as_array().unwrap() {
        assert_eq!(slow["unattributed"], "interleaved", "{slow}");
        assert_eq!(slow.get("ledger"), None, "{slow}");
        assert_ne!(slow.get("trace_id"), None, "{slow}");
    }
    let now = &rows["GET /now/*"];
    assert_eq!(
        (&now["count"], &now["attributed"]),
        (&json!(EACH), &json!(EACH))
    );
}
