//! Who holds a lock, for how long, what it does meanwhile and where, against a program that measures
//! all of it by its own clock.

use std::collections::{BTreeMap, BTreeSet};

use perf_agent_tests::agent::{Agent, Run};
use perf_agent_tests::traced::{Traced, disk_directory, program};
use perf_agent_tests::{PATIENCE, alone};
use serde_json::Value;

/// Short, because a line shows the eight locks most waited for: few come in one window so.
const WINDOW: [&str; 2] = ["--interval", "250ms"];

fn number(value: &Value, field: &str) -> u64 {
    let n = value[field].as_u64();
    n.unwrap_or_else(|| panic!("no {field} in {value}"))
}

/// What all lines say of holders of one lock, by thread.
#[derive(Default)]
struct Holder {
    comm: String,
    holds: u64,
    hold_ns: u64,
    sources: BTreeSet<String>,
    meanwhile: BTreeMap<String, u64>,
    released: BTreeSet<String>,
    blocked: BTreeSet<(String, String)>,
}

/// Rows of owners of the lock whose memory this is.
fn holders(run: &Run, truth: &Value) -> BTreeMap<u64, Holder> {
    let place = number(truth, "address")..number(truth, "address") + number(truth, "length");
    let mut holders: BTreeMap<u64, Holder> = BTreeMap::new();
    for lock in run
        .of_type("profile")
        .flat_map(|line| line["locks"].as_array().unwrap())
    {
        let address = lock["address"].as_str().unwrap().trim_start_matches("0x");
        if !place.contains(&u64::from_str_radix(address, 16).unwrap()) {
            continue;
        }
        for owner in lock["owners"].as_array().unwrap() {
            let holder = holders.entry(number(owner, "owner_tid")).or_default();
            holder.add(owner);
        }
    }
    holders
}

impl Holder {
    fn add(&mut self, owner: &Value) {
        let text = |field: &str| owner[field].as_str().unwrap_or_default().to_owned();
        let comm = text("owner_comm");
        // Its last hold may be in the window after its end.
        if !comm.is_empty() {
            self.comm = comm;
        }
        self.holds += number(owner, "holds");
        self.hold_ns += number(owner, "hold_ns");
        self.sources.insert(text("owner_source"));
        let mut sum = 0;
        for (class, ns) in owner["meanwhile"].as_object().unwrap() {
            let ns = ns.as_u64().unwrap();
            sum += ns;
            *self.meanwhile.entry(class.clone()).or_default() += ns;
        }
        assert_eq!(sum, number(owner, "hold_ns"), "meanwhile of {owner}");
        let names = |field: &str| -> Vec<String> {
            let frames = owner[field].as_array().into_iter().flatten();
            frames
                .map(|f| f["name"].as_str().unwrap().to_owned())
                .collect()
        };
        self.released.extend(names("release_stack"));
        let class = text("blocked_class");
        let frames = names("blocked_stack").into_iter();
        self.blocked
            .extend(frames.map(|name| (class.clone(), name)));
    }

    fn in_class(&self, class: &str) -> u64 {
        self.meanwhile.get(class).copied().unwrap_or(0)
    }
}

/// How the owner of each kind of lock is known.
fn source(lock: &str) -> &'static str {
    match lock {
        "pi" => "pi_word",
        "read" | "write" => "rwlock_word",
        "rust" | "reader" | "shared" => "waker",
        _ => "mutex_word",
    }
}

/// The trace, and what the program measured.
fn trace_held_locks() -> (Run, Vec<Value>) {
    let mut workload = Traced::workload(&["held-locks", "--hold"]);
    let pid = workload.pid().to_string();
    let agent = Agent::start(["trace", "-p", &pid].into_iter().chain(WINDOW));
    agent.attached();
    workload.go();
    let done = workload.done(3 * PATIENCE);
    workload.go();
    let run = agent.finish(PATIENCE);
    run.ended_well("target_exit").lost_nothing();
    (run, done.as_array().unwrap().clone())
}

/// What a sum may be short of the truth: a hundredth, and 200 µs for each hold.
fn slack(truth_ns: u64, holds: u64) -> u64 {
    truth_ns / 100 + 200_000 * holds
}

