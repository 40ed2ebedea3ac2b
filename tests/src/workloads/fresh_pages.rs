//! Touches fresh pages over and over: minor faults. Says what they took by the thread's own CPU clock.

use std::io;
use std::time::Instant;

use super::clock::clock_ns;
use super::gate::{Gate, Options, check, join, thread};

const BYTES: usize = 16 << 20;
const PAGE_BYTES: usize = 4096;

pub fn run(options: &Options, gate: &Gate) -> io::Result<String> {
    gate.open()?;
    let deadline = options.deadline();
    let (pages, fault_ns) = join(thread("fresh-pages", move || map_afresh(deadline))?)??;
    Ok(format!("{{\"pages\":{pages},\"fault_cpu_ns\":{fault_ns}}}"))
}

/// Pages touched first, and the CPU time that took less that of touching them again.
fn map_afresh(deadline: Instant) -> io::Result<(u64, u64)> {
    let (mut pages, mut fault_ns) = (0, 0);
    while Instant::now() < deadline {
        // SAFETY: a mapping of our own, unmapped after its last use.
        unsafe {
            let map = libc::mmap(
                std::ptr::null_mut(),
                BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            if map == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            // One fault a page.
            check(libc::madvise(map, BYTES, libc::MADV_NOHUGEPAGE))?;
            let start = clock_ns(libc::CLOCK_THREAD_CPUTIME_ID);
            touch(map.cast());
            let first = clock_ns(libc::CLOCK_THREAD_CPUTIME_ID);
            touch(map.cast());
            let second = clock_ns(libc::CLOCK_THREAD_CPUTIME_ID);
            fault_ns += (first - start).saturating_sub(second - first);
            pages += (BYTES / PAGE_BYTES) as u64;
            check(libc::munmap(map, BYTES))?;
        }
    }
    Ok((pages, fault_ns))
}

/// Writes a byte of each page.
///
/// # Safety
/// `map` is valid for [`BYTES`].
#[inline(never)]
unsafe fn touch(map: *mut u8) {
    for page in 0..BYTES / PAGE_BYTES {
        // SAFETY: inside, by the caller's contract.
        unsafe { map.add(page * PAGE_BYTES).write_volatile(1) };
    }
}
