//! Contended locks of a window: waits from the sites, who ended them and who held the lock beside
//! them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use perf_ebpf_common::{
    CLASS_NAMES,
    signals::{
        ledger::{SiteKey, SiteTotals, WakerKey, detail},
        locks::{LockHoldKey, LockHoldTotals, activity, source},
    },
};

use super::threads::Account;
use crate::model::{Classes, Frame, Lock, LockOwner, Site, Waker, WakerRest};
use crate::signals::entries;

/// Locks shown, and wakers and owners of each.
const TOP_LOCKS: usize = 8;
const TOP_WAKERS: usize = 5;
const TOP_OWNERS: usize = 5;

/// Wakers and holds, cumulative and per window.
#[derive(Default)]
pub struct Locks {
    wakers_now: BTreeMap<WakerKey, SiteTotals>,
    wakers_before: HashMap<WakerKey, SiteTotals>,
    holds_now: BTreeMap<LockHoldKey, LockHoldTotals>,
    holds_before: HashMap<LockHoldKey, LockHoldTotals>,
}

impl Locks {
    pub fn wakers(&mut self, bytes: &[u8]) {
        self.wakers_now
            .extend(entries::<WakerKey, SiteTotals>(bytes));
    }

    pub fn holds(&mut self, bytes: &[u8]) {
        self.holds_now
            .extend(entries::<LockHoldKey, LockHoldTotals>(bytes));
    }

    pub fn slot_freed(&mut self, slot: u32) {
        self.holds_before
            .retain(|key, _| u32::from(key.slot) != slot);
    }

    /// Contended locks by process. `owners` is the process of each slot.
    pub fn window(
        &mut self,
        accounts: &[Account],
        owners: &BTreeMap<u32, u32>,
        sites: &HashMap<u32, Vec<(SiteKey, Site)>>,
        stacks: &HashMap<u64, Vec<Frame>>,
    ) -> HashMap<u32, Vec<Lock>> {
        let names: HashMap<u32, &str> = accounts
            .iter()
            .flat_map(|a| a.comms.iter().map(|(t, c)| (*t, c.as_str())))
            .collect();
        let name = |tid: u32| names.get(&tid).copied().unwrap_or_default().to_owned();
        let mut wakers = self.wakers_of_window(&name);
        let mut holders = self.owners_of_window(owners, stacks, &name);
        let mut out = HashMap::new();
        for (pid, sites) in sites {
            let mut locks: BTreeMap<u64, Lock> = BTreeMap::new();
            for (key, site) in sites.iter().filter(|(k, _)| k.detail_kind == detail::FUTEX) {
                let of = (*pid, key.detail[0]);
                let lock = locks.entry(key.detail[0]).or_insert_with(|| Lock {
                    address: format!("{:#x}", key.detail[0]),
                    wakers: wakers.remove(&of).unwrap_or_default(),
                    owners: holders.remove(&of).unwrap_or_default(),
                    ..Lock::default()
                });
                lock.waits += site.count;
                lock.sum_ns += site.sum_ns;
                lock.max_ns = lock.max_ns.max(site.max_ns);
            }
            let mut locks: Vec<Lock> = locks.into_values().collect();
            locks.sort_by_key(|l| Reverse(l.sum_ns));
            locks.truncate(TOP_LOCKS);
            locks.iter_mut().for_each(summed);
            out.insert(*pid, locks);
        }
        out
    }

    /// Who ended waits, by process and lock.
    fn wakers_of_window(
        &mut self,
        name: &impl Fn(u32) -> String,
    ) -> HashMap<(u32, u64), Vec<Waker>> {
        let mut wakers: HashMap<(u32, u64), Vec<Waker>> = HashMap::new();
        for (key, totals) in std::mem::take(&mut self.wakers_now) {
            let before = self.wakers_before.insert(key, totals).unwrap_or_default();
            let count = totals.count.saturating_sub(before.count);
            if count > 0 {
                wakers
                    .entry((key.waiter_tgid, key.address))
                    .or_default()
                    .push(Waker {
                        waker_tid: key.waker_tid,
                        waker_comm: name(key.waker_tid),
                        waiter_tid: key.waiter_tid,
                        waiter_comm: name(key.waiter_tid),
                        count,
                        sum_ns: totals.sum_ns.saturating_sub(before.sum_ns),
                    });
            }
        }
        wakers
    }

    /// Who held which lock, by process and lock; one row an owner.
    fn owners_of_window(
        &mut self,
        owners: &BTreeMap<u32, u32>,
        stacks: &HashMap<u64, Vec<Frame>>,
        name: &impl Fn(u32) -> String,
    ) -> HashMap<(u32, u64), Vec<LockOwner>> {
        let mut rows: BTreeMap<(u32, u64, u32), Vec<(LockHoldKey, LockHoldTotals)>> =
            BTreeMap::new();
        for (key, totals) in std::mem::take(&mut self.holds_now) {
            let before = self.holds_before.insert(key, totals).unwrap_or_default();
            let now = since(&totals, &before);
            let Some(pid) = owners.get(&key.slot.into()).filter(|_| now.count > 0) else {
                continue;
            };
            rows.entry((*pid, key.address, key.owner_tid))
                .or_default()
                .push((key, now));
        }
        let mut out: HashMap<(u32, u64), Vec<LockOwner>> = HashMap::new();
        for ((pid, address, tid), places) in rows {
            let row = owner(tid, name(tid), &places, stacks);
            out.entry((pid, address)).or_default().push(row);
        }
        out
    }
}

