//! What a row of the gallery is made of.

use std::any::Any;
use std::io;
use std::path::PathBuf;
use std::process::Command;

use super::postgres::Client;
use crate::servers::{self, Postgres, Running};
use crate::traced;

/// Findings for those who run the host and the program.
pub const ENGINEER: &str = "performance-engineer";
/// Findings for those who run the database.
pub const DATABASE: &str = "database-specialist";

/// Findings for those who run the training.
pub const ORCHESTRATOR: &str = "ml-orchestrator";

/// What a fix is worth, which the finding bounds and the programs count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worth {
    /// Thread time: `gain_bound_ns_per_s` against the time of units of work.
    Time,
    /// Memory: the figure `growth` against what is kept for each unit of work.
    Memory,
}

/// Whether a program has the trouble of its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Sick,
    Healthy,
}

impl Health {
    pub fn name(self) -> &'static str {
        match self {
            Health::Sick => "sick",
            Health::Healthy => "healthy",
        }
    }

    pub fn is_sick(self) -> bool {
        self == Health::Sick
    }
}

/// One kind of trouble.
pub struct Row {
    /// What it is called in the table and by `--only`.
    pub name: &'static str,
    /// What one unit of work is.
    pub unit: &'static str,
    /// What is to be found first: category, words its title has, and for whom it is.
    pub category: &'static str,
    pub about: &'static str,
    pub delegate: &'static str,
    pub worth: Worth,
    /// Whether it has a CPU whenever it wants one, so that on a busy machine it is not a CPU that it waits
    /// for. (No quota holds such a program back.)
    pub realtime: bool,
    pub program: Program,
    /// Makes ready what the program needs, and tells it on its command line.
    pub stage: fn(&mut Stage) -> io::Result<()>,
}

/// What is run, sick or healthy by its first argument.
pub enum Program {
    /// A function of ours, in a process of its own.
    Rust(fn(&Job) -> io::Result<()>),
    /// A script of this folder, in Debian's Python.
    Python(&'static str),
}

/// What a program of ours is told.
pub struct Job {
    pub health: Health,
    /// What [`Row::stage`] added to the command line.
    pub arguments: Vec<String>,
}

impl Job {
    /// The argument at a place.
    ///
    /// # Errors
    /// Where it is missing.
    pub fn argument(&self, at: usize) -> io::Result<&str> {
        let missing = || io::Error::other(format!("argument {at} is missing"));
        self.arguments
            .get(at)
            .map(String::as_str)
            .ok_or_else(missing)
    }
}

/// A program about to be run.
pub struct Stage<'a> {
    pub health: Health,
    pub command: Command,
    pub servers: &'a mut Servers,
    /// Kept until the program has ended.
    pub props: Vec<Box<dyn Any>>,
}

impl Stage<'_> {
    /// A directory of its own on a disk, given to the program as an argument.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn directory(&mut self) -> io::Result<PathBuf> {
        let directory = tempfile::Builder::new()
            .prefix("gallery-")
            .tempdir_in(traced::disk_directory())?;
        let path = directory.path().to_owned();
        self.command.arg(&path);
        self.props.push(Box::new(directory));
        Ok(path)
    }

    /// A PostgreSQL server with pgbench's tables; its socket is given to the program as an argument.
    pub fn postgres(&mut self) {
        self.command.arg(self.servers.postgres().socket());
    }

    /// A connection to that server.
    ///
    /// # Errors
    /// Where it is refused.
    pub fn database(&mut self) -> io::Result<Client> {
        Client::connect(self.servers.postgres().socket())
    }

    /// A Redis server; its address is given to the program as an argument.
    pub fn redis(&mut self) {
        let port = self.servers.redis();
        self.command.arg(format!("127.0.0.1:{port}"));
    }
}

/// For a program that needs nothing.
pub fn nothing(_: &mut Stage) -> io::Result<()> {
    Ok(())
}

/// For a program that needs [`Stage::postgres`] alone.
pub fn with_postgres(stage: &mut Stage) -> io::Result<()> {
    stage.postgres();
    Ok(())
}

/// Servers that rows share, started when the first one asks.
#[derive(Default)]
pub struct Servers {
    postgres: Option<Postgres>,
    redis: Option<(Running, u16)>,
}

impl Servers {
    fn postgres(&mut self) -> &Postgres {
        self.postgres
            .get_or_insert_with(|| before_others(Postgres::start))
    }

    /// Its port.
    fn redis(&mut self) -> u16 {
        self.redis
            .get_or_insert_with(|| before_others(servers::redis))
            .1
    }
}

/// Starts a server that has a CPU whenever it wants one, as those who ask it.
fn before_others<T>(start: impl FnOnce() -> T) -> T {
    // Without the privilege it is one like others.
    let raised = run_as(libc::SCHED_FIFO, 1).is_ok();
    let server = start();
    if raised {
        // Back to where everybody may go.
        _ = run_as(libc::SCHED_OTHER, 0);
    }
    server
}

/// Schedules the calling thread, and those it starts, by a policy (sched(7)).
///
/// # Errors
/// Where that is not allowed.
pub fn run_as(policy: i32, priority: i32) -> io::Result<()> {
    let wanted = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: `wanted` is valid; 0 is the calling thread.
    match unsafe { libc::sched_setscheduler(0, policy, &raw const wanted) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
