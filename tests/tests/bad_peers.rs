//! Peers that do not keep to their protocol: each costs one counted error and no memory.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use perf_agent_tests::agent::{Agent, Run};
use perf_agent_tests::traced::Traced;
use perf_agent_tests::{PATIENCE, alone, servers};
use serde_json::Value;

/// What a bad peer sends behind the beginning of its answer.
const BYTES: usize = 24 << 20;
/// 32 MB/s: the agent empties a ring of 8 MiB ten times a second.
const SENT_AT_ONCE: usize = 64 << 10;
const BETWEEN: Duration = Duration::from_millis(2);
/// Far less than that: what an allocator keeps.
const GROWTH_MAX: u64 = 4 << 20;

const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";
const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n";
/// PostgreSQL's StartupMessage and a query.
const SELECT: &[u8] = b"\0\0\0\x10\0\x03\0\0user\0a\0\0Q\0\0\0\rSELECT 1\0";
/// Its AuthenticationOk, ReadyForQuery and the beginning of a DataRow.
const ROW: &[u8] = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05ID";
/// Kafka's ApiVersions, version 0, with the correlation id 1.
const API_VERSIONS: &[u8] = b"\0\0\0\x0d\0\x12\0\0\0\0\0\x01\0\x03abc";
/// An OP_MSG of MongoDB with `{"ping": 1}`, with the request id 1.
const MONGO_PING: &[u8] = b"\x24\0\0\0\x01\0\0\0\0\0\0\0\xdd\x07\0\0\0\0\0\0\0\
\x0f\0\0\0\x10ping\0\x01\0\0\0\0";

/// What went wrong on a connection, and the protocol it was taken for.
type Seen = (BTreeMap<String, u64>, String);

/// A traced client sends the request and reads an answer that begins so and goes on with [`BYTES`] of `more`,
/// until the peer closes.
fn answered_with(request: &[u8], begin: impl Into<Vec<u8>>, more: fn(usize) -> u8) -> Seen {
    let begin = begin.into();
    let answered = (begin.len() + BYTES) as u64;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = with_bytes(listener.local_addr().unwrap(), request);
    let length = request.len();
    let peer = thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        client.read_exact(&mut vec![0; length]).unwrap();
        send(client, &begin, more);
    });
    let (run, read) = traced(&["reader", "--connect", &to, "--hold"], || ());
    peer.join().unwrap();
    assert_eq!(read, answered);
    seen(&run, length as u64 + read)
}

/// A client sends a traced server a request, and after the answer another that begins so and goes on with
/// [`BYTES`] of `more`, of which the server reads all.
fn asked_with(request: &[u8], answer: &[u8], begin: &[u8], more: fn(usize) -> u8) -> Seen {
    let address = SocketAddr::from(([127, 0, 0, 1], servers::free_port()));
    let at = with_bytes(address, answer);
    let (run, read) = traced(&["sink", "--listen", &at, "--hold"], || {
        let mut server = TcpStream::connect(address).unwrap();
        server.write_all(request).unwrap();
        server.read_exact(&mut vec![0; answer.len()]).unwrap();
        send(server, begin, more);
    });
    assert_eq!(read, (request.len() + begin.len() + BYTES) as u64);
    seen(&run, answer.len() as u64 + read)
}

fn with_bytes(address: SocketAddr, bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{address}@{digits}")
}

fn send(mut to: TcpStream, begin: &[u8], more: fn(usize) -> u8) {
    to.write_all(begin).unwrap();
    let bytes: Vec<u8> = (0..BYTES).map(more).collect();
    for bytes in bytes.chunks(SENT_AT_ONCE) {
        to.write_all(bytes).unwrap();
        thread::sleep(BETWEEN);
    }
}

/// Traces a workload while its peer does its part; with the bytes it read.
fn traced(workload: &[&str], peer: impl FnOnce()) -> (Run, u64) {
    let mut program = Traced::workload(workload);
    let pid = program.pid().to_string();
    let agent = Agent::start(["trace", "--stacks", "off", "-p", &pid]);
    // A window before it begins.
    agent.wait_for("a window", |line| line["type"] == "coverage");
    program.go();
    peer();
    let read = program.done(PATIENCE)["bytes"].as_u64().unwrap();
    agent.interrupt();
    let run = agent.finish(PATIENCE);
    run.ended_well("interrupt").lost_nothing();
    (run, read)
}

fn seen(run: &Run, bytes: u64) -> Seen {
    assert_eq!(run.sum("coverage", "/bytes_seen"), bytes, "{}", run.text);
    let coverage: Vec<&Value> = run.of_type("coverage").collect();
    let rss = |line: &Value| line["agent"]["rss_bytes"].as_u64().unwrap();
    let most = coverage[1..].iter().map(|line| rss(line)).max().unwrap();
    let before = rss(coverage[0]);
    assert!(most <= before + GROWTH_MAX, "{most} bytes after {before}");
    let mut anomalies = BTreeMap::new();
    for line in coverage {
        for (what, n) in line["sockets"]["anomalies"].as_object().unwrap() {
            *anomalies.entry(what.clone()).or_default() += n.as_u64().unwrap();
        }
    }
    let rows = run.of_type("connections");
    let rows = rows.flat_map(|line| line["connections"].as_array().unwrap());
    let protocol = rows.last().unwrap()["protocol"].as_str().unwrap();
    (anomalies, protocol.to_owned())
}

