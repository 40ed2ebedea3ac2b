//! The gallery: small programs, each with one kind of trouble, and their healthy twins, which do the
//! same work as it is done right. `cargo xtask gallery` runs them under the agent and prints what it
//! found of each, beside what the twin really gains.
//!
//! A row is a file with a `ROW` and one line in [`ROWS`]. Its program does units of work as they fall
//! due ([`shift`]) and counts the time they took by its own clock: that is the truth findings are held
//! to. A sick program cannot keep up or hardly can; its twin has time to spare, and nothing is wrong
//! with it.

pub mod postgres;
pub mod redis;
pub mod row;
pub mod shift;

mod accelerator_wait;
mod connection_per_query;
mod cpu_quota;
mod cpu_regex;
mod dns_stall;
mod error_storm;
mod fsync_per_record;
mod gil_contention;
mod idle_in_transaction;
mod lock_convoy;
mod low_hit_ratio;
mod major_faults;
mod memory_growth;
mod missing_index;
mod n_plus_one;
mod pool_too_small;
mod sleep_poll;
mod tiny_writes;

use row::Row;

/// Every row, in the order of the table.
pub const ROWS: &[Row] = &[
    lock_convoy::ROW,
    n_plus_one::ROW,
    missing_index::ROW,
    idle_in_transaction::ROW,
    connection_per_query::ROW,
    pool_too_small::ROW,
    low_hit_ratio::ROW,
    tiny_writes::ROW,
    fsync_per_record::ROW,
    dns_stall::ROW,
    cpu_regex::ROW,
    cpu_quota::ROW,
    major_faults::ROW,
    memory_growth::ROW,
    sleep_poll::ROW,
    error_storm::ROW,
    gil_contention::ROW,
    accelerator_wait::ROW,
];
