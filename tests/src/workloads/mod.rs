//! The programs the tests and the benchmarks trace, one file each, run as `workload NAME`.
//!
//! Each prints `READY <pid>`, waits for a line on standard input, does its work and prints `DONE`
//! with a JSON object that says what it did. With `--hold` it then waits for a second line, so
//! that it can be looked at when its work is over.

pub mod churn;
pub mod clock;
pub mod cpu;
pub mod errors;
pub mod event_loop;
pub mod faults;
pub mod forker;
pub mod fresh_pages;
pub mod fsyncs;
pub mod gate;
pub mod held_locks;
pub mod http_requests;
pub mod http_server;
pub mod jit;
pub mod lockfight;
pub mod lossy_network;
pub mod many_locks;
pub mod measured;
pub mod memory;
pub mod meter;
pub mod migrate;
pub mod paced_calls;
pub mod queued_writes;
pub mod reader;
pub mod runq;
pub mod shortlived_thread;
pub mod sleep_poll;
pub mod sleeper;
pub mod syscall_fixed;
pub mod tcp_client;
pub mod tinywrites;

use std::io;

use gate::{Gate, Options};

/// A workload: waits at the gate, works, and returns what it did as a JSON object.
pub type Workload = fn(&Options, &Gate) -> io::Result<String>;

/// Every workload by name.
pub const WORKLOADS: &[(&str, Workload)] = &[
    ("allocations", memory::allocations),
    ("churn", churn::run),
    ("cpu", cpu::run),
    ("errors", errors::run),
    ("event-loop", event_loop::run),
    ("event-loop-ticks", event_loop::run_with_ticks),
    ("faults", faults::run),
    ("forker", forker::run),
    ("fresh-pages", fresh_pages::run),
    ("fsyncs", fsyncs::run),
    ("held-locks", held_locks::run),
    ("http-requests", http_requests::run),
    ("chatty-server", http_server::chatty::run),
    ("http-server-all", http_server::all::run),
    ("http-server-pool", http_server::pool::run),
    ("http-server-threads", http_server::threads::run),
    ("jit", jit::run),
    ("jit-private-tmp", jit::run_in_private_tmp),
    ("lockfight", lockfight::run),
    ("lossy-network", lossy_network::run),
    ("memory-grows", memory::grow),
    ("memory-steady", memory::steady),
    ("many-locks", many_locks::run),
    ("migrate", migrate::run),
    ("paced-calls", paced_calls::run),
    ("queued-writes", queued_writes::run),
    ("reader", reader::read),
    ("runq", runq::run),
    ("shortlived-thread", shortlived_thread::run),
    ("sink", reader::sink),
    ("sleep-poll", sleep_poll::run),
    ("sleeper", sleeper::run),
    ("subscriber", event_loop::subscribe),
    ("syscall-fixed", syscall_fixed::run),
    ("tcp-client", tcp_client::run),
    ("tinywrites", tinywrites::run),
];
