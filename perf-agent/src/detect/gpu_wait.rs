//! Waiting for an accelerator (a GPU), and an accelerator that waits for its program.
//!
//! A thread that waits after each short piece of work pays the way to the device and back each time; a
//! thread whose accelerator computes for long waits as it should, and gains little. A thread that
//! drives an accelerator and waits for something else meanwhile leaves the accelerator idle.

use super::settings::{Share, Time, thresholds};
use super::view::{View, mean, own_function, ratio};
use super::{Candidate, Explain, evidence, top_stacks};
use crate::model::{AcceleratorCall, Level, Site};
use crate::sink::units;

thresholds! {
    /// A wait for the accelerator that is shorter than this, on average, is dominated by the way there
    /// and back: a launch and the wake-up after it take some 10 to 50 µs.
    short_wait: Time = Time(1_000_000),
    /// Short waits a second from which they are a habit.
    often_per_s: u64 = 100,
    /// Share of the time a thread that drives an accelerator must wait for its input for the
    /// accelerator to count as starved.
    starved: Share = Share(0.2),
    /// How many times longer that must be than its waits for the accelerator.
    times_longer: f64 = 2.0,
}

const ML_ORCHESTRATOR: &str = "ml-orchestrator";

pub const EXPLAIN: Explain = Explain {
    looks_at: "calls into the libraries of CUDA and ROCm that wait for the accelerator, blocked or spinning, and what the threads that make them wait for besides",
    numbers: &[
        (
            "wait",
            "thread time blocked in calls that wait for the accelerator, a second",
        ),
        ("spin", "CPU time in them, a second"),
        ("waits", "how often they blocked, a second"),
        ("mean_wait", "length of one"),
        ("share_of_wall", "both, as a share of the wall time"),
        (
            "input_wait",
            "thread time waiting for input by threads that drive the accelerator, a second",
        ),
    ],
    bound: "time in calls that wait for the accelerator, blocked and spinning; where it is \
               starved, what the threads that drive it wait for their input.",
    confidence: "0.75 for many short waits, which are mostly the way there and back; 0.5 where \
               threads spin; 0.4 for long waits, in which the accelerator may compute as it \
               should; 0.6 where it is starved, as drivers are known by their outermost \
               function alone.",
    next: "Put a profile of the accelerator beside it (Nsight Systems, rocprof): gaps between kernels are what is lost here.",
};

/// Classes in which a thread waits for its input: a queue's condition variable, a pipe, files, peers.
fn is_input(class: &str) -> bool {
    matches!(class, "idle" | "ipc" | "disk" | "fault" | "lock") || class.starts_with("net.")
}

pub fn find(view: &View) -> Vec<Candidate> {
    let calls = &view.profile.accelerator;
    if calls.is_empty() {
        return Vec::new();
    }
    let waits: Vec<&AcceleratorCall> = calls.iter().filter(|call| call.waits).collect();
    let mut found = Vec::new();
    found.extend(waiting(view, &waits));
    found.extend(starved(view, calls, &waits));
    found
}

fn sum(calls: &[&AcceleratorCall], of: fn(&AcceleratorCall) -> u64) -> u64 {
    calls.iter().map(|call| of(call)).sum()
}

