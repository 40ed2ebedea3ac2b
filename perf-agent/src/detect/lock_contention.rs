//! Threads that wait for a lock another thread holds: which lock, taken where, held by whom.
//!
//! Locks are grouped by the function that waits, which is the same in the next run (an address is
//! not), and which puts the shards of one lock together.

use std::collections::{BTreeMap, BTreeSet};

use super::view::{View, class, mean, own_function, ratio};
use super::{Candidate, Explain, evidence, gil, top_stacks};
use crate::model::{Detail, Lock, Site, ThreadLedger};
use crate::sink::units;

/// Findings a window, largest first.
const MAX_GROUPS: usize = 3;

/// Locks waited for in one place.
#[derive(Default)]
struct Group<'a> {
    function: Option<String>,
    sites: Vec<&'a Site>,
    locks: Vec<&'a Lock>,
    wait_ns: u64,
}

pub const EXPLAIN: Explain = Explain {
    looks_at: "time blocked on mutexes, read-write locks and file locks, by the function that waits",
    numbers: &[
        ("wait", "thread time spent waiting for it, a second"),
        ("waits", "waits that ended, a second"),
        ("mean_wait", "length of one"),
        ("max_wait", "the longest one since the attach"),
        ("waiters", "threads that waited"),
        (
            "top_holder_share",
            "part of the waits that the thread named ended by letting go",
        ),
    ],
    next: "Look at what the holder does while it holds the lock (its stacks, its classes in `ledger`), and move that out.",
};

pub fn find(view: &View) -> Vec<Candidate> {
    let mut groups: Vec<(String, Group)> = groups(view).into_iter().collect();
    groups.sort_by_key(|b| std::cmp::Reverse(b.1.wait_ns));
    groups.truncate(MAX_GROUPS);
    let of_groups = groups
        .into_iter()
        .map(|(key, group)| candidate(view, key, &group));
    gil::find(view).into_iter().chain(of_groups).collect()
}

fn is_lock(class: &str) -> bool {
    class == "lock"
}

fn groups<'a>(view: &View<'a>) -> BTreeMap<String, Group<'a>> {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    // Where several places wait for one lock, it belongs to the place that waits most.
    let mut owner: BTreeMap<&str, (String, u64)> = BTreeMap::new();
    for site in view.sites(is_lock).filter(|site| !gil::is_wait(site)) {
        let function = own_function(site);
        let key = function.clone().unwrap_or_else(|| fallback_key(site));
        if let Some(Detail::Futex { address }) = &site.detail {
            let entry = owner.entry(address).or_default();
            if site.sum_ns >= entry.1 {
                *entry = (key.clone(), site.sum_ns);
            }
        }
        let group = groups.entry(key).or_default();
        group.function = function;
        group.wait_ns += site.sum_ns;
        group.sites.push(site);
    }
    let total_ns = view.class("lock");
    let of_interpreter = gil::addresses(view);
    let locks = view.profile.locks.iter();
    for lock in locks.filter(|lock| !of_interpreter.contains(&lock.address.as_str())) {
        match owner.get(lock.address.as_str()) {
            Some((key, _)) => {
                if let Some(group) = groups.get_mut(key) {
                    group.locks.push(lock);
                }
            }
            // Its sites are not among those shown; its waits may have begun before the window.
            None => {
                let group = groups.entry(lock.address.clone()).or_default();
                group.wait_ns = lock.sum_ns.min(total_ns);
                group.locks.push(lock);
            }
        }
    }
    groups
}

/// What stands for a lock when no function can be named.
fn fallback_key(site: &Site) -> String {
    match &site.detail {
        Some(Detail::Futex { address }) => address.clone(),
        Some(Detail::File {
            path: Some(path), ..
        }) => path.clone(),
        Some(Detail::File { device, inode, .. }) => format!("file {device}:{inode}"),
        _ => site.syscall.clone().unwrap_or_else(|| "lock".to_owned()),
    }
}

/// Who released it most: the thread, its share of the waits' time, its name.
struct Holder {
    tid: u32,
    comm: String,
    share: f64,
}

