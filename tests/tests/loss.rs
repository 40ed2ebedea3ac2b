//! What is lost is counted, and what is not lost is still right.

use perf_agent_tests::agent::{Agent, Run};
use perf_agent_tests::traced::Traced;
use perf_agent_tests::truth::{self, Demands};
use perf_agent_tests::{PATIENCE, alone};

fn lost(run: &Run, reason: &str) -> u64 {
    run.the("bye")["lost"][reason].as_u64().unwrap_or(0)
}

#[test]
fn received_and_lost_make_up_what_was_generated_when_the_ring_is_tiny() {
    let _alone = alone();
    let mut program = Traced::workload(&["forker", "--seconds", "2", "--hold"]);
    let pid = program.pid().to_string();
    let agent = Agent::start(["trace", "-p", &pid, "--ring-bytes", "4096"]);
    agent.attached();
    program.go();
    program.done(PATIENCE);
    agent.interrupt();
    let run = agent.finish(PATIENCE);
    run.ended_well("interrupt");
    let bye = run.the("bye");
    let count = |field: &str| bye[field].as_u64().unwrap();
    assert!(lost(&run, "ring_full") > 0, "nothing was lost: {bye}");
    assert!(count("received") > 0, "nothing was received: {bye}");
    assert_eq!(
        count("received") + lost(&run, "ring_full"),
        count("generated"),
        "{bye}"
    );
    for field in ["generated", "received", "lost/ring_full"] {
        let windows = run.sum("coverage", &format!("/{field}"));
        let all = bye.pointer(&format!("/{field}")).unwrap();
        assert_eq!(
            windows,
            all.as_u64().unwrap(),
            "{field} over the windows: {}",
            run.text
        );
    }
}

/// What the agent told, and what the program measured.
fn trace_truth(options: &[&str]) -> (Run, Vec<truth::Measured>) {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("truth.json");
    let mut program = Traced::truth(&json);
    let pid = program.pid().to_string();
    let arguments = ["trace", "-p", &pid]
        .into_iter()
        .chain(options.iter().copied());
    let agent = Agent::start(arguments);
    agent.attached();
    program.go();
    let run = agent.finish(PATIENCE);
    assert!(program.end(PATIENCE).success());
    run.ended_well("target_exit");
    let text = std::fs::read_to_string(&json).unwrap();
    let measured = truth::measured(&serde_json::from_str(&text).unwrap()).unwrap();
    (run, measured)
}

#[test]
fn threads_that_find_no_room_are_counted_and_the_others_are_right() {
    let _alone = alone();
    const ROOM: usize = 6;
    let (run, mut measured) = trace_truth(&["--max-threads", &ROOM.to_string()]);
    let booked = truth::booked(&run.lines).unwrap();
    let lost = lost(&run, "threads_full");
    assert!(lost > 0, "nothing was lost: {}", run.text);
    assert!(!booked.is_empty(), "nothing was booked: {}", run.text);
    measured.retain(|m| booked.contains_key(&m.tid));
    let rows = truth::compare(&measured, &booked, Demands::default());
    let table = truth::table(&rows);
    assert!(rows.iter().all(truth::Row::holds), "{table}");
}

#[test]
fn sites_that_find_no_room_are_counted_and_the_ledger_is_whole() {
    let _alone = alone();
    let (run, measured) = trace_truth(&["--max-sites", "4"]);
    assert!(
        lost(&run, "sites_full") > 0,
        "nothing was lost: {}",
        run.text
    );
    let booked = truth::booked(&run.lines).unwrap();
    let rows = truth::compare(&measured, &booked, Demands::default());
    let table = truth::table(&rows);
    assert!(rows.iter().all(truth::Row::holds), "{table}");
}