fn waiting(view: &View, waits: &[&AcceleratorCall]) -> Option<Candidate> {
    let set = &view.settings.rules.gpu_wait;
    let (blocked_ns, spun_ns) = (sum(waits, |c| c.blocked_ns), sum(waits, |c| c.cpu_ns));
    let blocks = sum(waits, |c| c.blocks);
    let (first, bound_ns) = (waits.first()?, blocked_ns + spun_ns);
    let mean_ns = mean(blocked_ns, blocks);
    let short = mean_ns < set.short_wait.0 && view.per_s(blocks) >= set.often_per_s;
    let share = ratio(bound_ns, view.wall_ns());
    let mut found = Candidate::new(place(first), bound_ns, share.min(1.0));
    of_ml(&mut found);
    found.subject = format!("waits for the accelerator in `{}`", place(first));
    let total = units::duration_per_s(view.per_s(bound_ns));
    let spins = spun_ns > blocked_ns;
    found.title = match (spins, short) {
        (true, _) => format!(
            "Threads spin {total} in `{}` until the accelerator is through",
            first.call
        ),
        (false, true) => format!(
            "Threads wait {total} for the accelerator, {} times a second for {} each, in `{}`",
            units::rate(view.per_s(blocks) as f64),
            units::duration(mean_ns),
            place(first)
        ),
        (false, false) => format!(
            "Threads wait {total} for the accelerator while it computes, {} each time, in `{}`",
            units::duration(mean_ns),
            place(first)
        ),
    };
    // What it computes is not lost; how long it computes cannot be told from here.
    (found.confidence, found.impact_cap) = match (spins, short) {
        (false, true) => (0.75, Level::High),
        (true, _) => (0.5, view.cpu_impact_cap()),
        (false, false) => (0.4, Level::Low),
    };
    found.recommendations = recommendations(spins, short, first);
    found.evidence = vec![
        evidence("wait", view.per_s(blocked_ns) as f64, "ns/s", blocks),
        evidence(
            "spin",
            view.per_s(spun_ns) as f64,
            "ns/s",
            waits.len() as u64,
        ),
        evidence("waits", view.per_s(blocks) as f64, "1/s", blocks),
        evidence("mean_wait", mean_ns as f64, "ns", blocks),
        evidence("share_of_wall", share, "ratio", blocks),
    ];
    let in_call = |site: &&Site| site.user_stack.iter().any(|f| f.name == first.call);
    found.stacks = top_stacks(view.sites(|_| true).filter(in_call));
    Some(found)
}

fn recommendations(spins: bool, short: bool, first: &AcceleratorCall) -> Vec<String> {
    let call = &first.call;
    let batch = format!(
        "Wait once for a batch of work, not after each piece: queue what depends on each other on one \
         stream and call `{call}` where a result is needed"
    );
    let overlap = "Do the next step's work on the CPU while the accelerator computes (a second stream, \
                   asynchronous copies from pinned memory)";
    let block = "Where the CPU has other work, wait blocked and not spinning \
                 (cudaDeviceScheduleBlockingSync, hipDeviceScheduleBlockingSync)";
    let graph = "Launch many small kernels as one graph, or fuse them";
    match (spins, short) {
        (true, _) => vec![block.to_owned(), batch, overlap.to_owned()],
        (false, true) => vec![batch, graph.to_owned(), overlap.to_owned()],
        (false, false) => vec![
            overlap.to_owned(),
            "If the accelerator is busy all the time, the kernels themselves are what to look at"
                .to_owned(),
        ],
    }
}

/// A thread that drives the accelerator is known by its outermost function.
fn starved(
    view: &View,
    calls: &[AcceleratorCall],
    waits: &[&AcceleratorCall],
) -> Option<Candidate> {
    let set = &view.settings.rules.gpu_wait;
    let roots: Vec<&str> = calls.iter().filter_map(|c| c.root.as_deref()).collect();
    let drives = |site: &&Site| {
        let mut frames = site.user_stack.iter().rev();
        let root = frames.find(|f| super::is_own(f)).map(super::label);
        root.is_some_and(|root| roots.contains(&root.as_str()))
    };
    let in_accelerator = |site: &Site| {
        let mut names = site.user_stack.iter().map(|f| f.name.as_str());
        names.any(|name| calls.iter().any(|call| call.call == name))
    };
    let inputs: Vec<&Site> = view
        .sites(is_input)
        .filter(drives)
        .filter(|site| !in_accelerator(site))
        .collect();
    let bound_ns: u64 = inputs.iter().map(|site| site.sum_ns).sum();
    let at_work = sum(waits, |c| c.blocked_ns + c.cpu_ns);
    let share = ratio(bound_ns, view.wall_ns());
    if share < set.starved.0 || (bound_ns as f64) < set.times_longer * at_work as f64 {
        return None;
    }
    let largest = inputs.iter().max_by_key(|site| site.sum_ns)?;
    let place = own_function(largest).unwrap_or_else(|| largest.class.clone());
    let mut found = Candidate::new(format!("input {place}"), bound_ns, share.min(1.0));
    of_ml(&mut found);
    found.confidence = 0.6;
    found.subject = format!("input of the accelerator in `{place}`");
    found.title = format!(
        "The accelerator is starved: threads that drive it wait {} for input in `{place}`, and {} for it",
        units::duration_per_s(view.per_s(bound_ns)),
        units::duration_per_s(view.per_s(at_work)),
    );
    found.recommendations = [
        "Load ahead: more workers of the data loader, a longer queue between them and the training loop",
        "Make loading cheaper: decode and augment beforehand, larger files read in sequence, on the \
         accelerator itself",
        "Copy from pinned memory while the step before computes",
    ]
    .map(str::to_owned)
    .to_vec();
    let count: u64 = inputs.iter().map(|site| site.count).sum();
    found.evidence = vec![
        evidence("input_wait", view.per_s(bound_ns) as f64, "ns/s", count),
        evidence(
            "wait",
            view.per_s(at_work) as f64,
            "ns/s",
            sum(waits, |c| c.blocks),
        ),
        evidence("share_of_wall", share, "ratio", count),
    ];
    found.stacks = top_stacks(inputs);
    Some(found)
}

