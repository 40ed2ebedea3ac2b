//! The thread that others wait for when they wait for a lock: which it is, where it holds it, and
//! what it does meanwhile.

use std::collections::BTreeMap;

use super::view::{View, class, innermost_own, ratio};
use crate::model::{Lock, LockOwner, ThreadLedger};

/// What a holder does, by the names of [`LockOwner::meanwhile`].
const DOES: &[(&str, &str)] = &[
    ("cpu", "computes"),
    ("runq", "waits for a CPU"),
    ("lock", "waits for another lock"),
    ("disk", "waits for the disk"),
    ("net", "waits for a peer"),
    ("timer", "sleeps"),
    ("idle", "waits for an event"),
    ("other", "is blocked otherwise"),
];

/// It did nothing else to speak of, or little is known of what it did.
const LEAST_SHARE: f64 = 0.1;

/// The thread that holds a group's locks longest.
pub struct Holder {
    /// Its holds of all the locks; only who it is where just its wake-ups are known.
    pub owner: LockOwner,
    /// Its part of the time the locks were held while others waited, else of the waits' time.
    pub share: f64,
}

impl Holder {
    /// By the time it held the locks, else by the waits it ended.
    pub fn of(locks: &[&Lock]) -> Option<Holder> {
        by_holds(locks).or_else(|| by_wakeups(locks))
    }

    /// The program's own function it holds the lock in, by where it lets go.
    pub fn function(&self) -> Option<String> {
        innermost_own(&self.owner.release_stack)
            .or_else(|| innermost_own(&self.owner.blocked_stack))
    }

    /// What it does most while it holds the lock, with its share of the time of which that is known.
    pub fn does(&self) -> Option<(&'static str, f64)> {
        let meanwhile = &self.owner.meanwhile;
        let known: u64 = DOES.iter().map(|(name, _)| class(meanwhile, name)).sum();
        let (name, words) = DOES.iter().max_by_key(|(name, _)| class(meanwhile, name))?;
        let share = ratio(class(meanwhile, name), known);
        (share >= LEAST_SHARE).then_some((*words, share))
    }

    /// `writer (1234) in `flush_log`, which meanwhile waits for the disk 71 %`, after "held"; `taken`
    /// is the function that waits.
    pub fn described(&self, taken: Option<&str>) -> String {
        let who = format!("{} ({})", self.owner.owner_comm, self.owner.owner_tid);
        let by = match self.function() {
            Some(function) if Some(function.as_str()) == taken => format!("there most by {who}"),
            Some(function) => format!("most by {who} in `{function}`"),
            None => format!("most by {who}"),
        };
        match self.does() {
            Some((words, share)) => {
                format!("{by}, which meanwhile {words} {:.0} %", share * 100.0)
            }
            None => by,
        }
    }

    /// What to take out of the critical section.
    pub fn advice(&self, view: &View) -> Option<String> {
        let owner = &self.owner;
        let who = format!("{} ({})", owner.owner_comm, owner.owner_tid);
        let does = self.does().map(|(words, share)| {
            let place = innermost_own(&owner.blocked_stack).or_else(|| self.function());
            let place = place.map_or(String::new(), |function| format!(" in `{function}`"));
            format!(
                "{who} {words} {:.0} % of the time it holds it{place}: take that out of the critical section",
                share * 100.0
            )
        });
        does.or_else(|| {
            let mut threads = view.ledger.threads.iter();
            let thread = threads.find(|thread| thread.tid == owner.owner_tid)?;
            let (what, share) = busiest_with(thread)?;
            Some(format!(
                "{who} holds it and spends {:.0} % of its time {what}: take that out of the critical section",
                share * 100.0
            ))
        })
    }
}

fn by_holds(locks: &[&Lock]) -> Option<Holder> {
    let mut by_tid: BTreeMap<u32, Vec<&LockOwner>> = BTreeMap::new();
    for owner in locks.iter().flat_map(|lock| &lock.owners) {
        by_tid.entry(owner.owner_tid).or_default().push(owner);
    }
    let held = |rows: &[&LockOwner]| rows.iter().map(|row| row.hold_ns).sum::<u64>();
    let rows = by_tid.into_values().max_by_key(|rows| held(rows))?;
    let total: u64 = locks.iter().map(|lock| lock.hold_ns).sum();
    let hold_ns = held(&rows);
    let mut owner = (*rows.iter().max_by_key(|row| row.hold_ns)?).clone();
    owner.hold_ns = hold_ns;
    owner.holds = rows.iter().map(|row| row.holds).sum();
    owner.max_hold_ns = rows.iter().map(|row| row.max_hold_ns).max().unwrap_or(0);
    owner.meanwhile.clear();
    for (name, ns) in rows.iter().flat_map(|row| &row.meanwhile) {
        *owner.meanwhile.entry(name.clone()).or_default() += ns;
    }
    Some(Holder {
        owner,
        share: ratio(hold_ns, total),
    })
}

