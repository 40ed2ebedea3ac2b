//! Spends its time in code that it made itself, in memory without a file, and says where in a perf
//! map as a JIT does.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::ptr;
use std::time::Instant;

use super::gate::{Gate, Options, check, join, thread};

/// What the map calls the code.
pub const JIT_FUNCTION: &str = "LazyCompile:*spin_made_at_run_time /app/spin.js:3";

/// Counts its first argument down to 0, with a frame of its own.
#[cfg(target_arch = "x86_64")]
const CODE: &[u8] = &[
    0x55, // push rbp
    0x48, 0x89, 0xe5, // mov rbp, rsp
    0x48, 0xff, 0xcf, // dec rdi
    0x75, 0xfb, // jne back to dec
    0x5d, // pop rbp
    0xc3, // ret
];
#[cfg(not(target_arch = "x86_64"))]
const CODE: &[u8] = &[];

pub fn run(options: &Options, gate: &Gate) -> io::Result<String> {
    if CODE.is_empty() {
        return Err(io::Error::other("no machine code for this architecture"));
    }
    let spin = make()?;
    let map = PathBuf::from(format!("/tmp/perf-{}.map", std::process::id()));
    let start = spin as usize;
    fs::write(&map, format!("{start:x} {:x} {JIT_FUNCTION}\n", CODE.len()))?;
    gate.open()?;
    let deadline = options.deadline();
    let calls = join(thread("jit", move || call_made_code(spin, deadline))?);
    fs::remove_file(&map)?;
    Ok(format!("{{\"calls\":{}}}", calls?))
}

/// The same where nobody outside sees its /tmp.
pub fn run_in_private_tmp(options: &Options, gate: &Gate) -> io::Result<String> {
    // SAFETY: takes no pointers.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    let none = ptr::null();
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: the strings end with a NUL; what may be null is.
    unsafe {
        check(libc::mount(none, c"/".as_ptr(), none, private, ptr::null()))?;
        let (tmp, tmpfs) = (c"/tmp".as_ptr(), c"tmpfs".as_ptr());
        check(libc::mount(tmpfs, tmp, tmpfs, 0, ptr::null()))?;
    }
    run(options, gate)
}

fn make() -> io::Result<extern "C" fn(u64)> {
    let (protection, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    );
    // SAFETY: a new mapping where the kernel likes, larger than the code; written before it is made
    // executable, and then never again. It holds a function of this very signature, and is never
    // unmapped.
    unsafe {
        let page = libc::mmap(ptr::null_mut(), 4096, protection, flags, -1, 0);
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        ptr::copy_nonoverlapping(CODE.as_ptr(), page.cast(), CODE.len());
        check(libc::mprotect(
            page,
            4096,
            libc::PROT_READ | libc::PROT_EXEC,
        ))?;
        Ok(std::mem::transmute::<*mut libc::c_void, extern "C" fn(u64)>(page))
    }
}

#[inline(never)]
fn call_made_code(spin: extern "C" fn(u64), deadline: Instant) -> u64 {
    let mut calls = 0;
    while Instant::now() < deadline {
        spin(1_000_000);
        calls += 1;
    }
    calls
}
