//! `workload NAME [--seconds N] [--dir DIR] [--device DEVICE] [--offset N] [--connect ADDRESS]
//! [--listen ADDRESS] [--now] [--hold] [--quiet] [--realtime]`, see `perf_agent_tests::workloads`.

use std::io;
use std::process::ExitCode;

use perf_agent_tests::workloads::WORKLOADS;
use perf_agent_tests::workloads::clock::Clock;
use perf_agent_tests::workloads::gate::{Gate, Options};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_default();
    let Some((_, workload)) = WORKLOADS.iter().find(|(n, _)| *n == name) else {
        let names: Vec<_> = WORKLOADS.iter().map(|(n, _)| *n).collect();
        return Err(io::Error::other(format!(
            "no workload {name:?}; there are {}",
            names.join(", ")
        )));
    };
    let options = Options::parse(arguments)?;
    options.apply()?;
    // Kept to the end: the kernel patches its switches for the first event of a thread there is, and who opens it
    // sleeps meanwhile (5 to 13 ms at the birth of a thread that measures itself, otherwise).
    let _first = Clock::new()?;
    let gate = Gate::new(&options);
    let done = workload(&options, &gate)?;
    gate.close(&done)
}
