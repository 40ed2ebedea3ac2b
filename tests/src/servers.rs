//! Real servers with real load, on loopback ports and directories of their own.

use std::collections::BTreeMap;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::PATIENCE;

mod grpc;
mod kafka;
mod mariadb;
mod memcached;
mod nginx;

pub use grpc::{Calls, GrpcServer};
pub use kafka::{kafka, kafka_client, kafka_on_a_store};
pub use mariadb::Mariadb;
pub use memcached::{memcached, memcached_load};
pub use nginx::{Logged, Nginx};

/// A server or a load, ended when dropped.
pub struct Running {
    child: Child,
    name: &'static str,
    /// Removed after the process has ended.
    _directory: Option<TempDir>,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it is still there.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.runs() {
            // A fast shutdown for PostgreSQL, and ends Redis and the loads. MariaDB does not listen to it.
            let signal = match self.name {
                "mariadbd" => libc::SIGTERM,
                _ => libc::SIGINT,
            };
            // SAFETY: a child that has not been waited for, so the id is still its own.
            unsafe { libc::kill(self.child.id() as i32, signal) };
        }
        let deadline = Instant::now() + PATIENCE;
        while self.runs() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        if self.runs() {
            eprintln!("{} had to be killed", self.name);
            // Fails only where it has ended meanwhile.
            _ = self.child.kill();
        }
        _ = self.child.wait();
    }
}

/// Runs a command that is to succeed.
fn must(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
}

fn spawn(mut command: Command, name: &'static str, directory: Option<TempDir>) -> Running {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    Running {
        child,
        name,
        _directory: directory,
    }
}

/// Waits until something is so.
///
/// # Panics
/// Where it does not come to be.
pub fn until(what: &str, mut ready: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !ready() {
        assert!(Instant::now() < deadline, "{what} is not ready");
        thread::sleep(Duration::from_millis(20));
    }
}

fn directory() -> TempDir {
    tempfile::tempdir().unwrap_or_else(|e| panic!("a directory: {e}"))
}

/// A port nobody listens on now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
    listener.unwrap_or_else(|e| panic!("a port: {e}")).port()
}

/// A Redis server that keeps nothing, and its port.
pub fn redis() -> (Running, u16) {
    let (directory, port) = (directory(), free_port());
    let mut command = Command::new("redis-server");
    command
        .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .args(["--port", &port.to_string(), "--dir"])
        .arg(directory.path());
    let server = spawn(command, "redis-server", Some(directory));
    until("redis-server", || {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    (server, port)
}

/// `redis-benchmark` with so many commands of a kind, to its end, with `SET` and `GET` in pipelines of
/// `depth`. Its keys are of one pattern.
pub fn redis_benchmark(port: u16, commands: u32, depth: u32) -> Command {
    let mut command = Command::new("redis-benchmark");
    command
        .args(["-p", &port.to_string(), "-c", "16", "-r", "1000"])
        .args(["-P", &depth.to_string(), "-n", &commands.to_string()])
        .args(["-t", "set,get", "-q"])
        .stdout(Stdio::null());
    command
}

/// The server's own count of calls by command (`INFO commandstats`), and its keyspace hits and misses.
pub fn redis_counts(port: u16) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for line in redis_info(port).lines() {
        let line = line.trim();
        if let Some(rest) = line.strip_prefix("cmdstat_")
            && let Some((name, rest)) = rest.split_once(":calls=")
        {
            let calls = rest.split(',').next().and_then(|n| n.parse().ok());
            counts.insert(name.to_owned(), calls.unwrap_or(0));
        }
        if let Some((name, value)) = line.split_once(':')
            && name.starts_with("keyspace_")
        {
            counts.insert(name.to_owned(), value.parse().unwrap_or(0));
        }
    }
    counts
}

fn redis_info(port: u16) -> String {
    let mut command = Command::new("redis-cli");
    command.args(["-p", &port.to_string(), "INFO", "everything"]);
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// States of a TCP socket: include/net/tcp_states.h.
const ESTABLISHED: u8 = 1;
const CLOSE_WAIT: u8 = 8;

/// A TCP socket over IPv4, as `/proc/net/tcp` has it.
pub struct TcpSocket {
    pub port: u16,
    pub peer_port: u16,
    pub state: u8,
    /// Received and not read by the program, bytes.
    pub unread: u32,
}

/// Those of this network namespace.
///
/// # Panics
/// Where the table cannot be read.
pub fn tcp_sockets() -> Vec<TcpSocket> {
    let table = read("/proc/net/tcp");
    let sockets = table.lines().skip(1).map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let last = |word: &str| u32::from_str_radix(word.rsplit(':').next()?, 16).ok();
        Some(TcpSocket {
            port: last(words.get(1)?)? as u16,
            peer_port: last(words.get(2)?)? as u16,
            state: last(words.get(3)?)? as u8,
            unread: last(words.get(4)?)?,
        })
    });
    let sockets: Option<Vec<TcpSocket>> = sockets.collect();
    sockets.unwrap_or_else(|| panic!("not a table of TCP sockets: {table}"))
}