/// Sums the rows of a lock, and keeps the largest.
fn summed(lock: &mut Lock) {
    let waiters: BTreeSet<u32> = lock.wakers.iter().map(|w| w.waiter_tid).collect();
    lock.waiters = waiters.len() as u64;
    lock.wakers
        .sort_by_key(|w| Reverse((w.sum_ns, w.waker_tid, w.waiter_tid)));
    let cut = lock.wakers.split_off(TOP_WAKERS.min(lock.wakers.len()));
    lock.waker_rest = (!cut.is_empty()).then(|| WakerRest {
        pairs: cut.len() as u64,
        count: cut.iter().map(|w| w.count).sum(),
        sum_ns: cut.iter().map(|w| w.sum_ns).sum(),
    });
    for owner in &lock.owners {
        lock.holds += owner.holds;
        lock.hold_ns += owner.hold_ns;
        lock.max_hold_ns = lock.max_hold_ns.max(owner.max_hold_ns);
    }
    lock.owners
        .sort_by_key(|o| Reverse((o.hold_ns, o.owner_tid)));
    lock.owners.truncate(TOP_OWNERS);
}

/// What came after `before`. The maximum is since the attach.
fn since(totals: &LockHoldTotals, before: &LockHoldTotals) -> LockHoldTotals {
    LockHoldTotals {
        count: totals.count.saturating_sub(before.count),
        sum_ns: totals.sum_ns.saturating_sub(before.sum_ns),
        max_ns: totals.max_ns,
        activity_ns: std::array::from_fn(|i| {
            totals.activity_ns[i].saturating_sub(before.activity_ns[i])
        }),
        told: totals.told.saturating_sub(before.told),
        source: totals.source,
    }
}

/// The row of one owner: all of its holds of one lock, with the places of the longest time.
fn owner(
    owner_tid: u32,
    owner_comm: String,
    places: &[(LockHoldKey, LockHoldTotals)],
    stacks: &HashMap<u64, Vec<Frame>>,
) -> LockOwner {
    let mut row = LockOwner {
        owner_tid,
        owner_comm,
        owner_source: source::NAMES[usize::from(source::WAKER)].to_owned(),
        ..LockOwner::default()
    };
    let mut activity_ns = [0u64; activity::COUNT];
    for (_, totals) in places {
        row.holds += totals.count;
        row.hold_ns += totals.sum_ns;
        row.max_hold_ns = row.max_hold_ns.max(totals.max_ns);
        for (sum, ns) in activity_ns.iter_mut().zip(totals.activity_ns) {
            *sum += ns;
        }
        let told = source::NAMES.get(totals.source as usize);
        if let Some(name) = told.filter(|_| totals.told > 0) {
            row.owner_source = (*name).to_owned();
        }
    }
    row.meanwhile = meanwhile(&activity_ns, row.hold_ns);
    let stack = |id: u64| stacks.get(&id).cloned().unwrap_or_default();
    let largest = |of: fn(&LockHoldKey) -> u64| {
        let known = places.iter().filter(move |(key, _)| of(key) != 0);
        known.max_by_key(|(_, t)| t.sum_ns).map(|(key, _)| key)
    };
    if let Some(key) = largest(|key| key.release_stack) {
        row.release_stack = stack(key.release_stack);
    }
    if let Some(key) = largest(|key| key.blocked_stack) {
        row.blocked_stack = stack(key.blocked_stack);
        row.blocked_class = CLASS_NAMES
            .get(usize::from(key.blocked_class))
            .map(|name| (*name).to_owned());
    }
    row
}

