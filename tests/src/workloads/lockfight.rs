//! Four threads that want one mutex nearly all the time, and keep it while they sleep.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::gate::{Gate, Options, join, thread};

const THREADS: usize = 4;
const HELD: Duration = Duration::from_millis(2);

pub fn run(options: &Options, gate: &Gate) -> io::Result<String> {
    gate.open()?;
    let deadline = options.deadline();
    let account = Arc::new(Mutex::new(0u64));
    let threads = (0..THREADS)
        .map(|i| {
            let account = account.clone();
            thread(&format!("fighter-{i}"), move || {
                while Instant::now() < deadline {
                    update_shared_account(&account);
                    // Gives the others a chance: an unfair mutex would be taken again at once.
                    std::thread::sleep(Duration::from_micros(200));
                }
            })
        })
        .collect::<io::Result<Vec<_>>>()?;
    threads.into_iter().try_for_each(join)?;
    let updates = *account.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(format!("{{\"updates\":{updates}}}"))
}

#[inline(never)]
fn update_shared_account(account: &Mutex<u64>) {
    let mut balance = account.lock().unwrap_or_else(PoisonError::into_inner);
    *balance += 1;
    std::thread::sleep(HELD);
    drop(balance);
    // Or the mutex is let go of in a call that takes this function's place on the stack, as some compilers do.
    std::hint::black_box(account);
}
