//! Threads that wait for a lock another thread holds: which lock, taken where, held by whom.
//!
//! Locks are grouped by the function that waits, which is the same in the next run (an address is
//! not), and which puts the shards of one lock together.

use std::collections::BTreeMap;

use super::lock_holder::Holder;
use super::view::{View, class, mean, own_function, ratio};
use super::{Candidate, Explain, evidence, gil, top_stacks};
use crate::model::{Detail, Evidence, Lock, LockOwner, Site};
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
    looks_at: "time blocked on mutexes, read-write locks and file locks, by the function that waits; and what the holder does meanwhile",
    numbers: &[
        ("wait", "thread time spent waiting for it, a second"),
        ("waits", "waits that ended, a second"),
        ("mean_wait", "length of one"),
        ("max_wait", "the longest one since the attach"),
        ("waiters", "threads that waited"),
        (
            "top_holder_share",
            "part of that time that the thread named (`owner`) held it; of the waits it ended, where no hold was seen",
        ),
        ("hold", "time it was held while others waited, a second"),
        (
            "mean_hold",
            "length of one hold: from when its holder was woken to take it, or others began to wait, to the wake-up of the next",
        ),
        ("max_hold", "the longest one since the attach"),
        (
            "holder_cpu",
            "part of its holds in which the thread named computed",
        ),
        ("holder_runq", "the same, waiting for a CPU"),
        ("holder_lock", "waiting for another lock"),
        ("holder_disk", "waiting for the disk"),
        ("holder_net", "waiting for a peer"),
        ("holder_timer", "asleep"),
        ("holder_idle", "waiting for an event or for work"),
        (
            "holder_other",
            "blocked otherwise: a page fault, a pipe, a child",
        ),
        (
            "holder_unknown",
            "not known, because only its letting go told who it was (`owner_source` `waker`)",
        ),
    ],
    bound: "time waited for the lock.",
    confidence: "0.9 where a holder is known, 0.75 without: then the lock is known, but not \
               what to change. 0.5 where no wait ended, which may be no lock after all; 0.8 \
               for the lock of an interpreter, known by its stacks.",
    next: "Look at where the holder lets go (`owner.release_stack`) and where it is blocked meanwhile (`owner.blocked_stack`), and move what takes the time out.",
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

fn candidate(view: &View, key: String, group: &Group) -> Candidate {
    let total_ns = view.class("lock");
    let wait_ns = group.wait_ns.min(total_ns);
    let share = view.share_of(|classes| class(classes, "lock")) * ratio(wait_ns, total_ns);
    let waits: u64 = match group.locks.is_empty() {
        true => group.sites.iter().map(|site| site.count).sum(),
        false => group.locks.iter().map(|lock| lock.waits).sum(),
    };
    let holder = Holder::of(&group.locks);
    let mut found = Candidate::new(key, wait_ns, share);
    let what = describe(group, &found.key);
    let rate = units::duration_per_s(view.per_s(wait_ns));
    let held = match &holder {
        Some(holder) => format!(", held {}", holder.described(group.function.as_deref())),
        None => String::new(),
    };
    let threads = match waiters(group) {
        0 | 1 => "Threads wait".to_owned(),
        n => format!("{n} threads wait"),
    };
    found.title = format!("{threads} {rate} for the {what}{held}");
    found.subject = format!("{what}{held}");
    // Measured waits with a known holder; without one the lock is known but not what to change.
    // No wait that ended: held through the whole window, or a wait that is no lock after all.
    found.confidence = match (&holder, waits) {
        (Some(_), _) => 0.9,
        (None, 0) => 0.5,
        (None, _) => 0.75,
    };
    found.evidence = figures(view, group, wait_ns, waits, holder.as_ref());
    found.recommendations = recommendations(view, holder.as_ref());
    found.stacks = top_stacks(group.sites.iter().copied());
    found.owner = holder.map(|holder| holder.owner);
    found
}

/// Threads that waited for the lock most waited for by many.
fn waiters(group: &Group) -> u64 {
    let waiters = group.locks.iter().map(|lock| lock.waiters);
    waiters.max().unwrap_or(0)
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
) -> Vec<Evidence> {
    let locks_ns: u64 = group.locks.iter().map(|lock| lock.sum_ns).sum();
    let in_locks = group.locks.iter().map(|lock| lock.max_ns);
    let in_sites = group.sites.iter().map(|site| site.max_ns);
    let longest = in_locks.chain(in_sites).max().unwrap_or(0);
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
        out.push(evidence("waiters", waiters(group) as f64, "count", waits));
        out.push(evidence("top_holder_share", holder.share, "ratio", waits));
        out.extend(holds(view, group, &holder.owner));
    }
    out
}