/// Starts a load, which ends when dropped.
pub fn start(command: Command, name: &'static str) -> Running {
    spawn(command, name, None)
}

/// Waits until the first thread of a process sleeps: a peer that has an answer may have it before the call
/// that sends it has ended, which is when the agent hears of it.
///
/// # Panics
/// Where it does not.
pub fn until_it_sleeps(pid: u32) {
    until("a rest", || {
        let stat = read(format!("/proc/{pid}/task/{pid}/stat"));
        let state = stat
            .rsplit_once(") ")
            .map(|(_, fields)| fields.as_bytes()[0]);
        state == Some(b'S')
    });
}

/// Runs a command to its end.
///
/// # Panics
/// Where it fails.
pub fn to_end(mut command: Command) {
    must(&mut command);
}

/// The distribution's Python at work in three threads, for two minutes at most.
pub fn python() -> (Running, TempDir) {
    const SCRIPT: &str = "\
import json, threading, time
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
def work():
    while True:
        fib(15)
        json.dumps({'a': list(range(200))})
        time.sleep(0.002)
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
print(flush=True)
time.sleep(120)
";
    let directory = directory();
    let ready = directory.path().join("ready");
    let out = std::fs::File::create(&ready).unwrap_or_else(|e| panic!("a file: {e}"));
    let mut command = Command::new("/usr/bin/python3");
    command
        .args(["-c", SCRIPT])
        .stdin(Stdio::null())
        .stdout(out);
    let child = command
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let server = Running {
        child,
        name: "python3",
        _directory: None,
    };
    until("python3", || !read_bytes(&ready).is_empty());
    (server, directory)
}

/// The distribution's Python, with the packages that `cargo xtask test` installed.
///
/// # Panics
/// Where they are not there.
pub fn python_with_packages() -> Command {
    let packages = packages();
    let mut command = Command::new("/usr/bin/python3");
    command.env("PYTHONPATH", packages);
    command
}

/// Where `cargo xtask test` installs packages of Python.
fn packages() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
        PathBuf::from,
    );
    let packages = target.join("python");
    assert!(
        packages.is_dir(),
        "no packages in {}: `cargo xtask test` installs them",
        packages.display()
    );
    packages
}

fn read_bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_default()
}

const REDIS_CONNECTIONS: usize = 20;

/// `SET` by 20 connections, until dropped. They are there when this returns.
pub fn redis_load(port: u16) -> Running {
    let mut command = Command::new("redis-benchmark");
    command
        .args(["-p", &port.to_string(), "-P", "1", "-c"])
        .arg(REDIS_CONNECTIONS.to_string())
        .args(["-t", "set", "-n", "100000000", "-q"]);
    let load = spawn(command, "redis-benchmark", None);
    until("redis-benchmark", || connections(port) >= REDIS_CONNECTIONS);
    load
}

