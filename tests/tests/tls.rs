//! Statements inside TLS, against the logs of servers and their clients.

use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

use perf_agent_tests::agent::{self, Agent, Run};
use perf_agent_tests::relay::Relay;
use perf_agent_tests::servers::{self, GrpcServer, Mariadb, Nginx, Postgres};
use perf_agent_tests::traced::Traced;
use perf_agent_tests::{PATIENCE, alone};
use serde_json::Value;

const SELECT: &str =
    "\\set aid random(1, 100000)\nSELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n";

/// Traces a command from its first instruction, in one window.
fn trace_command(command: &Command) -> Run {
    agent::trace_command_with(&["trace", "--tls", "on"], command)
}

fn rows<'a>(run: &'a Run, kind: &'a str, field: &'a str) -> impl Iterator<Item = &'a Value> {
    run.of_type(kind)
        .flat_map(move |line| line[field].as_array().into_iter().flatten())
}

fn count(run: &Run, protocol: &str, role: &str, text: &str) -> u64 {
    rows(run, "statements", "statements")
        .filter(|r| r["role"] == role && r["protocol"] == protocol)
        .filter(|r| r["text"].as_str().is_some_and(|t| t.contains(text)))
        .map(|r| r["count"].as_u64().unwrap())
        .sum()
}

fn selects(run: &Run, role: &str) -> u64 {
    count(run, "postgresql", role, "pgbench_accounts")
}

/// All that was seen could be read: that TLS was asked for, and what it carried.
fn nothing_amiss(run: &Run) {
    for line in run.of_type("coverage") {
        assert_eq!(
            line["sockets"]["anomalies"],
            serde_json::json!({}),
            "{line}"
        );
    }
}

/// What `hello` says of the signal.
fn told(hello: &Value) -> &str {
    let signals = hello["signals"].as_array().unwrap();
    let tls = signals.iter().find(|s| s["name"] == "tls").unwrap();
    assert_eq!(tls["on"], true, "{tls}");
    tls["reason"].as_str().unwrap()
}

#[test]
fn a_client_over_tls_is_counted_as_it_counts_itself() {
    let _alone = alone();
    let postgres = Postgres::start_tls();
    for mode in ["simple", "extended", "prepared"] {
        let log = format!("tls-{mode}");
        let run = trace_command(&postgres.transactions_over_tls(mode, SELECT, (4, 500), &log));
        run.ended_well("target_exit").lost_nothing();
        nothing_amiss(&run);
        assert_eq!(postgres.latencies_us(&log).len(), 2000);
        assert_eq!(selects(&run, "client"), 2000, "{mode}: {}", run.text);
        for row in rows(&run, "connections", "connections") {
            assert_eq!(row["tls"], true, "{mode}: {row}");
            assert_eq!(row["protocol"], "postgresql", "{mode}: {row}");
        }
    }
}

#[test]
fn a_server_that_ran_before_the_trace_is_counted_over_tls() {
    let _alone = alone();
    let postgres = Postgres::start_tls();
    let agent = Agent::start([
        "trace",
        "--tls",
        "on",
        "-p",
        &postgres.server.pid().to_string(),
    ]);
    agent.attached();
    servers::to_end(postgres.transactions_over_tls("prepared", SELECT, (4, 500), "server"));
    agent.interrupt();
    let run = agent.finish(PATIENCE);
    run.ended_well("interrupt").lost_nothing();
    nothing_amiss(&run);
    assert_eq!(postgres.latencies_us("server").len(), 2000);
    // Backends that live for less than a second have no lines; theirs are counted in `coverage`, with
    // the few that pgbench makes beside its script.
    let counted = selects(&run, "server");
    let unattributed = run.sum("coverage", "/sockets/unattributed_statements");
    assert!(
        counted <= 2000 && (2000..=2020).contains(&(counted + unattributed)),
        "{counted} and {unattributed}: {}",
        run.text
    );
}