/// How long the locks were held while others waited, and what their longest holder did.
fn holds(view: &View, group: &Group, owner: &LockOwner) -> Vec<Evidence> {
    let sum = |of: fn(&Lock) -> u64| group.locks.iter().map(|lock| of(lock)).sum::<u64>();
    let (held, times) = (sum(|lock| lock.hold_ns), sum(|lock| lock.holds));
    if times == 0 {
        return Vec::new();
    }
    let longest = group.locks.iter().map(|lock| lock.max_hold_ns).max();
    let mut out = vec![
        evidence("hold", view.per_s(held) as f64, "ns/s", times),
        evidence("mean_hold", mean(held, times) as f64, "ns", times),
        evidence("max_hold", longest.unwrap_or(0) as f64, "ns", times),
    ];
    for (class, ns) in &owner.meanwhile {
        let (part, times) = (ratio(*ns, owner.hold_ns), owner.holds);
        out.push(match class.as_str() {
            "cpu" => evidence("holder_cpu", part, "ratio", times),
            "runq" => evidence("holder_runq", part, "ratio", times),
            "lock" => evidence("holder_lock", part, "ratio", times),
            "disk" => evidence("holder_disk", part, "ratio", times),
            "net" => evidence("holder_net", part, "ratio", times),
            "timer" => evidence("holder_timer", part, "ratio", times),
            "idle" => evidence("holder_idle", part, "ratio", times),
            "other" => evidence("holder_other", part, "ratio", times),
            _ => evidence("holder_unknown", part, "ratio", times),
        });
    }
    out
}

/// What the holder does while others wait decides what to change.
fn recommendations(view: &View, holder: Option<&Holder>) -> Vec<String> {
    let mut out = Vec::new();
    out.extend(holder.and_then(|holder| holder.advice(view)));
    out.push("Hold the lock for less time: only what it protects, no calls that block".to_owned());
    out.push("Split it by key or by thread, or let readers share it".to_owned());
    out.push("Replace what it protects by an atomic, a queue or a copy per thread".to_owned());
    out
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
                waiters: 2,
                wakers: vec![
                    waker(1, 2, 30, 600_000_000),
                    waker(2, 1, 10, 100_000_000),
                    waker(0, 1, 10, 100_000_000),
                ],
                ..Lock::default()
            },
            Lock {
                address: "0x2000".into(),
                waits: 10,
                sum_ns: 100_000_000,
                max_ns: 15_000_000,
                ..Lock::default()
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
            "2 threads wait 900 ms/s for the lock 0x1000 (and 1 more) taken in \
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
    fn who_held_it_where_and_what_it_did_is_said_with_the_lock() {
        let mut report = contended();
        let writer = LockOwner {
            owner_tid: 2,
            owner_comm: "writer".into(),
            owner_source: "mutex_word".into(),
            holds: 20,
            hold_ns: 600_000_000,
            max_hold_ns: 40_000_000,
            meanwhile: [("cpu".into(), 150_000_000), ("disk".into(), 450_000_000)].into(),
            release_stack: vec![frame("flush_log", "/usr/bin/app")],
            blocked_class: Some("disk".into()),
            blocked_stack: vec![
                frame("fsync", "/lib/libc.so.6"),
                frame("sync_file", "/usr/bin/app"),
            ],
        };
        let lock = &mut report.profile.locks[0];
        (lock.holds, lock.hold_ns, lock.max_hold_ns) = (25, 800_000_000, 50_000_000);
        lock.owners = vec![writer.clone()];
        let found = &find(&View::new(&report))[0];
        assert_eq!(
            found.subject,
            "lock 0x1000 (and 1 more) taken in `update_cache`, held most by writer (2) in \
             `flush_log`, which meanwhile waits for the disk 75 %"
        );
        assert_eq!(found.owner.as_ref(), Some(&writer));
        let figure = |name: &str| {
            let found = found.evidence.iter().find(|e| e.name == name);
            found.map(|e| (e.value, e.samples))
        };
        assert_eq!(figure("top_holder_share"), Some((0.75, 60)));
        assert_eq!(figure("hold"), Some((8e8, 25)));
        assert_eq!(figure("mean_hold"), Some((32e6, 25)));
        assert_eq!(figure("max_hold"), Some((50e6, 25)));
        assert_eq!(figure("holder_disk"), Some((0.75, 20)));
        assert_eq!(figure("holder_cpu"), Some((0.25, 20)));
        assert_eq!(
            found.recommendations[0],
            "writer (2) waits for the disk 75 % of the time it holds it in `sync_file`: take that \
             out of the critical section"
        );
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
