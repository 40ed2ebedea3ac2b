//! perf-agent: an eBPF system tracer that answers "why is this process slow?".
//!
//! One direction: `kernel` → `drain` → `signals` → `aggregate` → `detect` → `sink`. Everything
//! right of `drain` is pure (bytes in, plain data out) and is fed by `replay` as well.

pub mod cli;
#[cfg(test)]
mod fixtures;
pub mod kernel;
pub mod model;
pub mod schema;
pub mod sink;
