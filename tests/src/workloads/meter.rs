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
    /// What CPU and run queue time is counted from: the thread's first instruction, or `start`.
    base: Reading,
    classes: BTreeMap<&'static str, u64>,
}

/// What a thread found out about itself. CPU time is `cpu_ns`, not a class.
#[derive(Clone, Debug)]
pub struct Account {
    pub pid: u32,
    pub tid: u32,
    pub name: String,
    /// False where the thread lived before its account began.
    pub whole: bool,
    pub start_ns: u64,
    pub lifetime_ns: u64,
    pub cpu_ns: u64,
    pub runq_ns: u64,
    pub classes: BTreeMap<&'static str, u64>,
}

impl Meter {
    /// For a thread that has just begun.
    pub fn new() -> io::Result<Self> {
        let clock = Clock::new()?;
        let start = clock.read()?;
        Ok(Meter {
            clock,
            start,
            base: Reading::default(),
            classes: BTreeMap::new(),
        })
    }

    /// Forgets what was before, for a thread that is watched from now on.
    pub fn restart(&mut self) -> io::Result<()> {
        self.start = self.clock.read()?;
        self.base = self.start;
        self.classes.clear();
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
        Ok(result)
    }

    /// What is booked under a class by now.
    pub fn so_far(&self, class: &str) -> Duration {
        Duration::from_nanos(self.classes.get(class).copied().unwrap_or(0))
    }

    fn is_whole(&self) -> bool {
        self.base.wall_ns == 0
    }

    /// Closes the account, as the last thing the thread does.
    pub fn finish(self, name: &str) -> io::Result<Account> {
        stay_on_the_cpu();
        let end = self.clock.read()?;
        // Until its first reading a thread has run or waited for a CPU: on a busy machine the
        // time from its creation to its first instruction is not small.
        let born_ns = if self.is_whole() {
            self.start.wall_ns - self.start.cpu_ns - self.start.runq_ns
        } else {
            self.start.wall_ns
        };
        Ok(Account {
            pid: std::process::id(),
            // SAFETY: takes nothing, cannot fail.
            tid: unsafe { libc::syscall(libc::SYS_gettid) } as u32,
            name: name.to_owned(),
            whole: self.is_whole(),
            start_ns: born_ns,
            lifetime_ns: end.wall_ns - born_ns,
            cpu_ns: end.cpu_ns - self.base.cpu_ns,
            runq_ns: end.runq_ns - self.base.runq_ns,
            classes: self.classes,
        })
    }
}

/// Lets nothing ordinary take the CPU away for what is left of the thread's life, so that its last
/// reading and its end are the same moment. Needs privilege; without it, they are on an idle machine.
fn stay_on_the_cpu() {
    let first = libc::sched_param { sched_priority: 1 };
    // SAFETY: `first` is valid; 0 is the calling thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const first) };
}

/// All accounts as one JSON object. Names are plain words, so nothing is escaped.
pub fn to_json(accounts: &[Account]) -> String {
    let mut json = String::from("{\"threads\":[");
    for (i, a) in accounts.iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        let classes: Vec<String> = a
            .classes
            .iter()
            .map(|(class, ns)| format!("\"{class}\":{ns}"))
            .collect();
        // Writing to a String cannot fail.
        _ = write!(
            json,
            "{comma}{{\"pid\":{},\"tid\":{},\"name\":\"{}\",\"whole\":{},\"start_ns\":{},\"lifetime_ns\":{},\
             \"schedstat\":{{\"run_ns\":{},\"wait_ns\":{}}},\"classes\":{{{}}}}}",
            a.pid,
            a.tid,
            a.name,
            a.whole,
            a.start_ns,
            a.lifetime_ns,
            a.cpu_ns,
            a.runq_ns,
            classes.join(",")
        );
    }
    json.push_str("]}");
    json
}
