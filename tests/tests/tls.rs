//! Statements inside TLS, against pgbench's own log.

use std::process::Command;

use perf_agent_tests::agent::{Agent, Run};
use perf_agent_tests::servers::{self, Postgres};
use perf_agent_tests::{PATIENCE, alone};
use serde_json::Value;

const SELECT: &str =
    "\\set aid random(1, 100000)\nSELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n";

/// Traces a command from its first instruction, in one window.
fn trace_command(command: &Command) -> Run {
    let mut words: Vec<String> = ["trace", "--tls", "on", "--interval", "100s", "--"]
        .map(str::to_owned)
        .to_vec();
    words.push(command.get_program().to_string_lossy().into_owned());
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    let mut agent = Command::new(perf_agent_tests::agent::binary());
    agent.args(&words);
    for (name, value) in command.get_envs() {
        agent.env(name, value.unwrap_or_default());
    }
    if let Some(directory) = command.get_current_dir() {
        agent.current_dir(directory);
    }
    Agent::start_command(agent, words).finish(4 * PATIENCE)
}

fn rows<'a>(run: &'a Run, kind: &'a str, field: &'a str) -> impl Iterator<Item = &'a Value> {
    run.of_type(kind)
        .flat_map(move |line| line[field].as_array().into_iter().flatten())
}

fn selects(run: &Run, role: &str) -> u64 {
    rows(run, "statements", "statements")
        .filter(|r| r["role"] == role && r["protocol"] == "postgresql")
        .filter(|r| {
            r["text"]
                .as_str()
                .is_some_and(|t| t.contains("pgbench_accounts"))
        })
        .map(|r| r["count"].as_u64().unwrap())
        .sum()
}

#[test]
fn a_client_over_tls_is_counted_as_it_counts_itself() {
    let _alone = alone();
    let postgres = Postgres::start_tls();
    for mode in ["simple", "extended", "prepared"] {
        let log = format!("tls-{mode}");
        let run = trace_command(&postgres.transactions_over_tls(mode, SELECT, (4, 500), &log));
        run.ended_well("target_exit").lost_nothing();
        assert_eq!(postgres.latencies_us(&log).len(), 2000);
        assert_eq!(selects(&run, "client"), 2000, "{mode}: {}", run.text);
        for row in rows(&run, "connections", "connections") {
            assert_eq!(row["tls"], true, "{mode}: {row}");
            assert_eq!(row["protocol"], "postgresql", "{mode}: {row}");
        }
    }
}

#[test]
fn a_server_that_ran_before_the_trace_is_counted_over_tls() {
    let _alone = alone();
    let postgres = Postgres::start_tls();
    let agent = Agent::start([
        "trace",
        "--tls",
        "on",
        "-p",
        &postgres.server.pid().to_string(),
    ]);
    agent.attached();
    servers::to_end(postgres.transactions_over_tls("prepared", SELECT, (4, 500), "server"));
    agent.interrupt();
    let run = agent.finish(PATIENCE);
    run.ended_well("interrupt").lost_nothing();
    assert_eq!(postgres.latencies_us("server").len(), 2000);
    // Backends that live for less than a second have no lines; theirs are counted in `coverage`, with
    // the few that pgbench makes beside its script.
    let counted = selects(&run, "server");
    let unattributed = run.sum("coverage", "/sockets/unattributed_statements");
    assert!(
        counted <= 2000 && (2000..=2020).contains(&(counted + unattributed)),
        "{counted} and {unattributed}: {}",
        run.text
    );
}
