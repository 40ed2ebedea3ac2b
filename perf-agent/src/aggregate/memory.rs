//! Memory of the processes: what they have, how it changed over the last windows, and which stacks
//! touched it first.

use std::collections::{BTreeMap, HashMap, VecDeque};

use perf_ebpf_common::signals::memory::{GrowthKey, GrowthTotals};

use crate::{
    drain::{MemoryFact, ProcessMemoryFact},
    model::{Frame, Growth, Memory, MemoryLimit, MemoryTrend},
    signals::entries,
};

/// Windows a trend goes back at most.
const TREND_WINDOWS: usize = 60;
/// Stacks shown.
const TOP_GROWTH: usize = 8;

/// A process's part of a window.
#[derive(Default)]
pub struct ProcessMemory {
    pub memory: Option<Memory>,
    pub growth: Vec<Growth>,
}

/// Memory at the end of the windows before and now.
#[derive(Default)]
pub struct Memories {
    fact: MemoryFact,
    now: BTreeMap<GrowthKey, GrowthTotals>,
    before: HashMap<GrowthKey, GrowthTotals>,
    /// Time and what was held then, the oldest first.
    history: HashMap<u32, VecDeque<(u64, u64)>>,
}

/// Pages of one stack: in the window and since the attach.
#[derive(Clone, Copy, Default)]
struct Pages {
    samples: u64,
    window: u64,
    total: u64,
}

impl Memories {
    pub fn cells(&mut self, bytes: &[u8]) {
        self.now.extend(entries::<GrowthKey, GrowthTotals>(bytes));
    }

    /// What was read at the end of a window, or at the attach (`at_ns`).
    pub fn read(&mut self, fact: &MemoryFact, at_ns: u64) {
        self.fact.clone_from(fact);
        if self.history.is_empty() {
            self.remember(at_ns);
        }
    }

    pub fn slot_freed(&mut self, slot: u32) {
        self.before.retain(|key, _| key.slot != slot);
    }

    /// Adds what was read to the history, and lets go of processes that are gone.
    fn remember(&mut self, at_ns: u64) {
        let mut before = std::mem::take(&mut self.history);
        for process in &self.fact.processes {
            let mut history = before.remove(&process.pid).unwrap_or_default();
            if history.len() > TREND_WINDOWS {
                history.pop_front();
            }
            history.push_back((at_ns, held(process)));
            self.history.insert(process.pid, history);
        }
    }

    /// Memory of each process at the end of the window, and what grew in it. `stack` names a stack.
    pub fn window(
        &mut self,
        end_ns: u64,
        owners: &BTreeMap<u32, u32>,
        stack: impl Fn(u64) -> Vec<Frame>,
    ) -> HashMap<u32, ProcessMemory> {
        self.remember(end_ns);
        let mut by_process: HashMap<u32, BTreeMap<u64, Pages>> = HashMap::new();
        for (key, now) in std::mem::take(&mut self.now) {
            let before = self.before.insert(key, now).unwrap_or_default();
            let Some(pid) = owners.get(&key.slot) else {
                continue;
            };
            let pages = Pages {
                samples: now.count.saturating_sub(before.count),
                window: now.pages.saturating_sub(before.pages),
                total: now.pages,
            };
            let stacks = by_process.entry(*pid).or_default();
            stacks.insert(key.user_stack, pages);
        }
        let mut out: HashMap<u32, ProcessMemory> = HashMap::new();
        for (pid, mut stacks) in by_process {
            let all = stacks.remove(&0).unwrap_or_default();
            out.entry(pid).or_default().growth = growth(stacks, all, self.fact.page_bytes, &stack);
            self.memory_of(pid, all.window, &mut out);
        }
        for process in &self.fact.processes {
            if out.get(&process.pid).is_none_or(|p| p.memory.is_none()) {
                self.memory_of(process.pid, 0, &mut out);
            }
        }
        out
    }

