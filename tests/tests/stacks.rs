//! Stacks and locks by name.

use perf_agent_tests::agent::{self, Run};
use perf_agent_tests::traced::Traced;
use perf_agent_tests::{PATIENCE, alone};
use serde_json::Value;

/// Traces a workload in the middle of its work.
fn trace(workload: &str) -> Run {
    let mut program = Traced::workload(&[workload, "--seconds", "30"]);
    program.go();
    let pid = program.pid().to_string();
    let run = agent::run(["trace", "-p", &pid, "--duration", "2s"], PATIENCE);
    run.ended_well("duration");
    run
}

/// The largest site of a class over all windows, and its share of the class.
fn top_site<'a>(run: &'a Run, class: &str) -> (&'a Value, f64) {
    let sites: Vec<&Value> = run
        .of_type("profile")
        .flat_map(|line| line["sites"].as_array().unwrap())
        .filter(|site| site["class"] == class)
        .collect();
    let sum = |site: &Value| site["sum_ns"].as_u64().unwrap();
    let total: u64 = sites.iter().map(|site| sum(site)).sum();
    let top = sites.iter().max_by_key(|site| sum(site));
    let top = top.unwrap_or_else(|| panic!("no {class} site in {}", run.text));
    let same = sites
        .iter()
        .filter(|s| s["user_stack"] == top["user_stack"]);
    (top, same.map(|s| sum(s)).sum::<u64>() as f64 / total as f64)
}

fn frames(site: &Value) -> Vec<&str> {
    let frames = site["user_stack"].as_array().unwrap();
    frames.iter().map(|f| f["name"].as_str().unwrap()).collect()
}

#[test]
fn the_hot_function_has_the_samples() {
    let _alone = alone();
    let run = trace("cpu");
    let (site, _) = top_site(&run, "cpu.user");
    assert_eq!(
        frames(site).first(),
        Some(&"multiply_matrices_forever"),
        "{site}"
    );
    let hot: u64 = run
        .of_type("profile")
        .flat_map(|line| line["sites"].as_array().unwrap())
        .filter(|site| frames(site).first() == Some(&"multiply_matrices_forever"))
        .map(|site| site["sum_ns"].as_u64().unwrap())
        .sum();
    let user = run.sum("ledger", "/process/classes/cpu.user");
    assert!(hot > user / 10 * 8, "{hot} ns of {user} ns");
}

#[test]
fn a_lock_wait_has_its_caller_its_address_and_its_waker() {
    let _alone = alone();
    let run = trace("lockfight");
    let (site, share) = top_site(&run, "lock");
    assert!(
        frames(site)
            .iter()
            .any(|f| f.contains("update_shared_account")),
        "{site}"
    );
    assert!(share > 0.8, "{share} of the lock time: {site}");
    assert_eq!(site["syscall"], "futex", "{site}");
    let address = &site["detail"]["address"];
    let locks: Vec<&Value> = run
        .of_type("profile")
        .flat_map(|line| line["locks"].as_array().unwrap())
        .filter(|lock| lock["address"] == *address)
        .collect();
    let total = |of: &Value| of["sum_ns"].as_u64().unwrap();
    let waited: u64 = locks.iter().map(|lock| total(lock)).sum();
    assert!(waited > 0, "no lock {address} in {}", run.text);
    // Whose turn it is changes with each preemption: up to 12 pairs, of which five have rows.
    let rows = || {
        locks
            .iter()
            .flat_map(|lock| lock["wakers"].as_array().unwrap())
    };
    for row in rows() {
        let fights = |field: &str| row[field].as_str().unwrap().starts_with("fighter-");
        assert!(
            fights("waker_comm") && fights("waiter_comm") && row["waker_tid"] != row["waiter_tid"],
            "{row}"
        );
    }
    let rest = locks.iter().filter_map(|lock| lock.get("waker_rest"));
    let woken = rows().chain(rest).map(total).sum::<u64>();
    assert!(
        woken > waited / 100 * 95,
        "{woken} of {waited} ns: {locks:?}"
    );
}

#[test]
fn the_sites_and_the_rest_make_up_what_the_ledger_says_was_blocked() {
    let _alone = alone();
    let run = trace("lockfight");
    for profile in run.of_type("profile") {
        let ledger = run
            .of_type("ledger")
            .find(|l| l["pid"] == profile["pid"] && l["window"] == profile["window"])
            .unwrap_or_else(|| panic!("no ledger beside {profile}"));
        for class in ["lock", "timer"] {
            let of_sites: u64 = profile["sites"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|site| site["class"] == class)
                .map(|site| site["sum_ns"].as_u64().unwrap())
                .sum();
            let sites = of_sites + profile["rest"][class].as_u64().unwrap_or(0);
            let booked = ledger["process"]["classes"][class].as_u64().unwrap_or(0);
            assert!(
                sites.abs_diff(booked) <= booked / 100 + 1_000_000,
                "{class}: sites {sites} ns, ledger {booked} ns\n{profile}"
            );
        }
    }
}