#[test]
fn encryption_that_is_asked_for_and_not_read_is_no_anomaly() {
    let _alone = alone();
    let postgres = Postgres::start_tls();
    let agent = Agent::start(["trace", "-p", &postgres.server.pid().to_string()]);
    agent.attached();
    servers::to_end(postgres.transactions_over_tls("simple", SELECT, (4, 500), "unread"));
    agent.interrupt();
    let run = agent.finish(PATIENCE);
    run.ended_well("interrupt").lost_nothing();
    nothing_amiss(&run);
    let coverage = |field: &str| run.sum("coverage", field);
    let (seen, decoded, encrypted) = (
        coverage("/bytes_seen"),
        coverage("/bytes_decoded"),
        coverage("/sockets/tls_unreadable_bytes"),
    );
    // Of each of the load's connections 8 bytes are read, that ask, and the one that answers.
    assert!(decoded >= 4 * 9 && encrypted > 2000 * 100, "{}", run.text);
    assert_eq!(seen, decoded + encrypted, "{}", run.text);
}

#[test]
fn mariadb_is_read_on_after_it_agreed_on_tls() {
    let _alone = alone();
    let mariadb = Mariadb::start();
    let agent = Agent::start([
        "trace",
        "--tls",
        "on",
        "-p",
        &mariadb.server.pid().to_string(),
    ]);
    let hello = agent.attached();
    assert!(told(&hello).contains("libssl.so"), "{hello}");
    assert!(told(&hello).contains(" a call)"), "{hello}");
    let before = mariadb.logged("Query", "SELECT 1 + ");
    let select = || {
        let mut select = mariadb.client_over_tls("mariadb");
        select.args(["-N", "-e"]).arg("SELECT 1 + 3; ".repeat(500));
        select.stdout(Stdio::null());
        select
    };
    servers::to_end(select());
    mariadb.until_left();
    agent.interrupt();
    let run = agent.finish(PATIENCE);
    run.ended_well("interrupt").lost_nothing();
    in_mysql(&run, "server");
    assert_eq!(mariadb.logged("Query", "SELECT 1 + ") - before, 500);

    let run = trace_command(&select());
    run.ended_well("target_exit");
    in_mysql(&run, "client");
}

fn in_mysql(run: &Run, role: &str) {
    nothing_amiss(run);
    let count = count(run, "mysql", role, "SELECT ? + ?");
    assert_eq!(count, 500, "{}", run.text);
    for row in rows(run, "connections", "connections") {
        assert_eq!(row["tls"], true, "{row}");
        assert_eq!(row["protocol"], "mysql", "{row}");
    }
}

#[test]
fn a_library_that_cannot_be_read_is_named() {
    let _alone = alone();
    let nginx = Nginx::start();
    let mut wget = Command::new("wget");
    wget.args(["-q", "-O", "/dev/null", "--no-check-certificate"]);
    wget.args(["--limit-rate", "1k"]);
    wget.arg(format!("https://localhost:{}/large", nginx.https));
    let client = servers::start(wget, "wget");
    let maps = format!("/proc/{}/maps", client.pid());
    servers::until("wget", || {
        std::fs::read_to_string(&maps).is_ok_and(|maps| maps.contains("libgnutls"))
    });
    let pid = client.pid().to_string();
    let agent = Agent::start(["trace", "--tls", "on", "-p", &pid, "--duration", "1s"]);
    let hello = agent.attached();
    assert!(told(&hello).contains("not readable: GnuTLS"), "{hello}");
    let run = agent.finish(PATIENCE);
    run.ended_well("duration");
    for line in run.of_type("coverage") {
        assert_eq!(
            line["sockets"]["unreadable_tls"],
            serde_json::json!(["GnuTLS"])
        );
    }
}

/// Builds the C client of `src/tls_client` with OpenSSL linked in.
fn client_with_openssl_in_it(directory: &Path, flags: &[&str]) -> String {
    let program = directory.join("tls_client");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/tls_client/tls_client.c");
    let mut gcc = Command::new("gcc");
    gcc.args(flags).arg(source).arg("-o").arg(&program);
    gcc.args(["-Wl,-Bstatic", "-lssl", "-lcrypto", "-Wl,-Bdynamic"]);
    servers::to_end(gcc);
    program.to_str().unwrap().to_owned()
}

