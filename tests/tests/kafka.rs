//! Kafka between a real broker and a real client: requests by API as the client counts them.

use std::collections::BTreeMap;

use perf_agent_tests::agent::{self, Agent, Run};
use perf_agent_tests::servers;
use perf_agent_tests::{PATIENCE, alone};
use serde_json::Value;

/// Requests by the first word of their text, the API.
fn counted(run: &Run, role: &str) -> BTreeMap<String, u64> {
    let lines = run.of_type("statements");
    let rows = lines.flat_map(|line| line["statements"].as_array().unwrap());
    let mut counts = BTreeMap::new();
    for row in rows.filter(|row| row["role"] == role) {
        assert_eq!(row["protocol"], "kafka", "{row}");
        assert_eq!(row["errors"], 0, "{row}");
        let text = row["text"].as_str().unwrap();
        let api = text.split(' ').next().unwrap().to_owned();
        *counts.entry(api).or_default() += row["count"].as_u64().unwrap();
    }
    counts
}

fn anomalies(run: &Run) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for line in run.of_type("coverage") {
        for (what, n) in line["sockets"]["anomalies"].as_object().unwrap() {
            *all.entry(what.clone()).or_default() += n.as_u64().unwrap();
        }
    }
    all
}

fn trace(arguments: &[&str]) -> Agent {
    Agent::start([&["trace", "--stacks", "off"], arguments].concat())
}

#[test]
fn requests_of_a_client_are_counted_by_api_as_it_counts_them_on_both_sides() {
    let _alone = alone();
    for role in ["server", "client"] {
        let (broker, port) = servers::kafka();
        let mut client = servers::kafka_client(port);
        let (run, output) = if role == "server" {
            let agent = trace(&["-p", &broker.pid().to_string()]);
            agent.attached();
            let output = client.output().unwrap();
            servers::until_it_sleeps(broker.pid());
            agent.interrupt();
            (agent.finish(PATIENCE), output.stdout)
        } else {
            // What it prints comes on the agent's standard error: the output has lines alone.
            let run = agent::trace_command_with(&["trace", "--stacks", "off"], &client);
            run.ended_well("target_exit");
            let own = run.errors.lines().find(|line| line.starts_with('{'));
            let own = own.unwrap_or_else(|| panic!("no counts: {}", run.errors));
            let own = own.as_bytes().to_vec();
            (run, own)
        };
        run.lost_nothing();
        let own: Value = serde_json::from_slice(&output).unwrap();
        let [sent, answered] = ["sent", "answered"].map(|what| -> BTreeMap<String, u64> {
            serde_json::from_value(own[what].clone()).unwrap()
        });
        assert_eq!(
            (own["read"].as_u64(), answered["Produce"]),
            (Some(300), 300)
        );
        let counted = counted(&run, role);
        assert_eq!(counted, answered, "{role}: {sent:?} {}", run.text);
        let unanswered = sent.values().sum::<u64>() - answered.values().sum::<u64>();
        let expected: BTreeMap<String, u64> = (unanswered > 0)
            .then(|| ("unanswered".to_owned(), unanswered))
            .into_iter()
            .collect();
        assert_eq!(anomalies(&run), expected, "{role}: {}", run.text);
    }
}
