//! Decoders against the counts of real servers, by a proxy between a server and its load.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;

use perf_agent::decode::Protocol;
use perf_agent_tests::proxy::Proxy;
use perf_agent_tests::servers;

/// Sends everything, then reads all answers; the last command makes the server close.
fn talk(port: u16, sent: &[u8]) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(sent).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    _ = stream.shutdown(Shutdown::Both);
    String::from_utf8_lossy(&answer).into_owned()
}

/// `name:value` or `STAT name value` lines.
fn figures(text: &str, separator: char) -> BTreeMap<String, String> {
    let lines = text.lines().map(|l| l.trim_start_matches("STAT "));
    let pairs = lines.filter_map(|l| l.split_once(separator));
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// Commands by name, as the server counts them; refused ones with the executed.
fn command_stats(port: u16) -> BTreeMap<String, u64> {
    let text = talk(port, b"INFO commandstats\r\nQUIT\r\n");
    let calls = figures(&text, ':').into_iter().filter_map(|(name, value)| {
        let name = name
            .strip_prefix("cmdstat_")?
            .to_uppercase()
            .replace('|', " ");
        let field = |field: &str| {
            let at = value.split(',').find_map(|f| f.strip_prefix(field));
            at.and_then(|n| n.parse::<u64>().ok())
        };
        Some((name, field("calls=")? + field("rejected_calls=")?))
    });
    let ours = ["INFO", "QUIT", "CONFIG RESETSTAT"];
    calls
        .filter(|(name, _)| !ours.contains(&name.as_str()))
        .collect()
}

/// Commands by name without their keys: capitals only.
fn by_command(proxy: &Proxy) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for (text, [count, ..]) in proxy.counts() {
        let capital = |w: &&str| w.chars().all(|c| c.is_ascii_uppercase() || c == '-');
        let name: Vec<&str> = text.split(' ').take_while(capital).collect();
        *counts.entry(name.join(" ")).or_default() += count;
    }
    counts.remove("QUIT");
    counts
}

fn lookups(proxy: &Proxy) -> [u64; 2] {
    let counts = proxy.counts().into_iter();
    counts.fold([0; 2], |sum, (_, [_, _, hits, misses])| {
        [sum[0] + hits, sum[1] + misses]
    })
}

fn everything_was_decoded(proxy: &Proxy) {
    let (decoded, seen) = proxy.decoded();
    assert_eq!(decoded, seen, "bytes decoded and seen");
}

#[test]
fn redis_commands_of_every_depth_of_pipeline_are_those_the_server_counts() {
    for depth in ["1", "16", "100"] {
        let (_server, port) = servers::redis();
        let proxy = Proxy::start(Protocol::Redis, port);
        talk(port, b"CONFIG RESETSTAT\r\nQUIT\r\n");
        let load = Command::new("redis-benchmark")
            .args([
                "-p",
                &proxy.port.to_string(),
                "-P",
                depth,
                "-c",
                "8",
                "-r",
                "1000",
            ])
            .args(["-n", "4000", "-q", "-d", "300", "-t"])
            .arg("ping,set,get,incr,lpush,lpop,sadd,hset,spop,zadd,zpopmin,lrange_100,mset")
            .output()
            .unwrap();
        assert!(load.status.success(), "{load:?}");
        assert_eq!(by_command(&proxy), command_stats(port), "-P {depth}");
        everything_was_decoded(&proxy);
    }
}

