//! HTTP/1.1 and HTTP/2, in the clear and in TLS, against nginx's own log.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use perf_agent_tests::agent::{Agent, Run};
use perf_agent_tests::servers::{self, Logged, Nginx};
use perf_agent_tests::traced::{self, Traced};
use perf_agent_tests::{PATIENCE, alone};
use serde_json::Value;

fn rows<'a>(run: &'a Run, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    run.of_type(kind)
        .flat_map(move |line| line[kind].as_array().into_iter().flatten())
}

/// Requests by method and route, and those of them that failed by status.
type Counts = (BTreeMap<String, u64>, BTreeMap<(String, u16), u64>);

fn counted(run: &Run, role: &str, protocol: &str) -> Counts {
    let mut counts = Counts::default();
    for row in rows(run, "statements").filter(|row| row["role"] == role) {
        assert_eq!(row["protocol"], protocol, "{row}");
        let text = row["text"].as_str().unwrap();
        *counts.0.entry(text.to_owned()).or_default() += row["count"].as_u64().unwrap();
        for (status, n) in row["errors_by_code"].as_object().unwrap() {
            let key = (text.to_owned(), status.parse().unwrap());
            *counts.1.entry(key).or_default() += n.as_u64().unwrap();
        }
    }
    counts
}

fn as_counts(logged: &Logged) -> Counts {
    let mut counts = Counts::default();
    for ((text, status), n) in logged {
        *counts.0.entry(text.clone()).or_default() += n;
        if *status >= 400 {
            counts.1.insert((text.clone(), *status), *n);
        }
    }
    counts
}

/// What was logged after `before`.
fn since(before: &Logged, mut after: Logged) -> Logged {
    for (key, n) in before {
        *after.get_mut(key).unwrap() -= n;
    }
    after.retain(|_, n| *n > 0);
    after
}

/// Every request was counted, and none was lost or read wrongly.
fn agree(run: &Run, role: &str, protocol: &str, logged: &Logged) {
    run.lost_nothing();
    for line in run.of_type("coverage") {
        let sockets = &line["sockets"];
        assert_eq!(sockets["anomalies"], serde_json::json!({}), "{line}");
        assert_eq!(sockets["statements_dropped"], 0, "{line}");
        assert_eq!(sockets["unattributed_statements"], 0, "{line}");
    }
    let counted = counted(run, role, protocol);
    assert_eq!(counted, as_counts(logged), "{}", run.text);
}

fn total(logged: &Logged) -> u64 {
    logged.values().sum()
}

/// Room for all that a test moves: what is shown here is that it is read rightly, not how fast. The
/// loads are over before their programs' unwind tables could be built.
const OPTIONS: [&str; 4] = ["--stacks", "off", "--data-ring-bytes", "134217728"];

/// Starts a trace of a process and its children.
fn start(pid: u32, options: &[&str]) -> Agent {
    let pid = pid.to_string();
    let words = [&["trace", "-p", &pid], &OPTIONS[..], options].concat();
    Agent::start(words)
}

/// A trace of nginx and its workers.
fn trace(nginx: &Nginx, options: &[&str]) -> Agent {
    let agent = start(nginx.server.pid(), options);
    agent.attached();
    agent
}

/// Interrupts a trace.
fn end(agent: Agent) -> Run {
    agent.interrupt();
    let run = agent.finish(PATIENCE);
    run.ended_well("interrupt");
    run
}

/// Traces a command from its first instruction, in one window.
fn trace_command(options: &[&str], command: &Command) -> Run {
    let mut words = vec!["trace".to_owned()];
    let options = OPTIONS.iter().chain(options);
    words.extend(options.map(|&option| option.to_owned()));
    words.extend(["--interval", "100s", "--"].map(str::to_owned));
    words.push(command.get_program().to_string_lossy().into_owned());
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    let run = Agent::start(words).finish(4 * PATIENCE);
    run.ended_well("target_exit");
    assert_eq!(run.the("bye")["exit_code"], 0, "{}", run.text);
    run
}

/// The workload, which begins at once.
fn requests(port: u16) -> Command {
    let mut command = Command::new(traced::program("workload"));
    command.args(["http-requests", "--now", "--connect"]);
    command
        .arg(format!("127.0.0.1:{port}"))
        .stdout(Stdio::null());
    command
}

/// What the workload sends before its gate and behind it.
const OF_WORKLOAD: u64 = 2 * 3 * 720;
const OF_LOAD: u64 = 4000;

/// [`OF_LOAD`] requests for one path on four connections, ten at a time on each.
fn load(options: &[&str], url: &str) -> Command {
    let mut command = Command::new("h2load");
    command.args(options).args(["-c", "4", "-m", "10", "-n"]);
    command
        .arg(OF_LOAD.to_string())
        .arg(url)
        .stdout(Stdio::null());
    command
}

