//! One program of the gallery under the agent.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::PATIENCE;
use crate::agent;
use crate::rows::row::{Health, Program, Row, Servers, Stage, Worth, run_as};
use crate::traced::{self, Traced};

/// Window and length of a trace. What is found of a sick program is judged by the last window, in which
/// all is known that takes a window to know; memory must grow for some windows before that is steady.
fn windows(worth: Worth) -> (&'static str, &'static str) {
    match worth {
        Worth::Time => ("1500ms", "3s"),
        Worth::Memory => ("1s", "7s"),
    }
}

/// What a program did by its own count, and what was found.
pub struct Measured {
    units: f64,
    /// Nanoseconds of thread time, or bytes kept.
    spent: f64,
    wall_ns: f64,
    /// Of the last window, in their order, and of the windows before.
    pub findings: Vec<Value>,
    pub earlier: Vec<Value>,
}

impl Measured {
    /// What a unit of work takes: nanoseconds of thread time, or bytes for good.
    pub fn per_unit(&self) -> f64 {
        self.spent / self.units
    }

    pub fn units_per_s(&self) -> f64 {
        self.units * 1e9 / self.wall_ns
    }
}

/// Traces the program of a row in the middle of its work.
///
/// # Errors
/// Where what it needs cannot be made ready, or it did nothing.
///
/// # Panics
/// Where the agent or the program do not do their part.
pub fn measure(row: &Row, health: Health, servers: &mut Servers) -> Result<Measured> {
    let mut stage = Stage {
        health,
        command: command(row, health),
        servers,
        props: Vec::new(),
    };
    (row.stage)(&mut stage).with_context(|| format!("making ready for {}", row.name))?;
    let Stage { command, props, .. } = stage;
    let mut program = Traced::start(command, row.name);
    program.go();
    let pid = program.pid().to_string();
    let (window, length) = windows(row.worth);
    let trace = [
        "trace",
        "--interval",
        window,
        "--duration",
        length,
        "-p",
        &pid,
    ];
    let run = agent::run(trace, PATIENCE);
    run.ended_well("duration");
    program.go();
    let done = program.done(PATIENCE);
    drop(program);
    drop(props);
    let figure = |name: &str| {
        let value = done[name].as_f64().filter(|value| *value > 0.0);
        value.with_context(|| format!("{} ({}) has no {name}: {done}", row.name, health.name()))
    };
    let last = run.of_type("coverage").last();
    let last = last.map_or(&Value::Null, |coverage| &coverage["window"]);
    let (findings, earlier) = run
        .of_type("finding")
        .cloned()
        .partition(|finding| finding["window"] == *last);
    Ok(Measured {
        units: figure("units")?,
        spent: match row.worth {
            Worth::Time => figure("busy_ns")?,
            Worth::Memory => figure("kept_bytes")?,
        },
        wall_ns: figure("wall_ns")?,
        findings,
        earlier,
    })
}

fn command(row: &Row, health: Health) -> Command {
    let mut command = match row.program {
        Program::Rust(_) => {
            let mut command = Command::new(traced::program("gallery"));
            command.args(["--work", row.name]);
            command
        }
        Program::Python(script) => {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads");
            let mut command = Command::new("/usr/bin/python3");
            // Leaves no compiled files behind.
            command.arg("-B").arg(folder.join(script));
            command
        }
    };
    command.arg(health.name());
    if row.realtime {
        // SAFETY: a system call, after the fork.
        unsafe { command.pre_exec(|| run_as(libc::SCHED_FIFO, 1)) };
    }
    command
}
