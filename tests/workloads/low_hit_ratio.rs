//! Values are kept in Redis under another key than they are asked for, so that each is computed by the
//! database again; the twin asks for the key that is set.

use std::io;
use std::time::Duration;

use super::row::{DATABASE, Job, Program, Row, Stage, Worth};
use super::shift::work;
use super::{postgres, redis};

pub const ROW: Row = Row {
    name: "low Redis hit ratio",
    unit: "value",
    category: "cache_misses",
    about: "0 % of the look-ups in Redis",
    delegate: DATABASE,
    worth: Worth::Time,
    realtime: true,
    program: Program::Rust(run),
    stage: |stage: &mut Stage| {
        stage.postgres();
        stage.redis();
        Ok(())
    },
};

const EVERY: Duration = Duration::from_millis(4);

fn run(job: &Job) -> io::Result<()> {
    let sick = job.health.is_sick();
    work(1, EVERY, |_| {
        let mut database = postgres::Client::connect(job.argument(0)?)?;
        let mut cache = redis::Client::connect(job.argument(1)?)?;
        let mut customer = 0;
        Ok(move || {
            customer = (customer + 1) % 16;
            let (asked, kept) = match sick {
                true => (
                    format!("total:v2:{customer}"),
                    format!("total:v1:{customer}"),
                ),
                false => (format!("total:{customer}"), format!("total:{customer}")),
            };
            if cache.ask(&["GET", &asked])?.is_none() {
                let total = compute_total(&mut database, customer)?;
                cache.ask(&["SET", &kept, &total])?;
            }
            Ok(())
        })
    })
}

#[inline(never)]
fn compute_total(database: &mut postgres::Client, customer: u32) -> io::Result<String> {
    let first = customer * 10_000;
    let sql = format!(
        "SELECT sum(abalance) FROM pgbench_accounts WHERE aid BETWEEN {first} AND {}",
        first + 10_000
    );
    let total = database.query(&sql)?.into_iter().next();
    total.ok_or_else(|| io::Error::other("no total"))
}