/// Where no hold ended in the window: who ended most of the waits.
fn by_wakeups(locks: &[&Lock]) -> Option<Holder> {
    let mut by_tid: BTreeMap<u32, (u64, &str)> = BTreeMap::new();
    let rest = locks.iter().filter_map(|lock| lock.waker_rest);
    let mut total: u64 = rest.map(|rest| rest.sum_ns).sum();
    for waker in locks.iter().flat_map(|lock| &lock.wakers) {
        total += waker.sum_ns;
        // 0: a timeout or a signal ended the wait, nobody released the lock.
        if waker.waker_tid != 0 {
            let entry = by_tid.entry(waker.waker_tid).or_default();
            *entry = (entry.0 + waker.sum_ns, &waker.waker_comm);
        }
    }
    let (tid, (sum, comm)) = by_tid.into_iter().max_by_key(|(_, (sum, _))| *sum)?;
    Some(Holder {
        owner: LockOwner {
            owner_tid: tid,
            owner_comm: comm.to_owned(),
            owner_source: "waker".to_owned(),
            ..LockOwner::default()
        },
        share: ratio(sum, total),
    })
}

/// What a thread does most besides waiting for work or for a lock itself.
fn busiest_with(thread: &ThreadLedger) -> Option<(&'static str, f64)> {
    let (what, ns) = [
        ("computing", super::view::cpu(&thread.classes)),
        ("waiting for the disk", class(&thread.classes, "disk")),
        ("waiting for a peer", super::view::net(&thread.classes)),
        ("sleeping", class(&thread.classes, "timer")),
        ("in page faults", class(&thread.classes, "fault")),
    ]
    .into_iter()
    .max_by_key(|(_, ns)| *ns)?;
    let share = ratio(ns, thread.lifetime_ns);
    (share >= LEAST_SHARE).then_some((what, share))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::frame;
    use crate::model::Classes;

    fn owner(tid: u32, hold_ns: u64, meanwhile: &[(&str, u64)]) -> LockOwner {
        LockOwner {
            owner_tid: tid,
            owner_comm: format!("thread-{tid}"),
            owner_source: "mutex_word".into(),
            holds: 1,
            hold_ns,
            max_hold_ns: hold_ns,
            meanwhile: meanwhile.iter().map(|(n, t)| ((*n).into(), *t)).collect(),
            ..LockOwner::default()
        }
    }

    fn lock(owners: Vec<LockOwner>, hold_ns: u64) -> Lock {
        Lock {
            hold_ns,
            owners,
            ..Lock::default()
        }
    }

    #[test]
    fn the_holder_is_who_held_the_locks_longest_together() {
        let mut longest = owner(2, 60, &[("disk", 50), ("cpu", 10)]);
        longest.release_stack = vec![
            frame("__GI___pthread_mutex_unlock_usercnt", "/lib/libc.so.6"),
            frame("flush_log", "/usr/bin/app"),
        ];
        let locks = [
            lock(vec![owner(1, 70, &[]), longest], 150),
            lock(vec![owner(2, 40, &[("disk", 20), ("unknown", 20)])], 50),
        ];
        let holder = Holder::of(&[&locks[0], &locks[1]]).unwrap();
        assert_eq!((holder.owner.owner_tid, holder.owner.hold_ns), (2, 100));
        assert_eq!((holder.owner.holds, holder.owner.max_hold_ns), (2, 60));
        assert_eq!(holder.share, 0.5);
        let meanwhile: Classes = [("cpu", 10), ("disk", 70), ("unknown", 20)]
            .map(|(n, t)| (n.to_owned(), t))
            .into();
        assert_eq!(holder.owner.meanwhile, meanwhile);
        let does = holder.does().unwrap();
        assert_eq!(does, ("waits for the disk", 70.0 / 80.0));
        assert_eq!(
            holder.described(Some("add_order")),
            "most by thread-2 (2) in `flush_log`, which meanwhile waits for the disk 88 %"
        );
        assert_eq!(
            holder.described(Some("flush_log")),
            "there most by thread-2 (2), which meanwhile waits for the disk 88 %"
        );
    }

    #[test]
    fn of_a_holder_known_only_when_it_let_go_nothing_is_said_that_is_not_known() {
        let locks = lock(vec![owner(3, 80, &[("unknown", 80)])], 80);
        let holder = Holder::of(&[&locks]).unwrap();
        assert_eq!(holder.does(), None);
        assert_eq!(holder.described(None), "most by thread-3 (3)");
    }

    #[test]
    fn every_activity_has_its_words() {
        for name in perf_ebpf_common::signals::locks::activity::NAMES {
            assert!(DOES.iter().any(|(n, _)| *n == name), "{name}");
        }
    }
}
