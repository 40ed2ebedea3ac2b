//! The gallery: of each sick program the right thing is found first, for the right one to act on, with a
//! bound near what its healthy twin really gains, and of the twin nothing that matters.

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
        let loud = run.of_type("finding").filter(|f| f["impact"] != "low");
        assert_eq!(loud.count(), 0, "{}", run.text);
    }
}
