//! Orders are paid under the lock of the stock: one thread at a time, although only the taking from the
//! stock needs it. The twin has them paid first and holds the lock for the taking alone. Paying is
//! waiting for somebody else, here a sleep.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::row::{ENGINEER, Job, Program, Row, Worth, nothing};
use super::shift::work;

pub const ROW: Row = Row {
    name: "lock convoy",
    unit: "order",
    category: "lock_contention",
    about: "pay_under_the_lock",
    delegate: ENGINEER,
    worth: Worth::Time,
    realtime: true,
    program: Program::Rust(run),
    stage: nothing,
};

const WORKERS: usize = 6;
/// Together a little more than one at a time can be paid.
const EVERY: Duration = Duration::from_millis(15);
const PAYING: Duration = Duration::from_millis(3);

fn run(job: &Job) -> io::Result<()> {
    let stock = Mutex::new(0u64);
    let sick = job.health.is_sick();
    work(WORKERS, EVERY, |_| {
        Ok(|| {
            match sick {
                true => pay_under_the_lock(&stock),
                false => pay_then_take(&stock),
            }
            Ok(())
        })
    })
}

#[inline(never)]
fn pay_under_the_lock(stock: &Mutex<u64>) {
    let mut stock = stock.lock().unwrap_or_else(PoisonError::into_inner);
    thread::sleep(PAYING);
    *stock += 1;
}

#[inline(never)]
fn pay_then_take(stock: &Mutex<u64>) {
    thread::sleep(PAYING);
    *stock.lock().unwrap_or_else(PoisonError::into_inner) += 1;
}