    fn memory_of(&self, pid: u32, grown_pages: u64, out: &mut HashMap<u32, ProcessMemory>) {
        let Some(process) = self.fact.processes.iter().find(|p| p.pid == pid) else {
            return;
        };
        out.entry(pid).or_default().memory = Some(Memory {
            resident_bytes: process.resident_bytes,
            peak_bytes: process.peak_bytes,
            anon_bytes: process.anon_bytes,
            file_bytes: process.file_bytes,
            shmem_bytes: process.shmem_bytes,
            swap_bytes: process.swap_bytes,
            data_bytes: process.data_bytes,
            grown_bytes: self
                .fact
                .watched
                .then_some(grown_pages * self.fact.page_bytes),
            trend: self.history.get(&pid).and_then(trend),
            limit: limit(process, &self.fact),
        });
    }
}

fn held(process: &ProcessMemoryFact) -> u64 {
    process.anon_bytes + process.shmem_bytes + process.swap_bytes
}

/// What is left least of.
fn limit(process: &ProcessMemoryFact, host: &MemoryFact) -> MemoryLimit {
    let of_host = MemoryLimit {
        cgroup: None,
        limit_bytes: host.total_bytes,
        left_bytes: host.available_bytes,
    };
    match &process.cgroup {
        Some((path, limit, used)) if limit.saturating_sub(*used) < of_host.left_bytes => {
            MemoryLimit {
                cgroup: Some(path.clone()),
                limit_bytes: *limit,
                left_bytes: limit.saturating_sub(*used),
            }
        }
        _ => of_host,
    }
}

fn trend(history: &VecDeque<(u64, u64)>) -> Option<MemoryTrend> {
    let (first, last) = (history.front()?, history.back()?);
    let windows = history.len().checked_sub(1).filter(|n| *n > 0)?;
    let middle = history.get(windows.div_ceil(2))?;
    let steps = || history.iter().zip(history.iter().skip(1));
    Some(MemoryTrend {
        windows: windows as u64,
        rising: steps().filter(|(a, b)| b.1 > a.1).count() as u64,
        length_ns: last.0.saturating_sub(first.0),
        from_bytes: first.1,
        change_bytes: last.1 as i64 - first.1 as i64,
        late_bytes: last.1 as i64 - middle.1 as i64,
        fallen_bytes: steps().map(|(a, b)| a.1.saturating_sub(b.1)).sum(),
    })
}

