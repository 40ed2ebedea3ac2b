//! The gallery: of each sick program the right thing is found first, for the right one to act on, with a
//! bound near what its healthy twin really gains, and of the twin nothing that matters.

use perf_agent_tests::rows::ROWS;
use perf_agent_tests::rows::row::Servers;
use perf_agent_tests::{alone, gallery};

#[test]
fn every_row_of_the_gallery_is_right() {
    let _alone = alone();
    let mut servers = Servers::default();
    let outcomes: Vec<_> = ROWS
        .iter()
        .map(|row| gallery::run(row, &mut servers))
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