fn of_ml(found: &mut Candidate) {
    found.area = "ml_performance";
    found.delegate = ML_ORCHESTRATOR;
}

/// Where in the program the call is made.
fn place(call: &AcceleratorCall) -> String {
    call.caller.clone().unwrap_or_else(|| call.call.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{frame, report, site, thread};
    use crate::model::ProcessReport;

    const APP: &str = "/usr/bin/train";

    fn call(waits: bool, blocks: u64, blocked_ns: u64, cpu_ns: u64) -> AcceleratorCall {
        AcceleratorCall {
            call: "cuStreamSynchronize".into(),
            waits,
            caller: Some("train_step".into()),
            root: Some("main".into()),
            blocks,
            blocked_ns,
            cpu_ns,
        }
    }

    fn with(calls: Vec<AcceleratorCall>) -> ProcessReport {
        let times = [("idle", 900_000_000), ("cpu.user", 100_000_000)];
        let mut report = report("train", vec![thread(1, &times)]);
        report.profile.accelerator = calls;
        report
    }

    #[test]
    fn many_short_waits_matter_and_few_long_ones_are_the_accelerator_at_work() {
        let found = find(&View::new(&with(vec![call(true, 5_000, 800_000_000, 0)])));
        assert_eq!(
            found[0].title,
            "Threads wait 800 ms/s for the accelerator, 5,000 times a second for 160 µs each, in `train_step`"
        );
        assert_eq!(
            (found[0].delegate, found[0].area),
            (ML_ORCHESTRATOR, "ml_performance")
        );
        assert_eq!(
            (found[0].bound_ns, found[0].impact_cap),
            (800_000_000, Level::High)
        );
        let found = find(&View::new(&with(vec![call(true, 50, 800_000_000, 0)])));
        assert_eq!((found.len(), found[0].impact_cap), (1, Level::Low));
    }

    #[test]
    fn spinning_is_cpu_time_and_matters_as_far_as_the_cpu_is_short() {
        let found = find(&View::new(&with(vec![call(true, 1, 1_000, 90_000_000)])));
        assert!(
            found[0].title.contains("spin 90.0 ms/s"),
            "{}",
            found[0].title
        );
        assert_eq!(found[0].impact_cap, Level::Low);
    }

    #[test]
    fn a_thread_that_drives_the_accelerator_and_waits_for_input_starves_it() {
        let mut report = with(vec![call(true, 20, 100_000_000, 0)]);
        let wait = |functions: [&str; 2]| {
            let mut site = site("idle", "futex", 20, 700_000_000, None);
            site.user_stack = functions.map(|name| frame(name, APP)).to_vec();
            site
        };
        report.profile.sites = vec![wait(["next_batch", "main"]), wait(["sleep", "worker"])];
        let found = find(&View::new(&report));
        assert_eq!(found.len(), 2);
        assert_eq!(found[1].bound_ns, 700_000_000);
        assert_eq!(
            found[1].title,
            "The accelerator is starved: threads that drive it wait 700 ms/s for input in `next_batch`, and 100 ms/s for it"
        );
        // It computes most of the time: the rest is not what holds it up.
        report.profile.accelerator = vec![call(true, 20, 600_000_000, 0)];
        assert_eq!(find(&View::new(&report)).len(), 1);
        report.profile.accelerator.clear();
        assert!(find(&View::new(&report)).is_empty());
    }
}