#[test]
fn openssl_in_a_program_of_its_own_is_read() {
    let _alone = alone();
    let (nginx, directory) = (Nginx::start(), tempfile::tempdir().unwrap());
    let port = nginx.https.to_string();
    for flags in [&["-O2"][..], &["-O2", "-no-pie"]] {
        let program = client_with_openssl_in_it(directory.path(), flags);
        let before = nginx.log().values().sum::<u64>();
        let mut command = Command::new(&program);
        command.args([&port, "500"]);
        let run = trace_command(&command);
        run.ended_well("target_exit");
        nothing_amiss(&run);
        assert_eq!(
            count(&run, "http", "client", "GET /small"),
            501,
            "{}",
            run.text
        );
        let logged = nginx.logged(before + 501);
        assert_eq!(logged.values().sum::<u64>(), before + 501);

        // It has a connection already.
        let mut client = Traced::start(command, "tls_client");
        let pid = client.pid().to_string();
        let agent = Agent::start(["trace", "--tls", "on", "-p", &pid]);
        let hello = agent.attached();
        assert!(told(&hello).contains(&program), "{hello}");
        client.go();
        client.done(PATIENCE);
        let run = agent.finish(PATIENCE);
        run.ended_well("target_exit");
        nothing_amiss(&run);
        assert_eq!(
            count(&run, "http", "client", "GET /small"),
            500,
            "{}",
            run.text
        );
    }
}

#[test]
fn a_program_without_symbols_stays_unreadable() {
    let _alone = alone();
    let (nginx, directory) = (Nginx::start(), tempfile::tempdir().unwrap());
    let program = client_with_openssl_in_it(directory.path(), &["-s"]);
    let mut command = Command::new(&program);
    command.args([&nginx.https.to_string(), "50"]);
    let run = trace_command(&command);
    run.ended_well("target_exit");
    nothing_amiss(&run);
    assert_eq!(
        rows(&run, "statements", "statements").count(),
        0,
        "{}",
        run.text
    );
    assert!(run.sum("coverage", "/sockets/tls_unreadable_bytes") > 51 * 200);
    for row in rows(&run, "connections", "connections") {
        assert_eq!(row["protocol"], "tls-unreadable", "{row}");
    }
    assert_eq!(unreadable(&run), ["OpenSSL linked in"]);
}

/// What a program says over TLS of a library that is not read: all of its connections and bytes are
/// there, and the library's name.
fn stays_unreadable(run: &Run, library: &str, relay: &Relay) {
    run.lost_nothing();
    nothing_amiss(run);
    assert_eq!(unreadable(run), [library]);
    let connections: Vec<&Value> = rows(run, "connections", "connections").collect();
    assert_eq!(connections.len() as u64, relay.connections(), "{library}");
    for row in &connections {
        assert_eq!(row["protocol"], "tls-unreadable", "{library}: {row}");
        assert_eq!(row["role"], "client", "{library}: {row}");
    }
    let sum = |field: &str| -> u64 {
        let bytes = connections.iter().map(|row| row[field].as_u64().unwrap());
        bytes.sum()
    };
    let (own, passed) = ([sum("tx_bytes"), sum("rx_bytes")], relay.bytes());
    assert_eq!(own, passed, "{library}: {}", run.text);
    let unreadable = run.sum("coverage", "/sockets/tls_unreadable_bytes");
    assert_eq!(unreadable, passed[0] + passed[1], "{library}");
}

/// TLS libraries that the last window names.
fn unreadable(run: &Run) -> Vec<&str> {
    let line = run.of_type("coverage").last().unwrap();
    let names = line["sockets"]["unreadable_tls"].as_array().unwrap();
    names.iter().map(|name| name.as_str().unwrap()).collect()
}

/// Traces a client that is given a relay's port.
fn through_a_relay(
    server_port: u16,
    library: &str,
    client: impl FnOnce(u16) -> Command,
) -> (Run, Relay) {
    let relay = Relay::start(server_port);
    let run = trace_command(&client(relay.port));
    run.ended_well("target_exit");
    assert_eq!(run.the("bye")["exit_code"], 0, "{library}: {}", run.text);
    (run, relay)
}

