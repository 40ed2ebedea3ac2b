//! One thread's own account: the time it was blocked by class, and its life.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::time::Duration;

use super::clock::{Clock, Reading};

/// Keeps the account of the calling thread.
pub struct Meter {
    clock: Clock,
    start: Reading,
    begin: Begin,
    classes: BTreeMap<&'static str, u64>,
    taken: BTreeMap<&'static str, u64>,
}

/// What was before an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// Nothing: the thread has just begun, and its scheduler's figures are its own.
    Birth,
    /// The thread lived, and who watches began while it waited.
    Watch,
    /// The thread lived and was watched: what it did is not known.
    Unknown,
}

/// What a thread found out about itself. CPU time is `cpu_ns`, not a class.
#[derive(Clone, Debug)]
pub struct Account {
    pub pid: u32,
    pub tid: u32,
    pub name: &'static str,
    pub begin: Begin,
    pub start_ns: u64,
    pub lifetime_ns: u64,
    pub cpu_ns: u64,
    /// Taken from the thread on the CPU at most ([`Reading::taken_ns`]), which is not in `cpu_ns`.
    pub taken_ns: u64,
    pub runq_ns: u64,
    pub classes: BTreeMap<&'static str, u64>,
    /// How much of a class may have been taken from the thread on the CPU.
    pub taken: BTreeMap<&'static str, u64>,
}

impl Meter {
    /// For a thread that has just begun.
    pub fn new() -> io::Result<Self> {
        let clock = Clock::new()?;
        let start = clock.read()?;
        Ok(Meter {
            clock,
            start,
            begin: Begin::Birth,
            classes: BTreeMap::new(),
            taken: BTreeMap::new(),
        })
    }

    /// Begins anew, for a thread that did something before it could measure it.
    pub fn restart(&mut self) -> io::Result<()> {
        self.start = self.clock.read()?;
        self.begin = Begin::Unknown;
        self.classes.clear();
        self.taken.clear();
        Ok(())
    }

    /// Begins anew with the end of a wait in which somebody began to watch. What the thread waits for a CPU once
    /// the wait is over (4 ms once, beside other work) is seen by them, and so is of the account.
    pub fn restart_behind(&mut self, wait: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let before = self.clock.read()?;
        wait()?;
        let after = self.clock.read()?;
        let woken_ns = (after.cpu_ns - before.cpu_ns) + (after.runq_ns - before.runq_ns);
        self.start = Reading {
            wall_ns: after.wall_ns - woken_ns,
            ..before
        };
        self.begin = Begin::Watch;
        self.classes.clear();
        self.taken.clear();
        Ok(())
    }

    /// Runs `wait` and books the time it was off the CPU, and not for want of one, under `class`.
    pub fn blocked<R>(
        &mut self,
        class: &'static str,
        wait: impl FnOnce() -> io::Result<R>,
    ) -> io::Result<R> {
        let before = self.clock.read()?;
        let result = wait()?;
        let after = self.clock.read()?;
        let busy = (after.cpu_ns - before.cpu_ns) + (after.runq_ns - before.runq_ns);
        let blocked = (after.wall_ns - before.wall_ns).saturating_sub(busy);
        *self.classes.entry(class).or_default() += blocked;
        *self.taken.entry(class).or_default() += after.taken_ns(&before);
        Ok(result)
    }

    /// Books so much of what is under one class under another, where only its end told what a wait was for.
    pub fn rebook(&mut self, from: &'static str, to: &'static str, time: Duration) {
        let ns = time.as_nanos() as u64;
        let booked = self.classes.entry(from).or_default();
        *booked = booked.saturating_sub(ns);
        *self.classes.entry(to).or_default() += ns;
    }

    /// What is booked under a class by now.
    pub fn so_far(&self, class: &str) -> Duration {
        Duration::from_nanos(self.classes.get(class).copied().unwrap_or(0))
    }

    /// Closes the account, as the last thing the thread does.
    pub fn finish(self, name: &'static str) -> io::Result<Account> {
        stay_on_the_cpu();
        let end = self.clock.read()?;
        // Until its first reading a thread has run or waited for a CPU: on a busy machine the
        // time from its creation to its first instruction is not small.
        let (born_ns, base) = if self.begin == Begin::Birth {
            let before = self.start.cpu_ns + self.start.runq_ns;
            (self.start.wall_ns - before, Reading::default())
        } else {
            (self.start.wall_ns, self.start)
        };
        Ok(Account {
            pid: std::process::id(),
            // SAFETY: takes nothing, cannot fail.
            tid: unsafe { libc::syscall(libc::SYS_gettid) } as u32,
            name,
            begin: self.begin,
            start_ns: born_ns,
            lifetime_ns: end.wall_ns - born_ns,
            cpu_ns: end.cpu_ns - base.cpu_ns,
            taken_ns: end.taken_ns(&base),
            runq_ns: end.runq_ns - base.runq_ns,
            classes: self.classes,
            taken: self.taken,
        })
    }
}

/// Lets nothing ordinary take the CPU away for what is left of the thread's life, so that its last
/// reading and its end are the same moment. Needs privilege; without it, they are so on an idle
/// machine.
fn stay_on_the_cpu() {
    let first = libc::sched_param { sched_priority: 1 };
    // SAFETY: `first` is valid; 0 is the calling thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const first) };
}

fn object(figures: &BTreeMap<&'static str, u64>) -> String {
    let figures = figures.iter().map(|(name, ns)| format!("\"{name}\":{ns}"));
    format!("{{{}}}", figures.collect::<Vec<_>>().join(","))
}

/// All accounts as one JSON object. Names are plain words, so nothing is escaped.
pub fn to_json(accounts: &[Account]) -> String {
    let mut json = String::from("{\"threads\":[");
    for (i, a) in accounts.iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        let (classes, taken) = (object(&a.classes), object(&a.taken));
        let schedstat = match a.begin {
            Begin::Unknown => "null".to_owned(),
            _ => format!("{{\"run_ns\":{},\"wait_ns\":{}}}", a.cpu_ns, a.runq_ns),
        };
        // Writing to a String cannot fail.
        _ = write!(
            json,
            "{comma}{{\"pid\":{},\"tid\":{},\"name\":\"{}\",\"whole\":{},\"start_ns\":{},\"lifetime_ns\":{},\
             \"schedstat\":{schedstat},\"taken_ns\":{},\"classes\":{classes},\"taken\":{taken}}}",
            a.pid,
            a.tid,
            a.name,
            a.begin == Begin::Birth,
            a.start_ns,
            a.lifetime_ns,
            a.taken_ns,
        );
    }
    json.push_str("]}");
    json
}