fn top_holder(group: &Group) -> Option<Holder> {
    let mut by_tid: BTreeMap<u32, (u64, &str)> = BTreeMap::new();
    let mut total = 0;
    for waker in group.locks.iter().flat_map(|lock| &lock.wakers) {
        total += waker.sum_ns;
        // 0: a timeout or a signal ended the wait, nobody released the lock.
        if waker.waker_tid != 0 {
            let entry = by_tid.entry(waker.waker_tid).or_default();
            *entry = (entry.0 + waker.sum_ns, &waker.waker_comm);
        }
    }
    let (tid, (sum, comm)) = by_tid.into_iter().max_by_key(|(_, (sum, _))| *sum)?;
    Some(Holder {
        tid,
        comm: comm.to_owned(),
        share: ratio(sum, total),
    })
}

fn candidate(view: &View, key: String, group: &Group) -> Candidate {
    let total_ns = view.class("lock");
    let wait_ns = group.wait_ns.min(total_ns);
    let share = view.share_of(|classes| class(classes, "lock")) * ratio(wait_ns, total_ns);
    let waits: u64 = match group.locks.is_empty() {
        true => group.sites.iter().map(|site| site.count).sum(),
        false => group.locks.iter().map(|lock| lock.waits).sum(),
    };
    let holder = top_holder(group);
    let mut found = Candidate::new(key, wait_ns, share);
    let what = describe(group, &found.key);
    let rate = units::duration_per_s(view.per_s(wait_ns));
    let held = match &holder {
        Some(holder) => format!(", held most by {} ({})", holder.comm, holder.tid),
        None => String::new(),
    };
    found.title = format!("Threads wait {rate} for the {what}{held}");
    found.subject = format!("{what}{held}");
    // Measured waits with a known holder; without one the lock is known but not what to change.
    // No wait that ended: held through the whole window, or a wait that is no lock after all.
    found.confidence = match (&holder, waits) {
        (Some(_), _) => 0.9,
        (None, 0) => 0.5,
        (None, _) => 0.75,
    };
    found.holder = holder.as_ref().map(|holder| holder.tid);
    found.evidence = figures(view, group, wait_ns, waits, holder.as_ref());
    found.recommendations = recommendations(view, holder.as_ref());
    found.stacks = top_stacks(group.sites.iter().copied());
    found
}

