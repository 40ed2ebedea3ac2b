//! Reads what `/proc` and the cgroup files say at the end of a window.

use std::fs;

use perf_ebpf_common::{
    Wire as _,
    signals::ledger::{ThreadState, thread_state},
};

use super::Live;
use crate::drain::{Fact, Frame, ThreadFact, listeners::Listened, procfs, seeds};

/// Threads whose `/proc` files are read at the end of each window. Reading one takes 8 µs; a
/// thread past this number keeps the name it had and has no cross-check.
const MAX_THREADS_READ: usize = 512;

impl Live {
    /// Reads what `/proc` says of each thread, and where seeded threads without events are.
    pub(super) fn read_proc(&mut self, threads: &[u8]) {
        let mut listened = Listened::default();
        for (i, entry) in threads
            .chunks_exact(4 + size_of::<ThreadState>())
            .enumerate()
        {
            let Some(t) = ThreadState::from_bytes(&entry[4..]) else {
                continue;
            };
            if i < MAX_THREADS_READ
                && let Some(fact) = thread_fact(t.tgid, t.tid)
            {
                self.frames.push(Frame::Fact(Fact::Thread(fact)));
            }
            // Once a thread: as long as nothing happens to it, it stays where it was.
            if t.state != thread_state::SEEDED || self.resolved.contains(&(t.tid, t.start_ns)) {
                continue;
            }
            let Some(fact) = seeds::class_of(t.tgid, t.tid, &self.kinds, &mut listened) else {
                continue;
            };
            // Only true if nothing happened meanwhile.
            let unchanged = matches!(
                self.kernel.maps.threads.lookup(&entry[..4], 1),
                Ok(Some(now)) if ThreadState::from_bytes(&now)
                    .is_some_and(|now| now.state == thread_state::SEEDED)
            );
            if unchanged {
                self.resolved.insert((t.tid, t.start_ns));
                self.frames.push(Frame::Fact(Fact::Seeded(fact)));
            }
        }
    }
}

pub(super) fn thread_fact(pid: u32, tid: u32) -> Option<ThreadFact> {
    let read = |name| fs::read_to_string(format!("/proc/{pid}/task/{tid}/{name}")).ok();
    let stat = procfs::stat(&read("stat")?)?;
    let (run_ns, wait_ns) = procfs::schedstat(&read("schedstat")?).unwrap_or_default();
    Some(ThreadFact {
        tid,
        pid,
        comm: stat.comm,
        run_ns,
        wait_ns,
        minor_faults: stat.minor_faults,
        major_faults: stat.major_faults,
        user_ticks: stat.user_ticks,
        kernel_ticks: stat.kernel_ticks,
    })
}

/// Throttling of the process's cgroup since its making, where it has a CPU quota.
pub(super) fn throttled(pid: u32) -> Option<(u32, (String, u64, u64, u64))> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let read = |path: String| fs::read_to_string(path).ok();
    if let Some(path) = procfs::cgroup_path(&text, Some("cpu")) {
        let base = format!("/sys/fs/cgroup/cpu{path}");
        let quota: i64 = read(format!("{base}/cpu.cfs_quota_us"))?
            .trim()
            .parse()
            .ok()?;
        if quota < 0 {
            return None;
        }
        let stat = read(format!("{base}/cpu.stat"))?;
        let value = |key| procfs::cpu_stat(&stat, key).unwrap_or(0);
        let figures = (
            value("nr_periods"),
            value("nr_throttled"),
            value("throttled_time"),
        );
        return Some((pid, (path.to_owned(), figures.0, figures.1, figures.2)));
    }
    let path = procfs::cgroup_path(&text, None)?;
    let base = format!("/sys/fs/cgroup{path}");
    if read(format!("{base}/cpu.max"))?.starts_with("max") {
        return None;
    }
    let stat = read(format!("{base}/cpu.stat"))?;
    let value = |key| procfs::cpu_stat(&stat, key).unwrap_or(0);
    let figures = (
        value("nr_periods"),
        value("nr_throttled"),
        value("throttled_usec") * 1000,
    );
    Some((pid, (path.to_owned(), figures.0, figures.1, figures.2)))
}

/// Resident memory of this process.
pub fn resident_bytes() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|s| s.split_whitespace().nth(1)?.parse::<u64>().ok())
        .unwrap_or(0);
    // SAFETY: no memory is touched.
    pages * unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.max(1) as u64
}
