//! A client and its server, which speak Redis, in a network namespace of their own: its loopback loses
//! every [`LOST_OF`]th segment with data, or (`--connect slow`) becomes as slow as a full line. Tells what
//! the kernel counted there.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use super::gate::{Gate, Options, check, join, thread};

/// Requests on the path that loses, and one of how many segments it loses.
const REQUESTS: usize = 300;
const LOST_OF: usize = 50;
/// Requests before and behind the moment from which the path is slow.
const QUICK: usize = 5;
const SLOW: usize = 25;
/// At a megabit a second it takes 80 ms.
const BYTES: usize = 10_000;
const EACH: Duration = Duration::from_millis(3);

pub fn run(options: &Options, gate: &Gate) -> io::Result<String> {
    // SAFETY: takes no pointers; the process has one thread.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    // With an ordinary line's MTU, or a segment would be larger than what a line's queue takes.
    tool("ip", &["link", "set", "lo", "mtu", "1500", "up"])?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    client.set_nodelay(true)?;
    let (server, _) = listener.accept()?;
    server.set_nodelay(true)?;
    let slow = options.connect.as_deref() == Some("slow");
    if !slow {
        lose()?;
    }
    let serving = thread("answers", move || serve(&server))?;
    gate.open()?;
    let done = if slow {
        ask_slowly(&mut client)?
    } else {
        for _ in 0..REQUESTS {
            ask(&mut client, 1)?;
        }
        format!("{{\"retransmits\":{}}}", retransmits()?)
    };
    // No segment is lost after what was told: the rest carries no data.
    drop(client);
    join(serving)??;
    drop(listener);
    Ok(done)
}

/// The round trip by the kernel, after each answer on the slow path: the mean, and the least.
fn ask_slowly(client: &mut TcpStream) -> io::Result<String> {
    let (mut sum_us, mut least_us) = (0, u32::MAX);
    for i in 0..QUICK + SLOW {
        if i == QUICK {
            let line = ["rate", "1mbit", "burst", "2kb", "latency", "2s"];
            let words = ["qdisc", "add", "dev", "lo", "root", "tbf"];
            tool("tc", &[&words[..], &line].concat())?;
        }
        // The agent looks once a millisecond.
        sleep(EACH);
        ask(client, BYTES)?;
        let round_trip_us = round_trip_us(client)?;
        sum_us += u64::from(round_trip_us);
        least_us = least_us.min(round_trip_us);
    }
    let mean_us = sum_us / (QUICK + SLOW) as u64;
    Ok(format!("{{\"mean_us\":{mean_us},\"least_us\":{least_us}}}"))
}

fn ask(client: &mut TcpStream, bytes: usize) -> io::Result<()> {
    let value = "x".repeat(bytes);
    client.write_all(format!("*2\r\n$4\r\nECHO\r\n${bytes}\r\n{value}\r\n").as_bytes())?;
    let mut answer = [0; 5];
    client.read_exact(&mut answer)?;
    match &answer {
        b"+OK\r\n" => Ok(()),
        other => Err(io::Error::other(format!("{other:?}"))),
    }
}

/// Answers what [`ask`] sends, to the connection's end.
fn serve(connection: &TcpStream) -> io::Result<()> {
    let (mut from, mut to) = (BufReader::new(connection), connection);
    let mut line = String::new();
    loop {
        // `*2`, `$4`, `ECHO`, the length, the value.
        for _ in 0..5 {
            line.clear();
            if from.read_line(&mut line)? == 0 {
                return Ok(());
            }
        }
        to.write_all(b"+OK\r\n")?;
    }
}

/// Loses segments that carry data, whoever sends them.
fn lose() -> io::Result<()> {
    let rules = format!(
        "table inet loses {{ chain arriving {{ type filter hook input priority 0; \
         tcp flags & psh == psh numgen inc mod {LOST_OF} == 0 drop; }}; }}"
    );
    tool("nft", &[&rules])
}

fn tool(program: &str, arguments: &[&str]) -> io::Result<()> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let status = command.status()?;
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("{command:?}: {status}")))
    }
}

/// Segments of TCP that were sent again in this namespace (`RetransSegs` of proc_net_snmp).
fn retransmits() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/net/snmp")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next(), lines.next());
    let pairs = names.into_iter().flat_map(|n| n.split(' '));
    let mut pairs = pairs.zip(values.into_iter().flat_map(|v| v.split(' ')));
    let found = pairs.find(|(name, _)| *name == "RetransSegs");
    let found = found.and_then(|(_, value)| value.parse().ok());
    found.ok_or_else(|| io::Error::other("no RetransSegs"))
}

/// The smoothed round trip of a connection (`tcpi_rtt` of tcp(7)).
fn round_trip_us(connection: &TcpStream) -> io::Result<u32> {
    // SAFETY: integers alone, for which 0 is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: a buffer of that length; the call writes no more.
    check(unsafe {
        libc::getsockopt(
            connection.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    })?;
    Ok(info.tcpi_rtt)
}
