//! A page asks for a list, then for each of its rows; the twin asks for all rows together.

use std::io;
use std::time::Duration;

use super::postgres::Client;
use super::row::{DATABASE, Job, Program, Row, Worth, with_postgres};
use super::shift::work;

pub const ROW: Row = Row {
    name: "N+1 queries",
    unit: "page",
    category: "n_plus_one",
    about: "SELECT abalance FROM pgbench_accounts WHERE aid = ?",
    delegate: DATABASE,
    worth: Worth::Time,
    realtime: true,
    program: Program::Rust(run),
    stage: with_postgres,
};

const EVERY: Duration = Duration::from_millis(10);
const LIST: &str = "SELECT aid FROM pgbench_accounts WHERE aid > 1000 ORDER BY aid LIMIT 50";

fn run(job: &Job) -> io::Result<()> {
    let sick = job.health.is_sick();
    work(1, EVERY, |_| {
        let mut database = Client::connect(job.argument(0)?)?;
        Ok(move || {
            let accounts = database.query(LIST)?;
            match sick {
                true => balances_one_by_one(&mut database, &accounts),
                false => balances(&mut database, &accounts),
            }
        })
    })
}

#[inline(never)]
fn balances_one_by_one(database: &mut Client, accounts: &[String]) -> io::Result<()> {
    accounts.iter().try_for_each(|account| {
        let one = format!("SELECT abalance FROM pgbench_accounts WHERE aid = {account}");
        database.query(&one).map(drop)
    })
}

#[inline(never)]
fn balances(database: &mut Client, accounts: &[String]) -> io::Result<()> {
    let all = accounts.join(", ");
    let all = format!("SELECT abalance FROM pgbench_accounts WHERE aid IN ({all})");
    database.query(&all).map(drop)
}
