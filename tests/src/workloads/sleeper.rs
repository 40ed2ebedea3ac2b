//! A thread that sleeps in one read of a pipe from before the gate until the process ends.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::FromRawFd;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::gate::{Gate, Options, check, thread};

pub fn run(_options: &Options, gate: &Gate) -> io::Result<String> {
    let mut fds = [0; 2];
    // SAFETY: room for two fds.
    check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: just made, owned by nobody else. The other end stays open and is never written.
    let mut out = unsafe { File::from_raw_fd(fds[0]) };
    let (tell, told) = mpsc::channel();
    // Not joined: the end of the process ends it, in its read.
    thread("sleeper", move || {
        // SAFETY: takes nothing, cannot fail.
        let tid = unsafe { libc::syscall(libc::SYS_gettid) };
        // The receiver waits for exactly this.
        _ = tell.send(tid);
        out.read_exact(&mut [0])
    })?;
    let tid = told.recv().map_err(io::Error::other)?;
    wait_until_it_sleeps(tid)?;
    gate.open()?;
    Ok(format!("{{\"tid\":{tid}}}"))
}

/// Until /proc says that the thread is in the read.
fn wait_until_it_sleeps(tid: i64) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        let call = std::fs::read_to_string(format!("/proc/self/task/{tid}/syscall"))?;
        if call.split_ascii_whitespace().next() == Some(&libc::SYS_read.to_string()) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(io::Error::other("the sleeper does not sleep"))
}
