//! A thread that changes its CPU a thousand times.

use std::hint::black_box;
use std::io;
use std::time::Duration;

use super::gate::{Gate, Options, check};
use super::measured::Measured;
use super::meter::{self, Meter};

pub const MIGRATIONS: usize = 1_000;
const SPIN_STEPS: u64 = 20_000;

pub fn run(_options: &Options, gate: &Gate) -> io::Result<String> {
    gate.open()?;
    let migrant = Measured::start("migrant", |meter| hop(meter).map(|()| Vec::new()))?;
    Ok(meter::to_json(&migrant.accounts()?))
}

fn hop(meter: &mut Meter) -> io::Result<()> {
    let cpus = allowed_cpus()?;
    for i in 0..MIGRATIONS {
        meter.blocked("other", || pin_to(cpus[i % cpus.len()]))?;
        black_box((0..SPIN_STEPS).fold(1u64, |a, b| black_box(a.wrapping_mul(31) ^ b)));
        if i % 3 == 0 {
            meter.blocked("timer", || {
                std::thread::sleep(Duration::from_micros(200));
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// CPUs the calling thread may run on.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    // SAFETY: a cpu_set_t of zeroes is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is valid for its size.
    check(unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) })?;
    Ok((0..libc::CPU_SETSIZE as usize)
        // SAFETY: below CPU_SETSIZE.
        .filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) })
        .collect())
}

/// Moves the calling thread to one CPU and keeps it there.
pub fn pin_to(cpu: usize) -> io::Result<()> {
    // SAFETY: a cpu_set_t of zeroes is an empty set; `cpu` is below CPU_SETSIZE.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        set
    };
    // SAFETY: `set` is valid for its size.
    check(unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) })?;
    Ok(())
}
