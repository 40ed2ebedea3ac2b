//! Many locks, each waited for once.

use std::io;
use std::sync::{Arc, Barrier, Mutex, PoisonError};

use super::gate::{Gate, Options, join, thread};
use super::held_locks::{tid, until_blocked};

const LOCKS: usize = 3_000;

pub fn run(_: &Options, gate: &Gate) -> io::Result<String> {
    let locks: Arc<Vec<Mutex<u64>>> = Arc::new((0..LOCKS as u64).map(Mutex::new).collect());
    let turn = Arc::new(Barrier::new(2));
    gate.open()?;
    let holder = tid();
    let (a, b) = (locks.clone(), turn.clone());
    let waiter = thread("waiter", move || {
        for lock in a.iter() {
            b.wait();
            drop(lock.lock().unwrap_or_else(PoisonError::into_inner));
            b.wait();
        }
        tid()
    })?;
    let waiter_tid = other_than(holder)?;
    for lock in locks.iter() {
        let guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
        turn.wait();
        until_blocked(waiter_tid, (&raw const *lock as usize, size_of_val(lock)))?;
        drop(guard);
        turn.wait();
    }
    join(waiter)?;
    Ok(format!("{{\"locks\":{LOCKS}}}"))
}

/// The other thread of this process.
fn other_than(own: u32) -> io::Result<u64> {
    for task in std::fs::read_dir("/proc/self/task")? {
        let name = task?.file_name();
        let tid = name.to_str().and_then(|name| name.parse().ok());
        if let Some(tid) = tid.filter(|tid| *tid != u64::from(own)) {
            return Ok(tid);
        }
    }
    Err(io::Error::other("there is no other thread"))
}