/// Each on keys that are there, that are not, and that hold another type.
const LOOKUPS: &str = "GET KEY\nGETRANGE KEY 0 -1\nGETEX KEY\nMGET KEY no KEY\nSTRLEN KEY\nTTL KEY\n\
    PTTL KEY\nEXPIRETIME KEY\nTYPE KEY\nDUMP KEY\nEXISTS KEY no KEY\nTOUCH KEY no\nHGETALL KEY\n\
    HKEYS KEY\nHVALS KEY\nHLEN KEY\nHGET KEY f\nHMGET KEY f g\nHEXISTS KEY f\nHSTRLEN KEY f\n\
    LRANGE KEY 0 -1\nLLEN KEY\nLINDEX KEY 0\nSMEMBERS KEY\nSCARD KEY\nSISMEMBER KEY m\n\
    SRANDMEMBER KEY\nZRANGE KEY 0 -1\nZREVRANGE KEY 0 -1\nZRANGEBYSCORE KEY -inf +inf\nZCARD KEY\n\
    ZCOUNT KEY -inf +inf\nZSCORE KEY m\nZRANK KEY m\nZREVRANK KEY m\nXLEN KEY\nXRANGE KEY - +\n\
    GETSET other v\nGETDEL other\nGETDEL other\nSET KEY2 v\nINCR count\nAPPEND text x\n\
    HSET hash2 f v\nLPUSH list2 a\nSADD set2 a\nZADD zset2 1 a\nPERSIST count\nDEL count\n";

#[test]
fn redis_hits_and_misses_are_those_the_server_counts() {
    let (_server, port) = servers::redis();
    let setup = "SET string v\nHSET hash f v g w\nRPUSH list a b\nSADD set m n\nZADD zset 1 m\n\
        XADD stream * a b\nSET gone v PX 1\nQUIT\n";
    talk(port, setup.as_bytes());
    for version in ["", "HELLO 3\n"] {
        for line in LOOKUPS.lines() {
            for key in ["string", "hash", "list", "set", "zset", "stream", "none"] {
                let proxy = Proxy::start(Protocol::Redis, port);
                talk(port, b"CONFIG RESETSTAT\r\nQUIT\r\n");
                let line = line.replace("KEY", key);
                talk(proxy.port, format!("{version}{line}\nQUIT\n").as_bytes());
                let stats = figures(&talk(port, b"INFO stats\r\nQUIT\r\n"), ':');
                let [hits, misses] = lookups(&proxy);
                // A key of the wrong type was found all the same; its answer is an error, or null.
                let null = line.starts_with("MGET") && !["string", "none"].contains(&key);
                if null
                    || proxy
                        .counts()
                        .iter()
                        .any(|(_, [_, errors, ..])| *errors > 0)
                {
                    continue;
                }
                let server = (&stats["keyspace_hits"], &stats["keyspace_misses"]);
                let ours = (&hits.to_string(), &misses.to_string());
                assert_eq!(ours, server, "{line}");
            }
        }
    }
}

#[test]
fn redis_transactions_and_unanswered_commands_are_those_the_server_counts() {
    let (_server, port) = servers::redis();
    let proxy = Proxy::start(Protocol::Redis, port);
    talk(port, b"CONFIG RESETSTAT\r\nQUIT\r\n");
    let sent = "SET a 1\nMULTI\nGET a\nINCR a\nLPUSH a x\nEXEC\nMULTI\nGET a\nDISCARD\nMULTI\n\
        GET a\nGET\nEXEC\nWATCH a\nSET a 2\nMULTI\nGET a\nEXEC\nMULTI\nEXEC\nCLIENT REPLY OFF\n\
        GET a\nSET b 1\nCLIENT REPLY ON\nCLIENT REPLY SKIP\nGET b\nGET b\nSUBSCRIBE x y z\n\
        PSUBSCRIBE p* q*\nPING\nUNSUBSCRIBE\nPUNSUBSCRIBE p*\nPUNSUBSCRIBE\nUNSUBSCRIBE\n\
        HELLO 3\nSUBSCRIBE x y\nGET b\nUNSUBSCRIBE\nEVAL return{1,{2,{3}}} 0\nCOMMAND\n\
        XADD s 1-1 f v\nXREAD COUNT 1 STREAMS s 0\nCLIENT LIST\nRESET\nQUIT\n";
    talk(proxy.port, sent.as_bytes());
    assert_eq!(by_command(&proxy), command_stats(port));
    everything_was_decoded(&proxy);
}