/// Bytes without an order.
fn garbage(at: usize) -> u8 {
    let x = (at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 56) as u8
}

/// The request has no answer. What came for one is counted once where it is no message at all.
fn costs(protocol: &str, malformed: bool) -> Seen {
    let mut anomalies = BTreeMap::from([("unanswered".to_owned(), 1)]);
    anomalies.extend(malformed.then(|| ("malformed".to_owned(), 1)));
    (anomalies, protocol.to_owned())
}

#[test]
fn garbage_is_one_malformed_message() {
    let _alone = alone();
    let redis = answered_with(PING, b"\0", garbage);
    let http = answered_with(GET, b"\0", garbage);
    assert_eq!(redis, costs("redis", true));
    assert_eq!(http, costs("http", true));
}

#[test]
fn a_length_of_two_gibibytes_costs_no_memory() {
    let _alone = alone();
    let redis = answered_with(PING, b"$2147483648\r\n", |_| b'x');
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 2147483648\r\n\r\n";
    let http = answered_with(GET, head, |_| b'x');
    assert_eq!(redis, costs("redis", false));
    assert_eq!(http, costs("http", false));
}

/// None of these protocols has messages as long as that.
#[test]
fn a_length_of_two_gibibytes_in_binary_is_one_malformed_message() {
    let _alone = alone();
    let row = [ROW, b"\x7f\xff\xff\xff"].concat();
    let postgresql = answered_with(SELECT, row, |_| b'x');
    let kafka = answered_with(API_VERSIONS, b"\x7f\xff\xff\xff\0\0\0\x01", |_| b'x');
    let op_msg = b"\xff\xff\xff\x7f\x02\0\0\0\x01\0\0\0\xdd\x07\0\0";
    let mongodb = answered_with(MONGO_PING, op_msg, |_| b'x');
    assert_eq!(postgresql, costs("postgresql", true));
    assert_eq!(kafka, costs("kafka", true));
    assert_eq!(mongodb, costs("mongodb", true));
}

#[test]
fn half_a_message_without_end_is_one_malformed_message() {
    let _alone = alone();
    let redis = answered_with(PING, b"+", |_| b'x');
    let http = answered_with(GET, b"HTTP/1.1 200 OK\r\nA: ", |_| b'x');
    assert_eq!(redis, costs("redis", true));
    assert_eq!(http, costs("http", true));
}

/// What is no request needs no answer; the others have none.
#[test]
fn bad_clients_cost_a_server_one_counted_error_each() {
    let _alone = alone();
    const PONG: &[u8] = b"+PONG\r\n";
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    const STORED: &[u8] = b"STORED\r\n";
    let (startup, ready) = (&SELECT[..16], &ROW[..ROW.len() - 1]);
    let versions = b"\0\0\0\x06\0\0\0\x01\0\0";
    let x = |_| b'x';
    let one = |what: &str, protocol: &str| -> Seen {
        (BTreeMap::from([(what.to_owned(), 1)]), protocol.to_owned())
    };
    let malformed = |protocol| one("malformed", protocol);
    let unanswered = |protocol| one("unanswered", protocol);

    let redis = |begin: &[u8], more| asked_with(PING, PONG, begin, more);
    assert_eq!(redis(b"\0", garbage), malformed("redis"));
    let get = b"*2\r\n$3\r\nGET\r\n$2147483648\r\n";
    assert_eq!(redis(get, x), unanswered("redis"));
    assert_eq!(redis(b"GET ", x), malformed("redis"));

    let http = |begin: &[u8], more| asked_with(GET, OK, begin, more);
    assert_eq!(http(b"\0", garbage), malformed("http"));
    let put = b"PUT /b HTTP/1.1\r\nHost: a\r\nContent-Length: 2147483648\r\n\r\n";
    assert_eq!(http(put, x), unanswered("http"));
    assert_eq!(http(b"GET /b HTTP/1.1\r\nA: ", x), malformed("http"));

    let set = b"set k 0 0 1\r\na\r\n";
    let huge = b"set k 0 0 2147483648\r\n";
    let memcached = asked_with(set, STORED, huge, x);
    assert_eq!(memcached, unanswered("memcached"));

    let query = b"Q\x7f\xff\xff\xff";
    let postgresql = asked_with(startup, ready, query, x);
    assert_eq!(postgresql, malformed("postgresql"));
    let request = b"\x7f\xff\xff\xff\0\x12\0\0\0\0\0\x02";
    let kafka = asked_with(API_VERSIONS, versions, request, x);
    assert_eq!(kafka, malformed("kafka"));
}
