//! A database server that waits for locks of its own: of rows, of tables, of its log.
//!
//! To the ledger that is no wait for a lock (`idle`): PostgreSQL sleeps on a latch, MariaDB and MySQL on a
//! condition variable. It is told by its stack: functions that do nothing but wait for such a lock, whose names
//! PostgreSQL exports also where it is stripped (`storage/lmgr/proc.c`, `lmgr.c`, `lwlock.c`). Of MariaDB and MySQL
//! that is so of locks of tables (`sql/mdl.cc`), and of rows (`lock0lock.cc`, `lock0wait.cc`) where there are symbols.

use std::collections::BTreeMap;

use super::services::DATABASE;
use super::view::{View, base_name, mean, ratio};
use super::{Candidate, DATABASE_SPECIALIST, Explain, evidence, statements, top_stacks};
use crate::model::{Frame, Level, Site};
use crate::sink::units;

/// How functions begin in which all waits for locks of PostgreSQL are: regular ones, in which there may be one for
/// a lightweight one, and those.
const POSTGRESQL_SLEEPS: &[&str] = &["ProcSleep", "LWLock"];
/// What is locked, by the function that asks for the lock, the innermost that is known.
const POSTGRESQL: &[(&str, &str)] = &[
    ("LWLockAcquireOrWait", LOG),
    ("LWLockWaitForVar", LOG),
    ("LWLock", LIGHTWEIGHT),
    ("LockTuple", ROWS),
    ("XactLockTableWait", ROWS),
    ("SpeculativeInsertionWait", ROWS),
    ("LockRelationForExtension", "files that tables grow in"),
    ("LockRelation", TABLES),
    ("VirtualXactLock", "transactions to end"),
    ("pg_advisory_", "advisory locks"),
];
/// As they begin, once demangled.
const MYSQL: &[(&str, &str)] = &[
    ("MDL_wait::timed_wait", TABLES),
    ("lock_wait_suspend_thread", ROWS),
    ("lock_wait(", ROWS),
];
const ROWS: &str = "rows";
const TABLES: &str = "tables";
const LOG: &str = "others to write the log (WAL)";
const LIGHTWEIGHT: &str = "lightweight locks";

pub const EXPLAIN: Explain = Explain {
    looks_at: "waits of a PostgreSQL, MariaDB or MySQL server for its own locks of rows, tables and transactions, told by their stacks",
    numbers: &[
        ("wait", "thread time spent waiting for them, a second"),
        ("waits", "waits that ended, a second"),
        ("mean_wait", "length of one"),
        ("max_wait", "the longest one since the attach"),
        (
            "share_of_answers",
            "part of the time that the answers took, as far as they were seen",
        ),
    ],
    bound: "time waited for the locks.",
    confidence: "0.9: the functions of the stacks do nothing else; who holds the lock is not \
               known from here.",
    next: "Ask the server while it lasts: who blocks whom (pg_blocking_pids() over pg_stat_activity, or sys.innodb_lock_waits); \
           which lightweight lock (wait_event of pg_stat_activity).",
};

/// What a site waits for, where that is a lock of the database.
fn locked(site: &Site) -> Option<&'static str> {
    if !["idle", "lock"].contains(&site.class.as_str()) {
        return None;
    }
    let stack = &site.user_stack;
    let postgresql = own(stack, &["postgres"]);
    let sleeps = |name| postgresql.iter().position(|f| f.name.starts_with(name));
    if let Some(at) = POSTGRESQL_SLEEPS.iter().find_map(|name| sleeps(*name)) {
        let known = known(&postgresql[at..], POSTGRESQL);
        return Some(known.unwrap_or("locks of the database"));
    }
    known(&own(stack, &["mariadbd", "mysqld"]), MYSQL)
}

/// The frames of a server's own code.
fn own<'a>(stack: &'a [Frame], programs: &[&str]) -> Vec<&'a Frame> {
    let is_own = |frame: &&Frame| {
        let module = base_name(frame.module.as_deref().unwrap_or(""));
        programs.iter().any(|name| module.contains(name))
    };
    stack.iter().filter(is_own).collect()
}

