//! Hands out histogram slots to processes and takes them back.

use std::collections::{HashMap, VecDeque};

use perf_ebpf_common::signals::ledger::SLOTS;

/// The slot every process shares that came when all others were taken.
pub const SHARED: u32 = 0;

/// How long a slot rests after its process ended: its last children still charge their first second
/// to it.
const REST_NS: u64 = 3_000_000_000;

/// Who has which slot.
pub struct Slots {
    of_process: HashMap<u32, u32>,
    free: VecDeque<u32>,
    resting: VecDeque<(u64, u32)>,
    /// Processes that got [`SHARED`] so far.
    pub exhausted: u64,
}

impl Default for Slots {
    fn default() -> Self {
        Slots {
            of_process: HashMap::new(),
            free: (1..SLOTS).collect(),
            resting: VecDeque::new(),
            exhausted: 0,
        }
    }
}

impl Slots {
    /// The slot of a process, a new one where it has none.
    pub fn give(&mut self, pid: u32) -> u32 {
        if let Some(slot) = self.of_process.get(&pid) {
            return *slot;
        }
        let slot = self.free.pop_front().unwrap_or_else(|| {
            self.exhausted += 1;
            SHARED
        });
        self.of_process.insert(pid, slot);
        slot
    }

    pub fn has(&self, pid: u32) -> bool {
        self.of_process.contains_key(&pid)
    }

    /// Processes that have one.
    pub fn processes(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.of_process.iter().map(|(pid, slot)| (*pid, *slot))
    }

    /// The process ended.
    pub fn ended(&mut self, pid: u32, now_ns: u64) {
        if let Some(slot) = self.of_process.remove(&pid)
            && slot != SHARED
        {
            self.resting.push_back((now_ns + REST_NS, slot));
        }
    }

    /// Slots that have rested and are free from now on; the caller empties them first.
    pub fn rested(&mut self, now_ns: u64) -> Vec<u32> {
        let mut out = Vec::new();
        while let Some((at, slot)) = self.resting.front().copied()
            && at <= now_ns
        {
            self.resting.pop_front();
            self.free.push_back(slot);
            out.push(slot);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_given_again_only_after_its_rest() {
        let mut slots = Slots::default();
        for pid in 1..SLOTS {
            assert_ne!(slots.give(pid), SHARED);
        }
        assert_eq!(slots.give(9000), SHARED);
        assert_eq!(slots.exhausted, 1);
        let slot = slots.give(5);
        slots.ended(5, 0);
        assert_eq!(slots.give(9001), SHARED);
        assert!(slots.rested(REST_NS - 1).is_empty());
        assert_eq!(slots.rested(REST_NS), [slot]);
        assert_eq!(slots.give(9002), slot);
    }

    #[test]
    fn the_shared_slot_is_never_freed() {
        let mut slots = Slots::default();
        for pid in 1..=SLOTS {
            slots.give(pid);
        }
        slots.ended(SLOTS, 0);
        assert!(slots.rested(u64::MAX).is_empty());
    }
}
