//! Reads a mapped file whose pages are not in memory: each touch is a major fault.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Instant;

use super::gate::{Gate, Options, check, join, thread};

const FILE_BYTES: usize = 32 << 20;
const PAGE_BYTES: usize = 4096;

pub fn run(options: &Options, gate: &Gate) -> io::Result<String> {
    let path = options
        .directory
        .join(format!("workload-faults-{}", std::process::id()));
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    let block = vec![1u8; 1 << 20];
    for _ in 0..FILE_BYTES / block.len() {
        file.write_all(&block)?;
    }
    file.sync_all()?;
    gate.open()?;
    let deadline = options.deadline();
    let (touched, major) = join(thread("faults", move || {
        let touched = read_index_from_disk(file.as_raw_fd(), deadline)?;
        Ok::<_, io::Error>((touched, major_faults()?))
    })?)??;
    remove(path)?;
    Ok(format!("{{\"pages\":{touched},\"major\":{major}}}"))
}

/// Of the calling thread, by the kernel's count: fewer than the pages touched where some were still in memory.
fn major_faults() -> io::Result<i64> {
    // SAFETY: plain numbers, which the call fills.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is valid for the call.
    check(unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) })?;
    Ok(usage.ru_majflt)
}

fn remove(path: PathBuf) -> io::Result<()> {
    std::fs::remove_file(path)
}

#[inline(never)]
fn read_index_from_disk(fd: i32, deadline: Instant) -> io::Result<u64> {
    let mut touched = 0;
    while Instant::now() < deadline {
        // Out of the page cache, then mapped afresh, without read-ahead.
        // SAFETY: plain calls on an open fd and on the mapping just made, which is unmapped
        // after its last use.
        unsafe {
            check(libc::posix_fadvise(fd, 0, 0, libc::POSIX_FADV_DONTNEED))?;
            let map = libc::mmap(
                std::ptr::null_mut(),
                FILE_BYTES,
                libc::PROT_READ,
                libc::MAP_SHARED,
                fd,
                0,
            );
            if map == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            check(libc::madvise(map, FILE_BYTES, libc::MADV_RANDOM))?;
            for page in 0..FILE_BYTES / PAGE_BYTES {
                touched += u64::from(map.cast::<u8>().add(page * PAGE_BYTES).read_volatile());
                if page % 64 == 0 && Instant::now() >= deadline {
                    break;
                }
            }
            check(libc::munmap(map, FILE_BYTES))?;
        }
    }
    Ok(touched)
}
