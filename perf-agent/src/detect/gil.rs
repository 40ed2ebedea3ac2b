//! Threads that wait for the lock of a Python interpreter (the GIL).
//!
//! CPython guards it with a condition variable, so that waiting for it is no wait for a lock to the ledger
//! (`idle`). It is told by its stack: no other code of the interpreter calls `pthread_cond_timedwait` itself
//! (locks of Python's are semaphores there). Distributions strip `take_gil`, so mostly it is the interpreter's
//! own code that calls that function, without a name.
//!
//! A thread that wants the lock asks for it after 5 ms (`sys.setswitchinterval`), which is how long a thread
//! that computes keeps it.

use super::view::{View, base_name, cpu, mean, own_function, ratio};
use super::{Candidate, evidence, top_stacks};
use crate::model::{Detail, Level, Site};
use crate::sink::units;

/// A thread takes part where it has at least this share of its life on a CPU.
const WORKS: f64 = 0.005;

/// Functions of the C library that CPython guards the lock with (`Python/ceval_gil.h`), as they are called
/// in its versions.
const GUARDS: &[&str] = &[
    "pthread_cond_timedwait",
    "pthread_cond_wait",
    "pthread_mutex_lock",
    "pthread_cond_signal",
];
/// The interpreter's functions that take and give it, where it has its symbols.
const OWN: &[&str] = &["take_gil", "drop_gil"];

/// Whether a site is a wait for it.
pub fn is_wait(site: &Site) -> bool {
    let waits = ["idle", "lock"].contains(&site.class.as_str());
    if !waits || site.syscall.as_deref() != Some("futex") {
        return false;
    }
    let stack = &site.user_stack;
    let guard = stack
        .iter()
        .rposition(|f| GUARDS.iter().any(|guard| f.name.contains(guard)));
    let Some(caller) = guard.and_then(|at| stack.get(at + 1)) else {
        return false;
    };
    let module = caller.module.as_deref().map_or("", base_name);
    let interpreter = module.starts_with("python3") || module.starts_with("libpython3");
    interpreter && (!caller.symbolized || OWN.contains(&caller.name.as_str()))
}

/// What it is made of, as locks are called.
pub fn addresses<'a>(view: &View<'a>) -> Vec<&'a str> {
    let sites = view.sites(|class| class == "lock");
    sites
        .filter(|site| is_wait(site))
        .filter_map(|site| match &site.detail {
            Some(Detail::Futex { address }) => Some(address.as_str()),
            _ => None,
        })
        .collect()
}

pub fn find(view: &View) -> Option<Candidate> {
    let sites: Vec<&Site> = view.sites(|_| true).filter(|site| is_wait(site)).collect();
    let bound_ns: u64 = sites.iter().map(|site| site.sum_ns).sum();
    let waits: u64 = sites.iter().map(|site| site.count).sum();
    if bound_ns == 0 {
        return None;
    }
    let threads = view.settled_threads();
    let taking_part = threads.filter(|t| ratio(cpu(&t.classes), t.lifetime_ns) >= WORKS);
    let theirs_ns: u64 = taking_part.map(|thread| thread.lifetime_ns).sum();
    let mut found = Candidate::new("gil", bound_ns, ratio(bound_ns, theirs_ns).min(1.0));
    let longest = sites.iter().map(|site| site.max_ns).max().unwrap_or(0);
    let most = sites.iter().max_by_key(|site| site.sum_ns);
    let place = most.and_then(|site| own_function(site));
    let place = place.map_or_else(String::new, |name| format!(", most in `{name}`"));
    found.subject = "the Python interpreter's lock (GIL)".to_owned();
    found.title = format!(
        "Threads wait {} for {}{place}: {} waits a second, {} each",
        units::duration_per_s(view.per_s(bound_ns)),
        found.subject,
        units::count(view.per_s(waits)),
        units::duration(mean(bound_ns, waits)),
    );
    // Told by the shape of the stack rather than by the lock's name.
    found.confidence = 0.8;
    found.effort = Level::Medium;
    found.evidence = vec![
        evidence("wait", view.per_s(bound_ns) as f64, "ns/s", waits),
        evidence("waits", view.per_s(waits) as f64, "1/s", waits),
        evidence("mean_wait", mean(bound_ns, waits) as f64, "ns", waits),
        evidence("max_wait", longest as f64, "ns", waits),
    ];
    found.recommendations = [
        "Move what computes in Python code into processes of its own (multiprocessing, concurrent.futures.ProcessPoolExecutor)",
        "Or into code that gives the lock up while it computes (numpy, zlib, hashlib, extensions)",
        "Where threads that mostly wait are delayed by one that computes: a shorter sys.setswitchinterval",
    ]
    .map(str::to_owned)
    .to_vec();
    found.stacks = top_stacks(sites);
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{frame, report, site, thread};

    const LIBC: &str = "/usr/lib/x86_64-linux-gnu/libc.so.6";

    fn waiting(caller: &str, module: &str, guard: &str) -> Site {
        let mut wait = site("idle", "futex", 100, 400_000_000, None);
        let mut calls = frame(caller, module);
        calls.symbolized = !caller.contains("+0x");
        wait.user_stack = vec![
            frame("__futex_abstimed_wait_common", LIBC),
            frame(guard, LIBC),
            calls,
            frame("answer_request", "/srv/app.py"),
        ];
        wait
    }

    #[test]
    fn the_interpreter_that_waits_on_a_condition_variable_waits_for_its_lock() {
        let timed = "___pthread_cond_timedwait64";
        for (caller, module, guard, is) in [
            ("python3.11+0xf94ed", "/usr/bin/python3.11", timed, true),
            ("take_gil", "/opt/lib/libpython3.12.so.1.0", timed, true),
            // A lock of Python's, a queue of an extension's, a program that is no interpreter.
            (
                "PyThread_acquire_lock_timed",
                "/usr/bin/python3.11",
                "__new_sem_wait_slow64",
                false,
            ),
            ("_queue+0x12", "/usr/lib/python3/_queue.so", timed, false),
            ("app+0x12", "/usr/bin/app", timed, false),
        ] {
            assert_eq!(is_wait(&waiting(caller, module, guard)), is, "{caller}");
        }
    }

    #[test]
    fn waits_for_the_interpreters_lock_are_one_finding() {
        let idle = [("cpu.user", 100_000_000), ("idle", 900_000_000)];
        let mut process = report("python3", vec![thread(1, &idle), thread(2, &idle)]);
        let wait = || {
            waiting(
                "python3.11+0xf94ed",
                "/usr/bin/python3.11",
                "___pthread_cond_timedwait64",
            )
        };
        process.profile.sites = vec![wait(), wait(), site("idle", "futex", 9, 500_000_000, None)];
        let found = find(&View::new(&process)).unwrap();
        assert_eq!(found.bound_ns, 800_000_000);
        assert_eq!(found.share, 0.4);
        assert_eq!(
            found.title,
            "Threads wait 800 ms/s for the Python interpreter's lock (GIL), most in `answer_request`: \
             200 waits a second, 4.00 ms each"
        );
        assert!(find(&View::new(&report("python3", vec![thread(1, &idle)]))).is_none());
    }
}
