//! Allocations by stack, of each process in a window.

use std::collections::{BTreeMap, HashMap};

use perf_ebpf_common::signals::allocations::{AllocationKey, AllocationTotals};

use crate::model::{AllocationSite, Frame};
use crate::signals::entries;

/// Cells at the end of the window before and now.
#[derive(Default)]
pub struct Allocations {
    now: BTreeMap<AllocationKey, AllocationTotals>,
    before: HashMap<AllocationKey, AllocationTotals>,
}

impl Allocations {
    pub fn cells(&mut self, bytes: &[u8]) {
        self.now
            .extend(entries::<AllocationKey, AllocationTotals>(bytes));
    }

    pub fn slot_freed(&mut self, slot: u32) {
        self.before.retain(|key, _| key.slot != slot);
    }

    /// What each process allocated and freed in the window. `stack` names a stack.
    pub fn window(
        &mut self,
        owners: &BTreeMap<u32, u32>,
        stack: impl Fn(u64) -> Vec<Frame>,
    ) -> HashMap<u32, Vec<AllocationSite>> {
        let mut out: HashMap<u32, Vec<AllocationSite>> = HashMap::new();
        for (key, now) in std::mem::take(&mut self.now) {
            let before = self.before.insert(key, now).unwrap_or_default();
            let Some(pid) = owners.get(&key.slot).filter(|_| now != before) else {
                continue;
            };
            out.entry(*pid).or_default().push(AllocationSite {
                samples: now.count.saturating_sub(before.count),
                bytes: now.bytes.saturating_sub(before.bytes),
                object_parts: now.object_parts.saturating_sub(before.object_parts),
                freed_bytes: now.freed_bytes.saturating_sub(before.freed_bytes),
                freed_object_parts: now
                    .freed_object_parts
                    .saturating_sub(before.freed_object_parts),
                user_stack: stack(key.user_stack),
            });
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use perf_ebpf_common::Wire as _;

    #[test]
    fn a_window_has_what_came_and_went_in_it() {
        let key = AllocationKey {
            user_stack: 7,
            slot: 3,
            pad: 0,
        };
        let owners = BTreeMap::from([(3, 42)]);
        let mut allocations = Allocations::default();
        let mut window = |bytes, freed_bytes| {
            let totals = AllocationTotals {
                count: bytes / 100,
                bytes,
                freed_bytes,
                ..AllocationTotals::default()
            };
            allocations.cells(&[key.as_bytes(), totals.as_bytes()].concat());
            let mut all = allocations.window(&owners, |_| Vec::new());
            all.remove(&42).map(|sites| {
                assert_eq!(sites.len(), 1);
                (sites[0].samples, sites[0].bytes, sites[0].freed_bytes)
            })
        };
        assert_eq!(window(500, 100), Some((5, 500, 100)));
        assert_eq!(window(600, 600), Some((1, 100, 500)));
        assert_eq!(window(600, 600), None);
    }
}
