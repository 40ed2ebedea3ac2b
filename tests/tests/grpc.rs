//! gRPC between real peers (grpcio, whose transport is a C++ one with threads of its own): calls by method
//! and status as both ends count them.

use std::process::Command;

use perf_agent_tests::agent::{self, Agent, Run};
use perf_agent_tests::servers::{Calls, GrpcServer};
use perf_agent_tests::{PATIENCE, alone};
use serde_json::Value;

fn rows<'a>(run: &'a Run, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    run.of_type(kind)
        .flat_map(move |line| line[kind].as_array().into_iter().flatten())
}

/// Calls as the agent counted them: those without an error have status 0.
fn counted(run: &Run, role: &str) -> Calls {
    let mut calls = Calls::new();
    for row in rows(run, "statements").filter(|row| row["role"] == role) {
        assert_eq!(row["protocol"], "http2", "{row}");
        let method = row["text"].as_str().unwrap();
        let method = method.strip_prefix("POST ").unwrap_or(method);
        let mut good = row["count"].as_u64().unwrap();
        for (code, n) in row["errors_by_code"].as_object().unwrap() {
            let n = n.as_u64().unwrap();
            good -= n;
            let code = code.strip_prefix("grpc-").unwrap_or(code);
            *calls.entry(format!("{method} {code}")).or_default() += n;
        }
        if good > 0 {
            *calls.entry(format!("{method} 0")).or_default() += good;
        }
    }
    calls
}

fn own(calls: &Value) -> Calls {
    serde_json::from_value(calls.clone()).unwrap()
}

fn anomalies(run: &Run) -> Vec<&Value> {
    let lines = run.of_type("coverage");
    let anomalies = lines.map(|line| &line["sockets"]["anomalies"]);
    anomalies
        .filter(|a| a.as_object().is_none_or(|a| !a.is_empty()))
        .collect()
}

/// `--stacks off`: what is shown here is that all is read rightly, whatever else runs on the machine.
const OPTIONS: [&str; 5] = ["trace", "--stacks", "off", "--data-ring-bytes", "67108864"];

fn trace(pid: u32) -> Agent {
    let pid = pid.to_string();
    let agent = Agent::start(OPTIONS.into_iter().chain(["-p", &pid]));
    agent.attached();
    agent
}

fn end(agent: Agent) -> Run {
    agent.interrupt();
    let run = agent.finish(PATIENCE);
    run.ended_well("interrupt").lost_nothing();
    run
}

/// Traces a command from its first instruction, in one window.
fn trace_command(command: &Command) -> Run {
    let run = agent::trace_command_with(&OPTIONS, command);
    run.ended_well("target_exit").lost_nothing();
    run
}

#[test]
fn calls_are_counted_by_method_and_status_as_both_ends_count_them() {
    let _alone = alone();
    let mut server = GrpcServer::start();
    let agent = trace(server.traced.pid());
    // Traced itself, at the same time.
    let client = trace_command(&server.client_command(server.port));
    let served = end(agent);
    server.traced.go();
    let own = own(&server.traced.done(PATIENCE));
    assert_eq!(own.values().sum::<u64>(), 5 * 800, "{own:?}");
    assert_eq!(own["/perf.agent.Orders/Find 5"], 800);
    for (run, role) in [(served, "server"), (client, "client")] {
        assert_eq!(anomalies(&run), Vec::<&Value>::new(), "{role}");
        assert_eq!(counted(&run, role), own, "{role}: {}", run.text);
    }
}

#[test]
fn calls_on_a_connection_older_than_the_trace_are_counted_if_not_all_named() {
    let _alone = alone();
    let server = GrpcServer::start();
    for role in ["server", "client"] {
        let mut client = server.client();
        let agent = trace(match role {
            "server" => server.traced.pid(),
            _ => client.pid(),
        });
        client.go();
        let own = own(&client.done(PATIENCE));
        if role == "client" {
            client.go();
        }
        let run = match role {
            "server" => end(agent),
            _ => agent.finish(PATIENCE),
        };
        let counted = counted(&run, role);
        let all: u64 = own.values().sum();
        assert_eq!(counted.values().sum::<u64>(), all, "{role}: {}", run.text);
        // Path and status refer to header fields that were sent before: nothing is taken for one.
        let mut unseen = 0;
        for anomalies in anomalies(&run) {
            let anomalies = anomalies.as_object().unwrap();
            assert!(anomalies.keys().eq(["status_unseen"]), "{anomalies:?}");
            unseen += anomalies["status_unseen"].as_u64().unwrap();
        }
        let failed = |calls: &Calls| -> u64 {
            let failed = calls.iter().filter(|(call, _)| !call.ends_with(" 0"));
            failed.map(|(_, n)| n).sum()
        };
        let (seen, failed) = (failed(&counted), failed(&own));
        assert!(
            seen <= failed && failed <= seen + unseen && unseen <= all,
            "{role}: {seen} of {failed} failed, {unseen} unseen: {counted:?}"
        );
        for call in counted.keys() {
            let method = call.rsplit_once(' ').unwrap().0;
            let known = own.keys().any(|own| own.starts_with(method));
            assert!(
                known || ["?", "(headers unseen)"].contains(&method),
                "{call}"
            );
        }
    }
}
