//! perf-agent: an eBPF system tracer that answers "why is this process slow?".
//!
//! One direction: `kernel` → `drain` → `signals` → `aggregate` → `detect` → `sink`. Everything
//! right of `drain` is pure (bytes in, plain data out) and is fed by `replay` as well.

pub mod aggregate;
pub mod cli;
pub mod commands;
pub mod config;
pub mod decode;
pub mod demo;
pub mod detect;
pub mod doctor;
pub mod drain;
pub mod explain;
#[cfg(test)]
mod fixtures;
pub mod hash;
pub mod kernel;
pub mod model;
pub mod profile;
pub mod python;
pub mod replay;
pub mod schema;
pub mod signals;
pub mod sink;
pub mod streams;
pub mod symbolize;
pub mod target;
pub mod trace;
pub mod unwind;
