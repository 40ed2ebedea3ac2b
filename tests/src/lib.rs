//! What the tests of the whole program stand on: the workloads they trace, the runner of the agent,
//! and the comparison of its ledger with what a workload measured itself.

pub mod workloads;
