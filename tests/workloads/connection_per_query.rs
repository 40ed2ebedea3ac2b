//! Each query is made on a connection of its own; the twin keeps one.

use std::io;
use std::time::Duration;

use super::postgres::Client;
use super::row::{DATABASE, Job, Program, Row, Worth, with_postgres};
use super::shift::work;

pub const ROW: Row = Row {
    name: "connection per query",
    unit: "query",
    category: "connection_churn",
    about: "Connects anew to PostgreSQL",
    delegate: DATABASE,
    worth: Worth::Time,
    realtime: true,
    program: Program::Rust(run),
    stage: with_postgres,
};

const EVERY: Duration = Duration::from_millis(10);
const QUERY: &str = "SELECT abalance FROM pgbench_accounts WHERE aid = 1";

fn run(job: &Job) -> io::Result<()> {
    let sick = job.health.is_sick();
    work(1, EVERY, |_| {
        let socket = job.argument(0)?;
        let mut kept = None;
        Ok(move || {
            let mut database = match kept.take() {
                Some(database) => database,
                None => Client::connect(socket)?,
            };
            database.query(QUERY)?;
            kept = (!sick).then_some(database);
            Ok(())
        })
    })
}