/// Established TCP connections to a port of this machine.
fn connections(port: u16) -> usize {
    let to = |socket: &&TcpSocket| socket.port == port && socket.state == ESTABLISHED;
    tcp_sockets().iter().filter(to).count()
}

/// A PostgreSQL cluster with pgbench's tables, on a Unix socket only.
pub struct Postgres {
    pub server: Running,
    binaries: PathBuf,
    sockets: PathBuf,
    user: (u32, u32),
}

const PORT: &str = "54329";
const PG_CONNECTIONS: usize = 4;

impl Postgres {
    /// Makes the cluster and starts it, as the user postgres: it refuses root.
    pub fn start() -> Self {
        Self::start_with(false)
    }

    /// One that speaks TLS, with a certificate of its own, on a loopback port.
    pub fn start_tls() -> Self {
        Self::start_with(true)
    }

    fn start_with(tls: bool) -> Self {
        let binaries = postgres_binaries();
        let user = user_ids("postgres");
        let directory = directory();
        let (data, sockets) = (directory.path().join("data"), directory.path().to_owned());
        chown(&sockets, Some(user.0), Some(user.1)).unwrap_or_else(|e| panic!("chown: {e}"));
        let command = |program: &str| {
            let mut command = Command::new(binaries.join(program));
            command.uid(user.0).gid(user.1).current_dir(&sockets);
            command
        };
        must(
            command("initdb")
                .args(["-A", "trust", "-U", "postgres", "--no-sync", "-D"])
                .arg(&data),
        );
        let mut server = command("postgres");
        server.arg("-D").arg(&data).arg("-k").arg(&sockets);
        if tls {
            let mut openssl = Command::new("openssl");
            certificate(openssl.uid(user.0).gid(user.1), &data);
            server.args([
                "-p",
                PORT,
                "-c",
                "listen_addresses=127.0.0.1",
                "-c",
                "ssl=on",
            ]);
        } else {
            server.args(["-p", PORT, "-c", "listen_addresses="]);
        }
        let server = spawn(server, "postgres", Some(directory));
        until("postgres", || {
            let mut probe = command("pg_isready");
            probe.args(["-q", "-p", PORT, "-h"]).arg(&sockets);
            probe.status().is_ok_and(|status| status.success())
        });
        let postgres = Postgres {
            server,
            binaries: binaries.clone(),
            sockets: sockets.clone(),
            user,
        };
        must(postgres.pgbench().args(["-i", "-q", "-s", "2", "postgres"]));
        postgres
    }

    /// The socket it listens on.
    pub fn socket(&self) -> PathBuf {
        self.sockets.join(format!(".s.PGSQL.{PORT}"))
    }

    /// pgbench's own log of a run: latency of every transaction, in microseconds.
    ///
    /// # Panics
    /// Where it cannot be read.
    pub fn latencies_us(&self, prefix: &str) -> Vec<u64> {
        let log = self.log_us(prefix).into_iter();
        log.map(|(_, took_us)| took_us).collect()
    }

    /// pgbench's own log of a run: when each transaction ended, by the clock on the wall, and how long it took,
    /// in microseconds.
    ///
    /// # Panics
    /// Where it cannot be read.
    pub fn log_us(&self, prefix: &str) -> Vec<(u64, u64)> {
        let files = std::fs::read_dir(&self.sockets).unwrap_or_else(|e| panic!("{e}"));
        let logs = files.flatten().filter(|f| {
            let name = f.file_name();
            let name = name.to_string_lossy();
            name.starts_with(prefix) && !name.ends_with(".sql")
        });
        // client, transaction, latency, script, seconds and microseconds at its end.
        let transaction = |line: &str| -> Option<(u64, u64)> {
            let words: Vec<&str> = line.split(' ').collect();
            let number = |at: usize| words.get(at)?.parse::<u64>().ok();
            Some((number(4)? * 1_000_000 + number(5)?, number(2)?))
        };
        logs.flat_map(|log| {
            let text = read(log.path());
            let transactions = text.lines().filter_map(transaction);
            transactions.collect::<Vec<_>>()
        })
        .collect()
    }