/// Time by what the owner did; what is left of the holds is `unknown`.
fn meanwhile(activity_ns: &[u64; activity::COUNT], hold_ns: u64) -> Classes {
    let known: u64 = activity_ns.iter().sum();
    let rest = ("unknown", hold_ns.saturating_sub(known));
    let named = activity::NAMES.into_iter().zip(activity_ns.iter().copied());
    named
        .chain([rest])
        .filter(|(_, ns)| *ns > 0)
        .map(|(name, ns)| (name.to_owned(), ns))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::frame;
    use perf_ebpf_common::Wire as _;
    use perf_ebpf_common::class;

    const SLOT: u16 = 3;
    const PID: u32 = 70;
    const LOCK: u64 = 0x1000;

    fn key(owner_tid: u32, release_stack: u64, blocked_stack: u64) -> LockHoldKey {
        LockHoldKey {
            address: LOCK,
            release_stack,
            blocked_stack,
            owner_tid,
            slot: SLOT,
            blocked_class: class::DISK,
            pad: 0,
        }
    }

    fn totals(count: u64, cpu_ns: u64, disk_ns: u64, unknown_ns: u64) -> LockHoldTotals {
        let mut activity_ns = [0; activity::COUNT];
        activity_ns[activity::CPU] = cpu_ns;
        activity_ns[activity::DISK] = disk_ns;
        LockHoldTotals {
            count,
            sum_ns: cpu_ns + disk_ns + unknown_ns,
            max_ns: 50,
            activity_ns,
            told: 0,
            source: 0,
        }
    }

    fn feed(locks: &mut Locks, holds: &[(LockHoldKey, LockHoldTotals)]) {
        let bytes: Vec<u8> = holds
            .iter()
            .flat_map(|(key, totals)| [key.as_bytes(), totals.as_bytes()].concat())
            .collect();
        locks.holds(&bytes);
    }

    fn owners(locks: &mut Locks) -> Vec<LockOwner> {
        let stacks = HashMap::from([
            (1, vec![frame("flush_log", "/usr/bin/app")]),
            (2, vec![frame("write_page", "/usr/bin/app")]),
        ]);
        let slots = BTreeMap::from([(u32::from(SLOT), PID)]);
        let name = |tid: u32| format!("thread-{tid}");
        let mut of = locks.owners_of_window(&slots, &stacks, &name);
        of.remove(&(PID, LOCK)).unwrap_or_default()
    }

    #[test]
    fn holds_of_an_owner_are_one_row_with_its_largest_places() {
        let mut locks = Locks::default();
        let told = LockHoldTotals {
            told: 1,
            source: source::MUTEX_WORD.into(),
            ..totals(3, 10, 90, 0)
        };
        feed(
            &mut locks,
            &[
                (key(7, 1, 2), told),
                (key(7, 2, 0), totals(1, 10, 0, 5)),
                (key(8, 0, 0), totals(1, 0, 0, 4)),
            ],
        );
        let rows = owners(&mut locks);
        assert_eq!(rows.len(), 2);
        let row = rows.iter().find(|r| r.owner_tid == 7).unwrap();
        assert_eq!(row.owner_comm, "thread-7");
        assert_eq!(row.owner_source, "mutex_word");
        assert_eq!((row.holds, row.hold_ns, row.max_hold_ns), (4, 115, 50));
        let expected = [("cpu", 20), ("disk", 90), ("unknown", 5)];
        let expected: Classes = expected.map(|(n, ns)| (n.to_owned(), ns)).into();
        assert_eq!(row.meanwhile, expected);
        assert_eq!(row.release_stack[0].name, "flush_log");
        assert_eq!(row.blocked_stack[0].name, "write_page");
        assert_eq!(row.blocked_class.as_deref(), Some("disk"));
        let other = rows.iter().find(|r| r.owner_tid == 8).unwrap();
        assert_eq!(other.owner_source, "waker");
        assert!(other.release_stack.is_empty() && other.blocked_class.is_none());
    }

    #[test]
    fn sums_are_of_all_owners_and_rows_of_the_longest() {
        let row = |tid: u32, hold_ns: u64| LockOwner {
            owner_tid: tid,
            holds: 2,
            hold_ns,
            max_hold_ns: hold_ns / 2,
            ..LockOwner::default()
        };
        let waker = |tid: u32, sum_ns: u64| Waker {
            waker_tid: tid,
            waker_comm: String::new(),
            waiter_tid: tid + 1,
            waiter_comm: String::new(),
            count: 2,
            sum_ns,
        };
        let mut lock = Lock {
            owners: (1..=9).map(|i| row(i, 10 * u64::from(i))).collect(),
            wakers: (1..=7).map(|i| waker(i, 10 * u64::from(i))).collect(),
            ..Lock::default()
        };
        summed(&mut lock);
        let kept: Vec<u32> = lock.wakers.iter().map(|w| w.waker_tid).collect();
        assert_eq!(kept, [7, 6, 5, 4, 3]);
        let rest = lock.waker_rest.unwrap();
        assert_eq!((rest.pairs, rest.count, rest.sum_ns), (2, 4, 30));
        assert_eq!(lock.waiters, 7);
        assert_eq!((lock.holds, lock.hold_ns, lock.max_hold_ns), (18, 450, 45));
        let kept: Vec<u32> = lock.owners.iter().map(|o| o.owner_tid).collect();
        assert_eq!(kept, [9, 8, 7, 6, 5]);
    }

    #[test]
    fn a_window_has_what_came_in_it() {
        let mut locks = Locks::default();
        feed(&mut locks, &[(key(7, 1, 0), totals(3, 10, 90, 0))]);
        assert_eq!(owners(&mut locks)[0].holds, 3);
        feed(&mut locks, &[(key(7, 1, 0), totals(3, 10, 90, 0))]);
        assert!(owners(&mut locks).is_empty());
        feed(&mut locks, &[(key(7, 1, 0), totals(5, 10, 120, 1))]);
        let row = &owners(&mut locks)[0];
        assert_eq!((row.holds, row.hold_ns), (2, 31));
        let expected = [("disk".to_owned(), 30), ("unknown".to_owned(), 1)];
        assert_eq!(row.meanwhile, Classes::from(expected));
    }
}
