//! Reads how much memory the processes have at the end of a window, and what bounds it.

use std::{
    collections::{HashMap, VecDeque},
    fs,
};

use anyhow::{Context as _, Result};

use super::Live;
use crate::drain::{Fact, Frame, MemoryFact, ProcessMemoryFact, procfs};

/// Windows after the attach in which growth is watched whatever happens.
const ALWAYS_WINDOWS: u64 = 3;
/// Growth within so many windows for which it goes on being watched: what one sample stands for.
const BACK_WINDOWS: usize = 10;
const GREW_BYTES: u64 = 512 << 10;

/// Whether growth is worth watching: the hook adds 70 ns to each page fault of everybody on the host (of
/// 1,950 ns), and 160 ns to the target's, so it is attached while a target has more memory than some windows ago.
#[derive(Default)]
pub struct Watch {
    off: bool,
    /// Readings so far: one at the attach, then one a window.
    readings: u64,
    held: HashMap<u32, VecDeque<u64>>,
}

impl Watch {
    /// Takes a reading; whether growth is to be watched in the next window.
    fn wanted(&mut self, processes: &[ProcessMemoryFact]) -> bool {
        let mut before = std::mem::take(&mut self.held);
        let mut grew = false;
        for process in processes {
            let mut held = before.remove(&process.pid).unwrap_or_default();
            held.push_back(process.anon_bytes + process.shmem_bytes + process.swap_bytes);
            if held.len() > BACK_WINDOWS + 1 {
                held.pop_front();
            }
            let (first, last) = (held.front().copied(), held.back().copied());
            grew |= last.unwrap_or(0) >= first.unwrap_or(0) + GREW_BYTES;
            self.held.insert(process.pid, held);
        }
        self.readings += 1;
        grew || self.readings <= ALWAYS_WINDOWS
    }
}

impl Live {
    /// Reads it of every process that has histograms of its own: some 25 µs each. Begins or ends
    /// watching growth.
    pub(super) fn read_memory(&mut self) -> Result<()> {
        let host = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let mut pids: Vec<u32> = self.slots.processes().map(|(pid, _)| pid).collect();
        pids.sort_unstable();
        // By path: processes of one cgroup have one limit.
        let mut limits = HashMap::new();
        let processes = pids.into_iter().filter_map(|pid| {
            let mut memory = process(pid)?;
            let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            memory.cgroup = limits
                .entry(text)
                .or_insert_with_key(|text| nearest_limit(text))
                .clone();
            Some(memory)
        });
        let fact = MemoryFact {
            // SAFETY: no memory is touched.
            page_bytes: unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.max(1) as u64,
            total_bytes: procfs::kilobytes(&host, "MemTotal").unwrap_or(0),
            available_bytes: procfs::kilobytes(&host, "MemAvailable").unwrap_or(0),
            processes: processes.collect(),
            watched: !self.growth.off,
        };
        let wanted = self.growth.wanted(&fact.processes);
        if wanted == self.growth.off {
            self.kernel
                .set_memory(wanted)
                .context("the hook of memory growth")?;
            self.growth.off = !wanted;
        }
        self.frames.push(Frame::Fact(Fact::Memory(fact)));
        Ok(())
    }
}

/// None of a process that is gone, or has no memory of its own any more.
fn process(pid: u32) -> Option<ProcessMemoryFact> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let bytes = |key| procfs::kilobytes(&text, key);
    Some(ProcessMemoryFact {
        pid,
        resident_bytes: bytes("VmRSS")?,
        peak_bytes: bytes("VmHWM")?,
        anon_bytes: bytes("RssAnon")?,
        file_bytes: bytes("RssFile")?,
        shmem_bytes: bytes("RssShmem")?,
        swap_bytes: bytes("VmSwap").unwrap_or(0),
        data_bytes: bytes("VmData")?,
        cgroup: None,
    })
}

/// Path, limit and use of the cgroup that has least left, of one and those above it. None where none
/// of them has a limit.
fn nearest_limit(proc_cgroup: &str) -> Option<(String, u64, u64)> {
    let v1 = procfs::cgroup_path(proc_cgroup, Some("memory"));
    let path = v1.or_else(|| procfs::cgroup_path(proc_cgroup, None))?;
    let above = path.match_indices('/').map(|(at, _)| &path[..at]);
    above
        .chain([path])
        .filter_map(|path| {
            let (limit, used) = match v1 {
                Some(_) => limit_v1(path)?,
                None => limit_v2(path)?,
            };
            Some((path.to_owned(), limit, used))
        })
        .min_by_key(|(_, limit, used)| limit.saturating_sub(*used))
}

fn limit_v2(path: &str) -> Option<(u64, u64)> {
    let read = |name| fs::read_to_string(format!("/sys/fs/cgroup{path}/{name}")).ok();
    // Without a limit it is `max`.
    let limit = read("memory.max")?.trim().parse().ok()?;
    let used: u64 = read("memory.current")?.trim().parse().ok()?;
    Some((
        limit,
        used.saturating_sub(dropped_first(&read("memory.stat")?, "")),
    ))
}

fn limit_v1(path: &str) -> Option<(u64, u64)> {
    let read = |name| fs::read_to_string(format!("/sys/fs/cgroup/memory{path}/{name}")).ok();
    let limit: u64 = read("memory.limit_in_bytes")?.trim().parse().ok()?;
    // Without a limit it is the largest number of whole pages.
    if limit > 1 << 62 {
        return None;
    }
    let used: u64 = read("memory.usage_in_bytes")?.trim().parse().ok()?;
    Some((
        limit,
        used.saturating_sub(dropped_first(&read("memory.stat")?, "total_")),
    ))
}

/// Page cache, which the kernel drops before it lets a limit be hit.
fn dropped_first(stat: &str, prefix: &str) -> u64 {
    ["active_file", "inactive_file"]
        .iter()
        .filter_map(|key| procfs::cpu_stat(stat, &format!("{prefix}{key}")))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(anon_bytes: u64) -> [ProcessMemoryFact; 1] {
        [ProcessMemoryFact {
            pid: 1,
            anon_bytes,
            ..ProcessMemoryFact::default()
        }]
    }

    #[test]
    fn growth_is_watched_at_first_and_then_while_there_is_more_than_ten_windows_ago() {
        let mut watch = Watch::default();
        let always: Vec<bool> = (0..5).map(|_| watch.wanted(&process(0))).collect();
        assert_eq!(always, [true, true, true, false, false]);
        // A leak of 60 KB a window is seen in the end, and what grew once is let go of.
        let slow: Vec<bool> = (1..=10)
            .map(|i| watch.wanted(&process(i * 60_000)))
            .collect();
        assert_eq!(slow.iter().position(|on| *on), Some(8));
        let rests = (0..12).map(|_| watch.wanted(&process(600_000)));
        assert_eq!(rests.filter(|on| *on).count(), 1);
        assert!(!watch.wanted(&[]));
    }
}
