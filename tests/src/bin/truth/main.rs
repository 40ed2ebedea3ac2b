//! A program that knows where its time went.
//!
//! Each of its threads does one thing for a set time (compute, sleep, wait for a mutex, a socket, a
//! pipe, a child, a disk ...) and measures itself how long it was blocked, by the ledger's class.
//! The sum is written as JSON, to be held against what the agent says. Standard library and libc
//! only, so that the same program is built static and run under any kernel.

mod event_loop;
mod phases;

use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use perf_agent_tests::workloads::meter::{self, Account, Meter};

const USAGE: &str = "\
truth [--wait] [--json FILE] [--dir DIR]
  --wait       print `READY <pid>` and begin when a line arrives on standard input
  --json FILE  write the measurements to FILE (default: standard output)
  --dir DIR    where the fsync thread writes its file (default: the current directory)";

struct Options {
    wait: bool,
    json: Option<PathBuf>,
    directory: PathBuf,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.peek().is_some_and(|a| a == phases::NAP_ARGUMENT) {
        return phases::nap_as_a_program();
    }
    match parse(arguments).and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> io::Result<Options> {
    let mut options = Options {
        wait: false,
        json: None,
        directory: PathBuf::from("."),
    };
    let missing = || io::Error::other(format!("a value is missing\n{USAGE}"));
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--wait" => options.wait = true,
            "--json" => options.json = Some(arguments.next().ok_or_else(missing)?.into()),
            "--dir" => options.directory = arguments.next().ok_or_else(missing)?.into(),
            other => return Err(io::Error::other(format!("unknown: {other}\n{USAGE}"))),
        }
    }
    Ok(options)
}

fn run(options: &Options) -> io::Result<()> {
    let mut meter = Meter::new()?;
    if options.wait {
        println!("READY {}", std::process::id());
        io::stdout().flush()?;
        let line = || io::stdin().lock().read_line(&mut String::new());
        meter.restart_behind(|| line().map(drop))?;
    } else {
        // Whoever started the program ran in this thread before it did.
        meter.restart()?;
    }
    let mut accounts = phases::run_all(&mut meter, &options.directory)?;
    accounts.push(meter.finish("truth")?);
    report(options, &accounts)
}

fn report(options: &Options, accounts: &[Account]) -> io::Result<()> {
    let json = meter::to_json(accounts);
    match &options.json {
        Some(path) => std::fs::write(path, json),
        None => io::stdout().write_all(json.as_bytes()),
    }
}
