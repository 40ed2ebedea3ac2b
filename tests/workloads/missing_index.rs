//! A visitor's visits are looked for by address in a table that has no index on it; the twin's has.

use std::io;
use std::time::Duration;

use super::postgres::Client;
use super::row::{DATABASE, Job, Program, Row, Stage, Worth};
use super::shift::work;

pub const ROW: Row = Row {
    name: "missing index",
    unit: "look-up",
    category: "slow_statement",
    about: "SELECT id FROM visits WHERE address = ?",
    delegate: DATABASE,
    worth: Worth::Time,
    realtime: true,
    program: Program::Rust(run),
    stage: make_table,
};

const EVERY: Duration = Duration::from_millis(30);

fn make_table(stage: &mut Stage) -> io::Result<()> {
    stage.postgres();
    let mut database = stage.database()?;
    database.query("DROP TABLE IF EXISTS visits")?;
    database.query(
        "CREATE TABLE visits AS SELECT i AS id, 'visitor' || i % 50000 || '@example.org' AS address \
         FROM generate_series(1, 500000) AS i",
    )?;
    if !stage.health.is_sick() {
        database.query("CREATE INDEX ON visits (address)")?;
    }
    database.query("VACUUM ANALYZE visits").map(drop)
}

fn run(job: &Job) -> io::Result<()> {
    work(1, EVERY, |_| {
        let mut database = Client::connect(job.argument(0)?)?;
        // One process of the server, not all CPUs.
        database.query("SET max_parallel_workers_per_gather = 0")?;
        let mut visitor = 0;
        Ok(move || {
            visitor = (visitor + 7919) % 50_000;
            let visits =
                format!("SELECT id FROM visits WHERE address = 'visitor{visitor}@example.org'");
            database.query(&visits).map(drop)
        })
    })
}