/// What the holder did, against its own clock. It measured from when it saw the other blocked, which is
/// up to `before_ns` later than the hold began. What was taken from it is CPU time to the ledger, and part of the
/// wait to its own clock: 7 ms of 161 once. A wait for a CPU of which no event told the
/// beginning or the end, before the hold or in it, is put right at the next switch, within the hold (8 ms of 160 in
/// one of 16 runs, 10 another time), and `inferred` says that there was one.
fn did_what_it_measured(what: &str, holder: &Holder, row: &Value, before_ns: u64, inferred: bool) {
    let class = row["class"].as_str().unwrap();
    let (held, cpu) = (number(row, "held_ns"), number(row, "cpu_ns"));
    let (got, want) = match class {
        "cpu" => (holder.in_class("cpu"), cpu),
        class => (holder.in_class(class) + holder.in_class("runq"), held - cpu),
    };
    let (taken, queued) = (number(row, "taken_ns"), number(row, "runq_ns"));
    let moved = match inferred {
        true => (holder.in_class("runq").saturating_sub(queued)).min(held / 10),
        false => 0,
    };
    let slack = slack(held, holder.holds) + taken + queued + moved;
    let unknown = holder.in_class("unknown");
    let what = format!(
        "{what}: {want} ns by its own clock, {:?}, {taken} ns taken, {queued} ns in the run queue",
        holder.meanwhile
    );
    assert!(got + unknown + slack >= want, "{what}");
    assert!(got <= want + before_ns + slack, "{what}");
    // A disk that is memory blocks nobody.
    if class == "cpu" || class == "disk" && want < held / 2 {
        return;
    }
    let function = row["function"].as_str().unwrap();
    let place = |(c, name): &(String, String)| c == class && name.contains(function);
    let blocked = &holder.blocked;
    assert!(blocked.iter().any(place), "{what}: {blocked:?}");
}

#[test]
fn holders_hold_times_and_what_they_did_are_what_the_program_measured() {
    let _alone = alone();
    let (run, truth) = trace_held_locks();
    let untold = |what: &str| run.sum("coverage", &format!("/inferred/{what}"));
    let inferred = untold("preemption") + untold("switch_in") > 0;
    let mut unnamed = 0;
    for row in truth.iter().filter(|row| row["function"].is_string()) {
        let (lock, class) = (
            row["lock"].as_str().unwrap(),
            row["class"].as_str().unwrap(),
        );
        let what = format!("{lock}, {class}");
        let mut holders = holders(&run, row);
        let holder = holders
            .remove(&number(row, "owner"))
            .unwrap_or_else(|| panic!("{what}: no holder {row} in {}", run.text));
        assert!(holders.is_empty(), "{what}: others {:?}", holders.keys());
        unnamed += is_unnamed(&holder.comm, row);
        assert_eq!(holder.holds, number(row, "holds"), "{what}");
        let sources: Vec<&str> = holder.sources.iter().map(String::as_str).collect();
        assert_eq!(sources, [source(lock)], "{what}");
        // It began after the one that waits asked for the lock and before the holder saw it blocked, and
        // ended after the holder's last reading of its clock and before the other had the lock.
        let (held, waited) = (number(row, "held_ns"), number(row, "waited_ns"));
        assert!(
            (held..=waited).contains(&holder.hold_ns),
            "{what}: held for {} ns, by the program's clock {held} to {waited} ns",
            holder.hold_ns
        );
        let unknown = holder.in_class("unknown");
        // Who had a lock first that does not name its owner was known when it let go.
        let most = match source(lock) {
            "waker" => held / 2,
            _ => held / 100,
        };
        assert!(unknown <= most, "{what}: {:?}", holder.meanwhile);
        did_what_it_measured(&what, &holder, row, holder.hold_ns - held, inferred);
        let released = holder
            .released
            .iter()
            .any(|name| name.contains("held_locks"));
        assert!(released, "{what}: {:?}", holder.released);
    }
    assert!(unnamed <= UNNAMED, "{unnamed}");
}

/// Of 30 holders, how many may have the name of their process: one that ends between the end of the window in which it
/// let go and the reading of names for that window never told its own (once in 28 runs, beside a slow disk).
const UNNAMED: usize = 4;

/// 1 where a holder has its process's name, 0 where it has its own.
fn is_unnamed(comm: &str, row: &Value) -> usize {
    let text = |field: &str| row[field].as_str().unwrap();
    let own = format!("{}-{}-h", text("lock"), text("class"));
    assert!(comm == own || comm == "workload", "{comm} is {row}");
    usize::from(comm != own)
}

#[test]
fn threads_that_hand_a_lock_on_have_each_its_own_time() {
    let _alone = alone();
    let (run, truth) = trace_held_locks();
    for row in truth.iter().filter(|row| row["class"] == "convoy") {
        let holders = holders(&run, row);
        let holder = holders
            .get(&number(row, "owner"))
            .unwrap_or_else(|| panic!("no holder {row} in {}", run.text));
        let what = format!("{} of {row}: {:?}", holder.comm, holder.meanwhile);
        // On a busy machine there are times when nobody waits.
        let times = number(row, "holds");
        assert!(
            (times / 2..=times).contains(&holder.holds),
            "{} holds, {what}",
            holder.holds
        );
        // From the wake-up to the return of the call it waits for a CPU, which it cannot measure.
        let held = number(row, "held_ns");
        let got = holder.hold_ns - holder.in_class("runq");
        assert!(got <= held + slack(held, times), "{got} ns, {what}");
        let slept = number(row, "slept_ms") * 1_000_000 * holder.holds;
        let got = holder.in_class("timer") + holder.in_class("unknown");
        assert!(got >= slept / 10 * 8, "{got} ns, {what}");
    }
}