/// The stacks that grew most in the window. A sample stands for its share of all growth. Stacks that
/// read the same are one.
fn growth(
    stacks: BTreeMap<u64, Pages>,
    all: Pages,
    page_bytes: u64,
    name: &impl Fn(u64) -> Vec<Frame>,
) -> Vec<Growth> {
    let sum = |of: fn(&Pages) -> u64| stacks.values().map(of).sum::<u64>();
    let (window, total) = (sum(|p| p.window), sum(|p| p.total));
    let share = |part: u64, whole: u64, of: u64| {
        let bytes = u128::from(of) * u128::from(page_bytes);
        (bytes * u128::from(part) / u128::from(whole.max(1))) as u64
    };
    let mut rows: BTreeMap<Vec<String>, Growth> = BTreeMap::new();
    for (id, pages) in &stacks {
        let user_stack = name(*id);
        let names = user_stack.iter().map(|f| f.name.clone()).collect();
        let row = rows.entry(names).or_insert_with(|| Growth {
            user_stack,
            ..Growth::default()
        });
        row.samples += pages.samples;
        row.bytes += share(pages.window, window, all.window);
        row.total_bytes += share(pages.total, total, all.total);
    }
    let mut rows: Vec<Growth> = rows.into_values().collect();
    rows.retain(|row| row.total_bytes > 0);
    rows.sort_by_key(|row| std::cmp::Reverse((row.total_bytes, row.bytes)));
    rows.truncate(TOP_GROWTH);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::frame;
    use perf_ebpf_common::Wire as _;

    const SLOT: u32 = 3;
    const PID: u32 = 42;
    const MIB: u64 = 1 << 20;

    fn cells(stacks: &[(u64, u64, u64)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (user_stack, count, pages) in stacks {
            let key = GrowthKey {
                user_stack: *user_stack,
                slot: SLOT,
                pad: 0,
            };
            bytes.extend(key.as_bytes());
            let totals = GrowthTotals {
                count: *count,
                pages: *pages,
            };
            bytes.extend(totals.as_bytes());
        }
        bytes
    }

    fn fact(anon: u64, cgroup: Option<(String, u64, u64)>) -> MemoryFact {
        MemoryFact {
            watched: true,
            page_bytes: 4096,
            total_bytes: 1000 * MIB,
            available_bytes: 600 * MIB,
            processes: vec![ProcessMemoryFact {
                pid: PID,
                anon_bytes: anon * MIB,
                cgroup,
                ..ProcessMemoryFact::default()
            }],
        }
    }

    fn window(memories: &mut Memories, end_s: u64) -> ProcessMemory {
        let owners = BTreeMap::from([(SLOT, PID)]);
        let name = |id| {
            vec![frame(
                if id == 9 { "leak" } else { "other" },
                "/usr/bin/app",
            )]
        };
        let mut all = memories.window(end_s * 1_000_000_000, &owners, name);
        all.remove(&PID).unwrap_or_default()
    }

    #[test]
    fn a_sample_stands_for_its_share_of_what_grew_in_the_window_and_since_the_attach() {
        let mut memories = Memories::default();
        memories.read(&fact(1, None), 0);
        memories.cells(&cells(&[(0, 10, 1000), (9, 3, 384), (7, 1, 128)]));
        let first = window(&mut memories, 1);
        assert_eq!(first.growth[0].bytes, 750 * 4096);
        assert_eq!(first.growth[0].user_stack[0].name, "leak");
        // 5 of them read as "other" as well, under another hash.
        memories.cells(&cells(&[
            (0, 20, 2000),
            (9, 3, 384),
            (7, 1, 128),
            (5, 4, 512),
        ]));
        let second = window(&mut memories, 2);
        assert_eq!(second.growth[0].user_stack[0].name, "other");
        assert_eq!(
            (second.growth[0].samples, second.growth[0].bytes),
            (4, 1000 * 4096)
        );
        assert_eq!(
            second.growth[0].total_bytes,
            2000 * 4096 / 8 + 2000 * 4096 / 2
        );
        assert_eq!(second.growth[1].bytes, 0);
        assert_eq!(second.growth[1].total_bytes, 750 * 4096);
    }

    #[test]
    fn the_trend_is_of_the_windows_since_the_attach() {
        let mut memories = Memories::default();
        memories.read(&fact(10, None), 1_000_000_000);
        let mut trend = MemoryTrend::default();
        for (second, anon) in [(2, 20), (3, 18), (4, 30), (5, 34)] {
            memories.read(&fact(anon, None), 0);
            trend = window(&mut memories, second).memory.unwrap().trend.unwrap();
        }
        let want = MemoryTrend {
            windows: 4,
            rising: 3,
            length_ns: 4_000_000_000,
            from_bytes: 10 * MIB,
            change_bytes: 24 * MIB as i64,
            late_bytes: 16 * MIB as i64,
            fallen_bytes: 2 * MIB,
        };
        assert_eq!(trend, want);
        memories.read(&MemoryFact::default(), 0);
        assert!(window(&mut memories, 6).memory.is_none());
        assert!(memories.history.is_empty());
    }

    #[test]
    fn the_limit_is_the_one_with_least_left() {
        let mut memories = Memories::default();
        let cgroup = |used| Some(("/a".to_owned(), 700 * MIB, used * MIB));
        memories.read(&fact(1, cgroup(200)), 0);
        let limit = window(&mut memories, 1).memory.unwrap().limit;
        assert_eq!(
            (limit.cgroup.as_deref(), limit.left_bytes),
            (Some("/a"), 500 * MIB)
        );
        memories.read(&fact(1, cgroup(50)), 0);
        let limit = window(&mut memories, 2).memory.unwrap().limit;
        assert_eq!((limit.cgroup, limit.left_bytes), (None, 600 * MIB));
    }
}