/// `curl` with one request of every kind, one after the other on one connection.
fn curl(options: &[&str], port: u16) -> Command {
    let url = |path: &str| format!("https://localhost:{port}/{path}");
    let mut command = Command::new("curl");
    let kinds: [(&str, &[&str]); 7] = [
        ("small", &[]),
        ("large", &["--head"]),
        ("nothing", &[]),
        ("missing", &[]),
        ("chunked", &["--compressed"]),
        ("small?id=7", &["--data", "words"]),
        ("broken", &[]),
    ];
    for (i, (path, of_kind)) in kinds.iter().enumerate() {
        command.args((i > 0).then_some("--next"));
        command.args(["--silent", "--insecure", "--output", "/dev/null"]);
        command.args(options).args(*of_kind).arg(url(path));
    }
    command
}
const OF_CURL: u64 = 7;

#[test]
fn requests_of_every_kind_are_counted_as_nginx_logs_them() {
    let _alone = alone();
    let nginx = Nginx::start();
    let agent = trace(&nginx, &[]);
    servers::to_end(requests(nginx.http));
    let logged = nginx.logged(OF_WORKLOAD);
    agree(&end(agent), "server", "http", &logged);
    assert_eq!(total(&logged), OF_WORKLOAD);

    // The same as its client sees it.
    let run = trace_command(&[], &requests(nginx.http));
    let again = since(&logged, nginx.logged(2 * OF_WORKLOAD));
    assert_eq!(again, logged);
    agree(&run, "client", "http", &again);
}

#[test]
fn connections_older_than_the_trace_are_counted_from_its_beginning() {
    let _alone = alone();
    let nginx = Nginx::start();
    let connect = format!("127.0.0.1:{}", nginx.http);
    for server in [true, false] {
        let mut client = Traced::workload(&["http-requests", "--connect", &connect]);
        let before = nginx.log();
        let agent = if server {
            trace(&nginx, &[])
        } else {
            let agent = start(client.pid(), &[]);
            agent.attached();
            agent
        };
        client.go();
        let own = client.done(PATIENCE);
        let logged = since(&before, nginx.logged(total(&before) + OF_WORKLOAD / 2));
        for ((text, status), n) in &logged {
            assert_eq!(own[format!("{text} {status}")], *n, "{own}");
        }
        let run = if server {
            end(agent)
        } else {
            agent.finish(PATIENCE)
        };
        let role = if server { "server" } else { "client" };
        agree(&run, role, "http", &logged);
        for row in rows(&run, "connections") {
            assert_eq!(row["age"], "preexisting", "{row}");
        }
    }
}

#[test]
fn pipelines_and_streams_are_counted_as_their_client_counts_them() {
    let _alone = alone();
    let nginx = Nginx::start();
    for (protocol, port, options) in [
        ("http", nginx.http, &["--h1"][..]),
        ("http2", nginx.http2, &[]),
    ] {
        let url = format!("http://127.0.0.1:{port}/small");
        let before = nginx.log();
        let agent = trace(&nginx, &[]);
        servers::to_end(load(options, &url));
        let logged = since(&before, nginx.logged(total(&before) + OF_LOAD));
        assert_eq!(total(&logged), OF_LOAD);
        agree(&end(agent), "server", protocol, &logged);

        let run = trace_command(&[], &load(options, &url));
        agree(&run, "client", protocol, &logged);
    }
}

/// Streams that are asked for one by one have each a ledger of the worker's time; of those that are served
/// side by side it is told that they have none.
#[test]
fn streams_are_attributed_one_by_one_and_told_apart_from_interleaved_ones() {
    const STREAMS: u64 = 400;
    let _alone = alone();
    let nginx = Nginx::start();
    let url = format!("http://127.0.0.1:{}/small", nginx.http2);
    for (side_by_side, at_once) in [(false, "1"), (true, "10")] {
        let mut h2load = Command::new("h2load");
        h2load.args(["-c", "1", "-m", at_once, "-n"]);
        h2load.arg(STREAMS.to_string()).arg(&url);
        let agent = trace(&nginx, &["--interval", "100s"]);
        servers::to_end(h2load);
        let run = end(agent);
        run.lost_nothing();
        let [row] = &rows(&run, "requests").collect::<Vec<_>>()[..] else {
            panic!("{}", run.text);
        };
        assert_eq!(
            (&row["text"], &row["count"]),
            (&"GET /small".into(), &STREAMS.into())
        );
        let unattributed = row["unattributed"].as_object().unwrap();
        let attributed = row["attributed"].as_u64().unwrap();
        let others: u64 = unattributed.values().map(|n| n.as_u64().unwrap()).sum();
        println!("{at_once} at once: {attributed} attributed, {unattributed:?}");
        assert_eq!(attributed + others, STREAMS, "{row}");
        assert_eq!(others > 0, side_by_side, "{row}");
    }
}

/// One connection of HTTP/2 (RFC 9113), as bytes.
struct Http2 {
    stream: TcpStream,
    last: u32,
}