/// Lookups as memcached counts them, those that touch with the others.
fn memcached_lookups(port: u16) -> [u64; 2] {
    let stats = figures(&talk(port, b"stats\r\nquit\r\n"), ' ');
    let of = |name: &str| stats[name].parse::<u64>().unwrap();
    [
        of("get_hits") + of("touch_hits"),
        of("get_misses") + of("touch_misses"),
    ]
}

/// A message of the binary protocol.
fn binary(opcode: u8, opaque: u32, extras: &[u8], key: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0x80, opcode];
    bytes.extend((key.len() as u16).to_be_bytes());
    bytes.extend([extras.len() as u8, 0, 0, 0]);
    bytes.extend(((extras.len() + key.len() + value.len()) as u32).to_be_bytes());
    bytes.extend(opaque.to_be_bytes());
    bytes.extend([0; 8]);
    bytes.extend([extras, key.as_bytes(), value.as_bytes()].concat());
    bytes
}

#[test]
fn memcached_hits_and_misses_are_those_the_server_counts() {
    let (_server, port) = servers::memcached();
    let text = "set a 0 0 3\r\nabc\r\nget a\r\nget a b a c\r\ngets b\r\nadd a 0 0 1 noreply\r\n\
        x\r\nadd b 0 0 1\r\nx\r\nreplace c 0 0 1\r\nx\r\nincr a 1\r\ngat 0 a z\r\ngats 0 z\r\ndelete b\r\n\
        delete b noreply\r\nflush\r\nverbosity 1\r\nversion\r\nstats\r\nstats items\r\nstats slabs\r\n\
        set big 0 0 2000000\r\nBIG\r\ncas a 0 0 1 5\r\nx\r\nget a b\r\nquit\r\n";
    let text = text.replace("BIG", &"x".repeat(2_000_000));
    let meta = "ms m 2\r\nhi\r\nmg m v\r\nmg m\r\nmg n v\r\nmg n v q k\r\nmg m v q k\r\nmg n q O1\r\n\
        mg m v q O2\r\nmg m s q\r\nmn\r\nmd m q\r\nmd m q\r\nma c N0\r\nma c q\r\nms e 1 ME\r\nx\r\n\
        ms m 1 q\r\nx\r\nmg m t T10\r\nmg x T10\r\nme m\r\nme x\r\nmn\r\nquit\r\n";
    let (set, touch) = ([0u8; 8], [0u8; 4]);
    let binary = [
        binary(0x01, 1, &set, "bin", "value"),
        binary(0x11, 2, &set, "binq", "value"),
        binary(0x00, 3, &[], "bin", ""),
        binary(0x00, 4, &[], "none", ""),
        binary(0x09, 5, &[], "none", ""),
        binary(0x0d, 6, &[], "binq", ""),
        binary(0x0d, 7, &[], "none", ""),
        binary(0x1d, 8, &touch, "bin", ""),
        binary(0x1e, 9, &touch, "none", ""),
        binary(0x0a, 10, &[], "", ""),
        binary(0x10, 11, &[], "", ""),
        binary(0x14, 12, &[], "bin", ""),
        binary(0x04, 13, &[], "bin", ""),
        binary(0x0b, 14, &[], "", ""),
        binary(0x07, 15, &[], "", ""),
    ]
    .concat();
    for (what, sent) in [
        ("text", text.into_bytes()),
        ("meta", meta.into()),
        ("binary", binary),
    ] {
        let proxy = Proxy::start(Protocol::Memcached, port);
        let before = memcached_lookups(port);
        let answer = talk(proxy.port, &sent);
        let after = memcached_lookups(port);
        let server = [after[0] - before[0], after[1] - before[1]];
        assert_eq!(
            lookups(&proxy),
            server,
            "{what}: {:?} {answer}",
            proxy.counts()
        );
        everything_was_decoded(&proxy);
    }
}