/// What the innermost function locks that a table has.
fn known(frames: &[&Frame], table: &[(&str, &'static str)]) -> Option<&'static str> {
    let of = |frame: &&Frame| {
        let found = table.iter().find(|(name, _)| frame.name.starts_with(name));
        found.map(|(_, what)| *what)
    };
    frames.iter().find_map(of)
}

pub fn find(view: &View) -> Vec<Candidate> {
    let mut waits: BTreeMap<&str, Vec<&Site>> = BTreeMap::new();
    for site in view.sites(|_| true) {
        if let Some(what) = locked(site) {
            waits.entry(what).or_default().push(site);
        }
    }
    let kinds = waits.into_iter();
    kinds
        .map(|(what, sites)| candidate(view, what, &sites))
        .collect()
}

fn candidate(view: &View, what: &str, sites: &[&Site]) -> Candidate {
    let bound_ns: u64 = sites.iter().map(|site| site.sum_ns).sum();
    let waits: u64 = sites.iter().map(|site| site.count).sum();
    let mean_ns = mean(bound_ns, waits);
    let longest = sites.iter().map(|site| site.max_ns).max().unwrap_or(0);
    let answers = view
        .statements()
        .filter(|row| !statements::is_client(&row.role));
    let (answered, answers_ns) = answers.fold((0, 0), |(n, ns), row| {
        (n + row.count, ns + statements::in_hand_ns(row))
    });
    let of_answers = ratio(bound_ns, answers_ns).min(1.0);
    let share = match answered {
        0 => ratio(bound_ns, view.lifetime_ns()),
        _ => of_answers,
    };
    let mut found = Candidate::new(format!("locks: {what}"), bound_ns, share);
    found.area = DATABASE;
    found.delegate = DATABASE_SPECIALIST;
    found.confidence = 0.9;
    found.effort = Level::Medium;
    found.subject = format!("locks of the database: {what}");
    let of_them = match answered {
        0 => String::new(),
        _ => format!(", {:.0} % of the time its answers take", 100.0 * of_answers),
    };
    let how_often = match waits {
        // Behind a transaction that is left open.
        0 => "none of these waits ended".to_owned(),
        _ => format!(
            "{} waits a second, {} each",
            units::count(view.per_s(waits)),
            units::duration(mean_ns),
        ),
    };
    found.title = format!(
        "Waits {} for {}{of_them}: {how_often}",
        units::duration_per_s(view.per_s(bound_ns)),
        subject(what),
    );
    found.evidence = vec![
        evidence("wait", view.per_s(bound_ns) as f64, "ns/s", waits),
        evidence("waits", view.per_s(waits) as f64, "1/s", waits),
    ];
    if waits > 0 {
        found.evidence.extend([
            evidence("mean_wait", mean_ns as f64, "ns", waits),
            evidence("max_wait", longest as f64, "ns", waits),
        ]);
    }
    if answered > 0 {
        found
            .evidence
            .push(evidence("share_of_answers", of_answers, "ratio", answered));
    }
    found.recommendations = advice(what);
    found.stacks = top_stacks(sites.iter().copied());
    found
}

/// What is waited for, in a sentence.
fn subject(what: &str) -> String {
    match what {
        ROWS | TABLES => format!("locks of {what} that other transactions hold"),
        other => other.to_owned(),
    }
}

fn advice(what: &str) -> Vec<String> {
    let special = match what {
        ROWS => {
            "Change the row that all want last in its transaction, commit right behind it, and spread counters over several rows"
        }
        TABLES => {
            "Run DDL, VACUUM FULL and explicit LOCK TABLE apart from the load, with a lock_timeout, as all that follows queues behind them"
        }
        LOG => {
            "Commit less often (several statements in one transaction), put pg_wal on a faster disk, or set synchronous_commit = off where the last moments before a crash may be lost"
        }
        LIGHTWEIGHT => {
            "See which they are (wait_event of pg_stat_activity); fewer connections at work at a time, by a pool, is what helps most"
        }
        "advisory locks" => {
            "Hold the advisory lock for less, or use one for each thing it protects"
        }
        _ => "Keep transactions short: what they lock they hold to their end",
    };
    // Locks of statements and transactions have a holder to be asked for; of those inside the server none is shown.
    if [LOG, LIGHTWEIGHT].contains(&what) {
        return vec![special.to_owned()];
    }
    let ask = "While it lasts, ask the server who blocks whom: SELECT pid, pg_blocking_pids(pid), query FROM pg_stat_activity WHERE wait_event_type = 'Lock' (MariaDB, MySQL: sys.innodb_lock_waits)";
    let idle = "Look for transactions that are left open while their client does something else (idle_in_transaction)";
    [special, ask, idle].map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{asking_report, frame, report, site, statement, thread};
    use crate::model::{ProcessReport, StatementRow};

    const POSTGRES: &str = "/usr/lib/postgresql/15/bin/postgres";
    const MARIADB: &str = "/usr/sbin/mariadbd";

    fn waiting(class: &str, module: &str, stack: &[&str]) -> Site {
        let mut wait = site(class, "epoll_wait", 100, 400_000_000, None);
        wait.user_stack = stack.iter().map(|name| frame(name, module)).collect();
        wait
    }

    #[test]
    fn what_is_locked_is_told_by_the_function_that_asked_for_it() {
        let sleeps = [
            "epoll_wait",
            "WaitLatch",
            "ProcSleep",
            "LockAcquireExtended",
        ];
        for (of, what) in [
            (&["XactLockTableWait", "heap_update"][..], Some("rows")),
            (&["LockTuple", "heap_lock_tuple"], Some("rows")),
            (
                &["LockRelationForExtension", "RelationGetBufferForTuple"],
                Some("files that tables grow in"),
            ),
            (
                &["LockRelationOid", "RangeVarGetRelidExtended"],
                Some("tables"),
            ),
            (&["pg_advisory_lock_int8"], Some("advisory locks")),
            (&["LockSharedObject"], Some("locks of the database")),
            // Not what else was on the way there.
            (&["LockRelationOid", "LWLockAcquire"], Some("tables")),
        ] {
            let stack = [&sleeps[..], of].concat();
            assert_eq!(locked(&waiting("idle", POSTGRES, &stack)), what, "{of:?}");
            // Computing below such a function is no wait.
            assert_eq!(locked(&waiting("cpu", POSTGRES, &stack)), None);
        }
        for (function, what) in [("LWLockAcquireOrWait", LOG), ("LWLockAcquire", LIGHTWEIGHT)] {
            let stack = [
                "__new_sem_wait_slow64",
                "PGSemaphoreLock",
                function,
                "XLogFlush",
            ];
            assert_eq!(locked(&waiting("idle", POSTGRES, &stack)), Some(what));
            // On the way to sleep for a row.
            let stack = [&stack[..3], &["ProcSleep", "XactLockTableWait"]].concat();
            assert_eq!(locked(&waiting("idle", POSTGRES, &stack)), Some(ROWS));
        }
        // Somebody else's function of that name.
        let stack = ["pthread_cond_wait", "lock_wait(int)", "main"];
        assert_eq!(locked(&waiting("idle", "/usr/bin/app", &stack)), None);
        // Waiting for the next statement.
        let next = [
            "epoll_wait",
            "WaitEventSetWait",
            "secure_read",
            "PostgresMain",
        ];
        assert_eq!(locked(&waiting("idle", POSTGRES, &next)), None);
        for (function, what) in [
            (
                "MDL_wait::timed_wait(MDL_context_owner*, timespec*)",
                Some("tables"),
            ),
            ("lock_wait(que_thr_t*)", Some("rows")),
            ("lock_wait_timeout_task", None),
            ("Thread_cache::wait", None),
        ] {
            let stack = ["pthread_cond_timedwait", function, "do_command"];
            assert_eq!(
                locked(&waiting("idle", MARIADB, &stack)),
                what,
                "{function}"
            );
        }
    }

    fn backend() -> ProcessReport {
        let mut backend = report(
            "postgres",
            vec![thread(
                1,
                &[("cpu.user", 100_000_000), ("idle", 900_000_000)],
            )],
        );
        let rows = ["ProcSleep", "XactLockTableWait", "heap_update"];
        backend.profile.sites = vec![
            waiting("idle", POSTGRES, &rows),
            waiting("idle", POSTGRES, &["WaitEventSetWait", "secure_read"]),
        ];
        backend
    }

    #[test]
    fn waits_for_rows_are_a_finding_of_the_database_specialist() {
        let mut answers = backend();
        let row = StatementRow {
            role: "server".to_owned(),
            ..statement("UPDATE branches SET balance = ?", 100, 5_000_000)
        };
        answers.statements = asking_report(0, vec![row]).statements;
        let found = find(&View::new(&answers));
        let [found] = &found[..] else {
            panic!("{}", found.len());
        };
        assert_eq!(found.bound_ns, 400_000_000);
        assert_eq!(found.delegate, "database-specialist");
        let asks = |what| advice(what).iter().any(|a| a.contains("pg_blocking_pids"));
        assert_eq!([ROWS, LOG, LIGHTWEIGHT].map(asks), [true, false, false]);
        assert_eq!(
            found.title,
            "Waits 400 ms/s for locks of rows that other transactions hold, 80 % of the time its answers take: \
             100 waits a second, 4.00 ms each"
        );
    }

    #[test]
    fn a_wait_that_does_not_end_is_told_as_such() {
        let mut waits = backend();
        waits.profile.sites[0].count = 0;
        // Without statements it is a share of the thread's life.
        let found = &find(&View::new(&waits))[0];
        assert_eq!(found.share, 0.4);
        assert_eq!(
            found.title,
            "Waits 400 ms/s for locks of rows that other transactions hold: none of these waits ended"
        );
        let names: Vec<&str> = found.evidence.iter().map(|e| e.name.as_str()).collect();
        assert_eq!(names, ["wait", "waits"]);
    }
}
