//! Reads each signal's raw bytes into plain data: one file a signal, pure.

pub mod histograms;
pub mod latency;
pub mod ledger;
pub mod records;