impl Http2 {
    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = &u32::try_from(payload.len()).unwrap().to_be_bytes()[1..];
        [length, &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    fn connect(port: u16) -> Http2 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        let (settings, ack) = (Http2::frame(4, 0, 0, &[]), Http2::frame(4, 1, 0, &[]));
        let opening = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &settings[..], &ack].concat();
        stream.write_all(&opening).unwrap();
        Http2 { stream, last: 0 }
    }

    /// Waits until the server read all that was sent, as its queue of received bytes tells.
    fn until_read(&self) {
        let own = self.stream.local_addr().unwrap().port();
        let server = self.stream.peer_addr().unwrap().port();
        servers::until("a server that has read", || {
            let sockets = servers::tcp_sockets();
            let mut of_server = sockets.iter();
            let ends = of_server.find(|socket| (socket.port, socket.peer_port) == (server, own));
            ends.is_some_and(|socket| socket.unread == 0)
        });
    }

    /// Credit of a byte, which is never answered.
    fn credit(&mut self) {
        let update = Http2::frame(8, 0, 0, &[0, 0, 0, 1]);
        self.stream.write_all(&update).unwrap();
        self.until_read();
    }

    fn ask(&mut self) {
        self.last = if self.last == 0 { 1 } else { self.last + 2 };
        // GET, http, then authority and path by name of the static table and value.
        let block = b"\x82\x86\x01\x09localhost\x04\x06/small";
        let request = Http2::frame(1, 0x5, self.last, block);
        self.stream.write_all(&request).unwrap();
        loop {
            let mut head = [0; 9];
            self.stream.read_exact(&mut head).unwrap();
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            self.stream.read_exact(&mut payload).unwrap();
            let stream = u32::from_be_bytes(head[5..].try_into().unwrap());
            let ends = matches!(head[3], 0 | 1) && head[4] & 1 != 0;
            if ends && stream == self.last {
                return;
            }
        }
    }
}

/// A server reads credit and settings for themselves; the ledger of a stream begins with the stream.
#[test]
fn streams_behind_frames_without_answers_have_each_a_ledger() {
    const STREAMS: u64 = 100;
    let _alone = alone();
    let nginx = Nginx::start();
    let agent = trace(&nginx, &["--interval", "100s"]);
    let mut client = Http2::connect(nginx.http2);
    for _ in 0..STREAMS {
        client.credit();
        client.credit();
        client.ask();
    }
    let run = end(agent);
    run.lost_nothing();
    let [row] = &rows(&run, "requests").collect::<Vec<_>>()[..] else {
        panic!("{}", run.text);
    };
    assert_eq!(
        (&row["count"], &row["attributed"]),
        (&STREAMS.into(), &STREAMS.into()),
        "{row}"
    );
}

#[test]
fn requests_inside_tls_are_counted_as_those_in_the_clear() {
    let _alone = alone();
    let nginx = Nginx::start();
    for (protocol, port, of_curl, of_load) in [
        ("http", nginx.https, &["--http1.1"][..], &["--h1"][..]),
        ("http2", nginx.https2, &["--http2"], &[]),
    ] {
        let url = format!("https://localhost:{port}/small");
        let commands: [(u64, &dyn Fn() -> Command); 2] = [
            (OF_CURL, &|| curl(of_curl, port)),
            (OF_LOAD, &|| load(of_load, &url)),
        ];
        for (requests, command) in commands {
            let before = nginx.log();
            let agent = trace(&nginx, &["--tls", "on"]);
            servers::to_end(command());
            let logged = since(&before, nginx.logged(total(&before) + requests));
            assert_eq!(total(&logged), requests);
            let run = end(agent);
            in_tls(&run);
            agree(&run, "server", protocol, &logged);

            let run = trace_command(&["--tls", "on"], &command());
            in_tls(&run);
            agree(&run, "client", protocol, &logged);
        }
    }
}

fn in_tls(run: &Run) {
    let connections: Vec<&Value> = rows(run, "connections").collect();
    assert!(!connections.is_empty(), "{}", run.text);
    for row in connections {
        assert_eq!(row["tls"], true, "{row}");
    }
}

#[test]
fn a_trace_that_comes_and_goes_under_load_counts_nothing_that_was_not() {
    let _alone = alone();
    let nginx = Nginx::start();
    let mut wrk = Command::new("wrk");
    wrk.args(["-t", "1", "-c", "8", "-d", "6s"]);
    wrk.arg(format!("http://127.0.0.1:{}/small", nginx.http));
    let _load = servers::start(wrk, "wrk");
    nginx.logged(1000);
    for _ in 0..3 {
        let before = total(&nginx.log());
        let agent = start(nginx.server.pid(), &["--duration", "1s"]);
        let run = agent.finish(PATIENCE);
        let after = total(&nginx.log());
        run.ended_well("duration").lost_nothing();
        let (counts, errors) = counted(&run, "server", "http");
        assert_eq!(errors, BTreeMap::new(), "{}", run.text);
        assert!(counts.keys().eq(["GET /small"]), "{counts:?}");
        let count = counts["GET /small"];
        assert!(
            count > 1000 && count <= after - before,
            "{count} of {}",
            after - before
        );
        // Each connection may have had one request under way at each end.
        for line in run.of_type("coverage") {
            for (what, n) in line["sockets"]["anomalies"].as_object().unwrap() {
                assert!(
                    ["orphan_answers", "unanswered"].contains(&what.as_str())
                        && n.as_u64() <= Some(8),
                    "{n} {what}"
                );
            }
        }
    }
}