/// `lock 0x7f00 (and 3 more) taken in `worker``.
fn describe(group: &Group, key: &str) -> String {
    let mut addresses: Vec<&str> = group.locks.iter().map(|l| l.address.as_str()).collect();
    let in_sites = group.sites.iter().filter_map(|site| match &site.detail {
        Some(Detail::Futex { address }) => Some(address.as_str()),
        _ => None,
    });
    for address in in_sites {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    let more = match addresses.len() {
        0 | 1 => String::new(),
        n => format!(" (and {} more)", n - 1),
    };
    let taken = match &group.function {
        Some(function) => format!(" taken in `{function}`"),
        None => String::new(),
    };
    match addresses.first() {
        Some(address) => format!("lock {address}{more}{taken}"),
        None => format!("lock on {key}"),
    }
}

fn figures(
    view: &View,
    group: &Group,
    wait_ns: u64,
    waits: u64,
    holder: Option<&Holder>,
) -> Vec<crate::model::Evidence> {
    let locks_ns: u64 = group.locks.iter().map(|lock| lock.sum_ns).sum();
    let in_locks = group.locks.iter().map(|lock| lock.max_ns);
    let in_sites = group.sites.iter().map(|site| site.max_ns);
    let longest = in_locks.chain(in_sites).max().unwrap_or(0);
    let waiters: BTreeSet<u32> = group
        .locks
        .iter()
        .flat_map(|lock| lock.wakers.iter().map(|waker| waker.waiter_tid))
        .collect();
    let sum_ns = if group.locks.is_empty() {
        wait_ns
    } else {
        locks_ns
    };
    let mut out = vec![
        evidence("wait", view.per_s(wait_ns) as f64, "ns/s", waits),
        evidence("waits", view.per_s(waits) as f64, "1/s", waits),
        evidence("mean_wait", mean(sum_ns, waits) as f64, "ns", waits),
        evidence("max_wait", longest as f64, "ns", waits),
    ];
    if let Some(holder) = holder {
        out.push(evidence("waiters", waiters.len() as f64, "count", waits));
        out.push(evidence("top_holder_share", holder.share, "ratio", waits));
    }
    out
}

/// What the holder does while others wait decides what to change.
fn recommendations(view: &View, holder: Option<&Holder>) -> Vec<String> {
    let mut out = Vec::new();
    let thread = holder.and_then(|holder| {
        let mut threads = view.ledger.threads.iter();
        threads.find(|thread| thread.tid == holder.tid)
    });
    if let (Some(holder), Some((what, share))) = (holder, thread.and_then(busiest_with)) {
        out.push(format!(
            "{} ({}) holds it and spends {:.0} % of its time {what}: take that out of the critical section",
            holder.comm,
            holder.tid,
            share * 100.0
        ));
    }
    out.push("Hold the lock for less time: only what it protects, no calls that block".to_owned());
    out.push("Split it by key or by thread, or let readers share it".to_owned());
    out.push("Replace what it protects by an atomic, a queue or a copy per thread".to_owned());
    out
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
    (share >= 0.1).then_some((what, share))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{frame, report, site, thread};
    use crate::model::{ProcessReport, Waker};

    fn waker(waker_tid: u32, waiter_tid: u32, count: u64, sum_ns: u64) -> Waker {
        Waker {
            waker_tid,
            waker_comm: format!("thread-{waker_tid}"),
            waiter_tid,
            waiter_comm: format!("thread-{waiter_tid}"),
            count,
            sum_ns,
        }
    }

    fn futex(address: &str) -> Option<Detail> {
        Some(Detail::Futex {
            address: address.into(),
        })
    }

    fn contended() -> ProcessReport {
        let mut report = report(
            "app",
            vec![
                thread(1, &[("cpu.user", 700_000_000), ("lock", 300_000_000)]),
                thread(2, &[("cpu.user", 400_000_000), ("lock", 600_000_000)]),
            ],
        );
        let mut first = site("lock", "futex", 50, 800_000_000, futex("0x1000"));
        first.user_stack = vec![
            frame("__lll_lock_wait", "/lib/libc.so.6"),
            frame("update_cache", "/usr/bin/app"),
        ];
        let mut second = first.clone();
        second.detail = futex("0x2000");
        (second.count, second.sum_ns, second.max_ns) = (10, 100_000_000, 15_000_000);
        report.profile.sites = vec![first, second];
        report.profile.locks = vec![
            Lock {
                address: "0x1000".into(),
                waits: 50,
                sum_ns: 800_000_000,
                max_ns: 30_000_000,
                wakers: vec![
                    waker(1, 2, 30, 600_000_000),
                    waker(2, 1, 10, 100_000_000),
                    waker(0, 1, 10, 100_000_000),
                ],
            },
            Lock {
                address: "0x2000".into(),
                waits: 10,
                sum_ns: 100_000_000,
                max_ns: 15_000_000,
                wakers: vec![],
            },
        ];
        report
    }

    #[test]
    fn locks_waited_for_in_one_function_are_one_finding_with_its_holder() {
        let report = contended();
        let found = find(&View::new(&report));
        assert_eq!(found.len(), 1);
        let found = &found[0];
        assert_eq!(found.bound_ns, 900_000_000);
        assert_eq!(found.key, "update_cache");
        assert_eq!(
            found.title,
            "Threads wait 900 ms/s for the lock 0x1000 (and 1 more) taken in \
             `update_cache`, held most by thread-1 (1)"
        );
        assert_eq!(found.confidence, 0.9);
        assert_eq!(found.share, 0.6);
        let figures: Vec<(&str, f64)> = found
            .evidence
            .iter()
            .map(|e| (e.name.as_str(), e.value))
            .collect();
        assert_eq!(
            figures,
            [
                ("wait", 9e8),
                ("waits", 60.0),
                ("mean_wait", 15e6),
                ("max_wait", 30e6),
                ("waiters", 2.0),
                ("top_holder_share", 0.75),
            ]
        );
        assert!(
            found.recommendations[0].contains("spends 70 % of its time computing"),
            "{}",
            found.recommendations[0]
        );
        assert_eq!(found.stacks.len(), 2);
    }

    #[test]
    fn a_lock_whose_sites_are_not_shown_is_found_by_its_address() {
        let mut report = contended();
        report.profile.sites.clear();
        report.profile.locks.truncate(1);
        report.profile.locks[0].sum_ns = 5_000_000_000;
        let found = find(&View::new(&report));
        assert_eq!(found[0].bound_ns, 900_000_000, "at most the class's time");
        assert_eq!(found[0].subject, "lock 0x1000, held most by thread-1 (1)");
    }

    #[test]
    fn waiting_for_work_is_not_waiting_for_a_lock() {
        let mut report = report("app", vec![thread(1, &[("idle", 1_000_000_000)])]);
        report.profile.sites = vec![site("idle", "futex", 50, 1_000_000_000, futex("0x1000"))];
        assert!(find(&View::new(&report)).is_empty());
    }
}