fn wget(url: &str) -> Command {
    let mut wget = Command::new("wget");
    wget.args(["-q", "-O", "/dev/null", "--no-check-certificate"]);
    // Long enough to be looked at.
    wget.args(["--limit-rate", "8k", url]);
    wget
}

#[test]
fn a_client_of_gnutls_has_its_name_and_every_byte() {
    let _alone = alone();
    let nginx = Nginx::start();
    let (run, relay) = through_a_relay(nginx.https, "GnuTLS", |port| {
        wget(&format!("https://localhost:{port}/text"))
    });
    stays_unreadable(&run, "GnuTLS", &relay);
    assert_eq!(relay.connections(), 1);

    // It is the bytes that tell a connection, not what is mapped.
    let (run, relay) = through_a_relay(nginx.http, "GnuTLS", |port| {
        wget(&format!("http://localhost:{port}/text"))
    });
    assert_eq!(unreadable(&run), ["GnuTLS"]);
    assert_eq!(run.sum("coverage", "/sockets/tls_unreadable_bytes"), 0);
    let rows: Vec<&Value> = rows(&run, "connections", "connections").collect();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["protocol"], "http", "{}", rows[0]);
    assert_eq!(rows[0]["tx_bytes"], relay.bytes()[0]);
    assert_eq!(rows[0]["rx_bytes"], relay.bytes()[1]);
}

#[test]
fn a_stripped_client_of_go_has_its_name_and_every_byte() {
    let _alone = alone();
    let (nginx, directory) = (Nginx::start(), tempfile::tempdir().unwrap());
    let program = directory.path().join("tls_client");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/tls_client/tls_client.go");
    let mut go = Command::new("go");
    go.args(["build", "-ldflags=-s -w", "-o"])
        .arg(&program)
        .arg(source);
    go.env("GOCACHE", directory.path().join("cache"));
    go.env("GO111MODULE", "off");
    servers::to_end(go);
    let (run, relay) = through_a_relay(nginx.https, "Go", |port| {
        let mut client = Command::new(&program);
        client.args([&port.to_string(), "50"]);
        client
    });
    stays_unreadable(&run, "Go crypto/tls", &relay);
    assert_eq!(relay.connections(), 50);
}

/// In a module of Python, without symbols.
#[test]
fn a_client_of_boringssl_has_its_name_and_every_byte() {
    let _alone = alone();
    let grpc = GrpcServer::start_tls();
    let (run, relay) = through_a_relay(grpc.port, "BoringSSL", |port| {
        let mut client = grpc.client_command(port);
        client.args(["--calls", "10"]);
        client
    });
    stays_unreadable(&run, "BoringSSL", &relay);
    assert_eq!(relay.connections(), 1);
}

/// It is found while the trace runs: nothing waits for it but the last window.
#[test]
fn rustls_in_a_server_without_symbols_is_named() {
    let _alone = alone();
    let (broker, _) = servers::kafka();
    let pid = broker.pid().to_string();
    let agent = Agent::start(["trace", "--tls", "on", "-p", &pid]);
    agent.attached();
    agent.interrupt();
    let run = agent.finish(PATIENCE);
    run.ended_well("interrupt");
    assert_eq!(unreadable(&run), ["rustls"]);
}

/// A broker that keeps its messages in a store over HTTPS, whose certificate it refuses: what it says until
/// then.
#[test]
fn a_client_of_rustls_has_its_name_and_every_byte() {
    let _alone = alone();
    let nginx = Nginx::start();
    let relay = Relay::start(nginx.https);
    let (command, port) = servers::kafka_on_a_store(relay.port);
    let mut traced = vec!["trace".into(), "--tls".into(), "on".into(), "--".into()];
    traced.extend(command);
    let agent = Agent::start(traced);
    servers::until("the end of its tries", || {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    agent.interrupt();
    let run = agent.finish(PATIENCE);
    run.ended_well("interrupt");
    stays_unreadable(&run, "rustls", &relay);
    assert!(relay.connections() > 1, "{}", relay.connections());
}