    /// `clients` connections that make `transactions` each of `script` in a protocol mode, with a log.
    pub fn transactions(
        &self,
        mode: &str,
        script: &str,
        (clients, transactions): (u32, u32),
        log: &str,
    ) -> Command {
        let file = self.sockets.join(format!("{log}.sql"));
        std::fs::write(&file, script).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let mut command = self.pgbench();
        command
            .args(["-n", "-M", mode, "-c", &clients.to_string()])
            .args(["-t", &transactions.to_string(), "-l", "--log-prefix", log])
            .arg("-f")
            .arg(file)
            .arg("postgres")
            .stdout(Stdio::null());
        command
    }

    /// As [`Postgres::transactions`], over TLS.
    pub fn transactions_over_tls(
        &self,
        mode: &str,
        script: &str,
        load: (u32, u32),
        log: &str,
    ) -> Command {
        let mut command = self.transactions(mode, script, load, log);
        command
            .args(["-h", "127.0.0.1"])
            // Not the keys of the user who runs the test.
            .env("HOME", &self.sockets)
            .env("PGSSLMODE", "require");
        command
    }

    pub fn pgbench(&self) -> Command {
        let mut command = Command::new(self.binaries.join("pgbench"));
        command
            .args(["-p", PORT, "-U", "postgres", "-h"])
            .arg(&self.sockets)
            .uid(self.user.0)
            .gid(self.user.1)
            .current_dir(&self.sockets);
        command
    }

    /// TPC-B by 4 connections, until dropped. Their backends are there when this returns.
    pub fn load(&self) -> Running {
        let mut command = self.pgbench();
        command.arg("-c").arg(PG_CONNECTIONS.to_string());
        command.args(["-T", "120", "-n", "postgres"]);
        let load = spawn(command, "pgbench", None);
        until("pgbench", || self.backends() >= PG_CONNECTIONS);
        load
    }

    /// Children of the server that serve a connection.
    fn backends(&self) -> usize {
        let pid = self.server.pid();
        read(format!("/proc/{pid}/task/{pid}/children"))
            .split_whitespace()
            .filter_map(|child| std::fs::read_to_string(format!("/proc/{child}/cmdline")).ok())
            .filter(|title| title.contains("[local]"))
            .count()
    }
}

/// Makes `server.key` and `server.crt`, which it signs itself, by a command that runs `openssl`.
fn certificate(openssl: &mut Command, directory: &Path) {
    openssl.current_dir(directory).args(["req", "-x509"]);
    openssl.args(["-newkey", "rsa:2048", "-nodes", "-days", "2"]);
    openssl.args(["-subj", "/CN=localhost", "-keyout", "server.key"]);
    must(openssl.args(["-out", "server.crt"]));
}

/// Debian keeps them out of PATH, by version; the newest is taken.
fn postgres_binaries() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let newest = versions
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse::<u32>().ok()?;
            let binaries = entry.path().join("bin");
            binaries
                .join("postgres")
                .is_file()
                .then_some((version, binaries))
        })
        .max();
    match newest {
        Some((_, path)) => path,
        None => which("postgres"),
    }
}

fn which(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .find(|directory| directory.join(program).is_file())
        .unwrap_or_else(|| panic!("{program} is not installed"))
}

/// User and group id by name.
fn user_ids(name: &str) -> (u32, u32) {
    let passwd = read("/etc/passwd");
    let ids = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(name) {
            return None;
        }
        let mut numbers = fields.skip(1).map_while(|field| field.parse().ok());
        Some((numbers.next()?, numbers.next()?))
    });
    ids.unwrap_or_else(|| panic!("there is no user {name}"))
}

fn read(path: impl AsRef<Path>) -> String {
    let text: io::Result<String> = std::fs::read_to_string(&path);
    text.unwrap_or_else(|e| panic!("{}: {e}", path.as_ref().display()))
}
