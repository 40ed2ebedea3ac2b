//! Tables by which the kernel side walks user stacks.
//!
//! A thread of its own ([`builder`]) reads the mappings of each process ([`mappings`]), opens what
//! is mapped ([`object`]), compiles its unwind information ([`compile`]) and writes rows into the
//! kernel side's maps ([`table`]) as they come: the trace never waits for it, and the agent holds no
//! tables. Objects are built once, whoever maps them.

pub mod builder;
pub mod compile;
pub mod mappings;
pub mod object;
pub mod table;

#[cfg(test)]
mod tests;

pub use builder::{Request, Unwinder};
