//! A known number of each of a few system calls, and no other call of the same names.

use std::ffi::CStr;
use std::io;

use super::gate::{Gate, Options, check};

const READS: u64 = 5_000;
const GETPPIDS: u64 = 4_000;
const WRITES: u64 = 3_000;
const WRITE_BYTES: usize = 100;
const MISSING: u64 = 2_000;
const NANOSLEEPS: u64 = 200;

/// The calls are made in the main thread, all between the two ends of the gate.
pub fn run(_options: &Options, gate: &Gate) -> io::Result<String> {
    let zero = open(c"/dev/zero", libc::O_RDONLY)?;
    let null = open(c"/dev/null", libc::O_WRONLY)?;
    gate.open()?;
    for _ in 0..READS {
        let mut byte = 1u8;
        // SAFETY: room for the one byte.
        check(unsafe { libc::read(zero, (&raw mut byte).cast(), 1) } as i32)?;
    }
    for _ in 0..GETPPIDS {
        // SAFETY: takes nothing, cannot fail.
        unsafe { libc::syscall(libc::SYS_getppid) };
    }
    for _ in 0..WRITES {
        let bytes = [0u8; WRITE_BYTES];
        // SAFETY: reads the bytes given.
        check(unsafe { libc::write(null, bytes.as_ptr().cast(), bytes.len()) } as i32)?;
    }
    for _ in 0..MISSING {
        if open(c"/nonexistent/file", libc::O_RDONLY).is_ok() {
            return Err(io::Error::other("/nonexistent/file exists"));
        }
    }
    for _ in 0..NANOSLEEPS {
        let nothing = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let none = std::ptr::null_mut::<libc::timespec>();
        // SAFETY: `nothing` is valid; the remainder is not asked for.
        unsafe { libc::syscall(libc::SYS_nanosleep, &raw const nothing, none) };
    }
    Ok(format!(
        "{{\"read\":{{\"count\":{READS},\"bytes\":{READS}}},\
          \"getppid\":{{\"count\":{GETPPIDS},\"bytes\":0}},\
          \"write\":{{\"count\":{WRITES},\"bytes\":{}}},\
          \"openat\":{{\"count\":{MISSING},\"bytes\":0,\"errors\":{{\"ENOENT\":{MISSING}}}}},\
          \"nanosleep\":{{\"count\":{NANOSLEEPS},\"bytes\":0}}}}",
        WRITES * WRITE_BYTES as u64
    ))
}

fn open(path: &CStr, flags: i32) -> io::Result<i32> {
    // SAFETY: a path with its end.
    check(unsafe { libc::openat(libc::AT_FDCWD, path.as_ptr(), flags) })
}
