//! The gallery: of each sick program the right thing is found first, for the right one to act on, with a
//! bound near what its healthy twin really gains, and of the twin nothing that matters.

use std::process::Command;

use perf_agent_tests::agent::Run;
use perf_agent_tests::rows::ROWS;
use perf_agent_tests::rows::row::Servers;
use perf_agent_tests::servers::{self, Postgres};
use perf_agent_tests::{PATIENCE, agent, alone, gallery};

/// A row that is wrong is run once more: its two programs run one after the other, and a host that takes
/// CPU time from one of them makes a bound wrong that is not. What is wrong by itself is so twice.
#[test]
fn every_row_of_the_gallery_is_right() {
    let _alone = alone();
    let mut servers = Servers::default();
    let outcomes: Vec<_> = ROWS
        .iter()
        .map(|row| {
            let outcome = gallery::run(row, &mut servers);
            match outcome.wrong.is_empty() {
                true => outcome,
                false => gallery::run(row, &mut servers),
            }
        })
        .collect();
    let wrong: Vec<String> = outcomes
        .iter()
        .filter(|outcome| !outcome.wrong.is_empty())
        .map(|outcome| format!("{}: {}", outcome.name, outcome.wrong.join("; ")))
        .collect();
    assert!(
        wrong.is_empty(),
        "{}\n{}",
        wrong.join("\n"),
        gallery::table(&outcomes)
    );
}

#[test]
fn servers_that_nobody_asks_have_nothing_that_matters() {
    let _alone = alone();
    let postgres = Postgres::start();
    let (redis, _) = servers::redis();
    for pid in [postgres.server.pid(), redis.pid()] {
        let pid = pid.to_string();
        let run = agent::run(["trace", "-p", &pid, "--duration", "3s"], PATIENCE);
        run.ended_well("duration");
        nothing_above_low(&run);
    }
}

fn nothing_above_low(run: &Run) {
    let loud: Vec<_> = run
        .of_type("finding")
        .filter(|f| f["impact"] != "low")
        .collect();
    assert!(loud.is_empty(), "{loud:#?} in {}", run.text);
}

#[test]
fn servers_and_clients_with_time_to_spare_have_nothing_that_matters() {
    let _alone = alone();
    let postgres = Postgres::start();
    let mut paced = postgres.pgbench();
    paced.args([
        "-n", "-S", "-M", "prepared", "-c", "2", "-R", "60", "-T", "3", "postgres",
    ]);
    let client = agent::trace_command(&paced);
    client.ended_well("target_exit");
    let asked = |run: &Run, role: &str| {
        let lines = run.of_type("statements");
        let rows = lines.flat_map(|line| line["statements"].as_array().unwrap().clone());
        let of_role = rows.filter(|row| row["role"] == *role);
        of_role
            .map(|row| row["count"].as_u64().unwrap())
            .sum::<u64>()
    };
    // 60 a second for 3 s, at random.
    assert!(asked(&client, "client") > 100, "{}", client.text);
    nothing_above_low(&client);
    let server = agent::trace_during(postgres.server.pid(), paced);
    server.ended_well("interrupt");
    assert!(asked(&server, "server") > 100, "{}", server.text);
    nothing_above_low(&server);

    let (redis, port) = servers::redis();
    let mut cli = Command::new("redis-cli");
    cli.args([
        "-p",
        &port.to_string(),
        "-r",
        "200",
        "-i",
        "0.01",
        "INCR",
        "visits",
    ]);
    let server = agent::trace_during(redis.pid(), cli);
    server.ended_well("interrupt");
    assert!(asked(&server, "server") >= 200, "{}", server.text);
    nothing_above_low(&server);
}