#[test]
fn of_a_condition_nobody_is_said_to_be_the_holder_but_who_notified() {
    let _alone = alone();
    let (run, truth) = trace_held_locks();
    let row = truth.iter().find(|row| row["class"] == "condition");
    let row = row.unwrap_or_else(|| panic!("no condition in {truth:?}"));
    let holders = holders(&run, row);
    let tids: Vec<u64> = holders.keys().copied().collect();
    assert_eq!(tids, [number(row, "owner")], "{}", run.text);
    let sources = holders.values().flat_map(|h| &h.sources);
    assert_eq!(sources.collect::<Vec<_>>(), ["waker"]);
}

#[test]
fn in_a_pid_namespace_the_ids_that_locks_hold_are_translated() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("truth");
    // Its processes count from 1 there, and so do the words of its locks.
    let script = format!(
        "exec {} held-locks --now --dir {} > {}",
        program("workload").display(),
        disk_directory().display(),
        json.display()
    );
    let arguments = ["trace"].into_iter().chain(WINDOW).chain([
        "--",
        "unshare",
        "--pid",
        "--fork",
        "--mount-proc",
        "sh",
        "-c",
        &script,
    ]);
    let agent = Agent::start(arguments);
    let run = agent.finish(4 * PATIENCE);
    run.ended_well("target_exit").lost_nothing();
    let text = std::fs::read_to_string(&json).unwrap();
    let done = text.lines().find_map(|line| line.strip_prefix("DONE "));
    let truth: Value = serde_json::from_str(done.unwrap()).unwrap();
    let mut unnamed = 0;
    for row in truth.as_array().unwrap() {
        if !row["function"].is_string() {
            continue;
        }
        let holders = holders(&run, row);
        assert_eq!(holders.len(), 1, "{row}: {:?}", holders.keys());
        for holder in holders.values() {
            unnamed += is_unnamed(&holder.comm, row);
            let sources: Vec<&str> = holder.sources.iter().map(String::as_str).collect();
            assert_eq!(sources, [source(row["lock"].as_str().unwrap())], "{row}");
        }
    }
    assert!(unnamed <= UNNAMED, "{unnamed}");
}

#[test]
fn the_finding_names_both_places_and_what_the_holder_does() {
    let _alone = alone();
    let mut workload = Traced::workload(&["lockfight", "--seconds", "30", "--realtime"]);
    workload.go();
    let pid = workload.pid().to_string();
    let run = Agent::start(["trace", "-p", &pid, "--duration", "2s"]).finish(PATIENCE);
    run.ended_well("duration");
    let finding = run
        .of_type("finding")
        .find(|finding| finding["category"] == "lock_contention")
        .unwrap_or_else(|| panic!("no finding in {}", run.text));
    let title = finding["title"].as_str().unwrap();
    for part in [
        "4 threads wait ",
        "taken in `perf_agent_tests::workloads::lockfight::update_shared_account`",
        "held there most by fighter-",
        "which meanwhile sleeps 9",
    ] {
        assert!(title.contains(part), "{part:?} in {title:?}");
    }
    let owner = &finding["owner"];
    assert_eq!(owner["owner_source"], "waker", "{finding}");
    assert_eq!(owner["blocked_class"], "timer", "{finding}");
    let figure = |name: &str| {
        let evidence = finding["evidence"].as_array().unwrap().iter();
        let value = evidence.filter(|e| e["name"] == name).map(|e| &e["value"]);
        value.map(|v| v.as_f64().unwrap()).next().unwrap_or(0.0)
    };
    // Each sleeps 2 ms with it.
    let mean = figure("mean_hold");
    assert!((2e6..3e6).contains(&mean), "mean hold {mean} ns");
}

#[test]
fn locks_past_the_room_there_is_are_counted() {
    let _alone = alone();
    let mut workload = Traced::workload(&["many-locks", "--hold"]);
    let pid = workload.pid().to_string();
    let agent = Agent::start(["trace", "-p", &pid]);
    agent.attached();
    workload.go();
    let done = workload.done(PATIENCE);
    workload.go();
    let run = agent.finish(PATIENCE);
    run.ended_well("target_exit");
    let lost = |reason: &str| run.the("bye")["lost"][reason].as_u64().unwrap_or(0);
    assert!(lost("lock_holds_full") > 0, "{}", run.the("bye"));
    assert!(lost("lock_holds_full") < number(&done, "locks"));
}
