//! Threads that wait for several things at once.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use perf_agent_tests::workloads::meter::Meter;

use super::phases::{ASK_AFTER, nap};

const TIMEOUT_MS: i32 = 250;
/// Longer than any answer takes.
const PATIENCE_MS: i32 = 10_000;
/// Several times the number of requests in flight that are remembered for a thread.
const QUICK: usize = 24;

/// Nothing ever happens on the one fd that is watched.
pub fn quiet(meter: &mut Meter) -> io::Result<()> {
    let quiet = eventfd()?;
    let events = meter.blocked("idle", || wait(&[quiet.as_fd()], TIMEOUT_MS))?;
    if events != 0 {
        return Err(io::Error::other("an event of a quiet fd"));
    }
    Ok(())
}

/// Asks a slow server, then others that answer at once, and waits for the slow one among the others.
pub fn many_peers(meter: &mut Meter, slow: SocketAddr) -> io::Result<()> {
    let mut slow = TcpStream::connect(slow)?;
    nap(meter, ASK_AFTER)?;
    slow.write_all(b"?")?;
    let path = std::env::temp_dir().join(format!("truth-loop-{}.sock", std::process::id()));
    let listener = UnixListener::bind(&path)?;
    let quick: Vec<(UnixStream, UnixStream)> = (0..QUICK)
        .map(|_| {
            let mut client = UnixStream::connect(&path)?;
            let (mut server, _) = listener.accept()?;
            client.write_all(b"?")?;
            server.read_exact(&mut [0])?;
            server.write_all(b"!")?;
            client.read_exact(&mut [0])?;
            Ok((client, server))
        })
        .collect::<io::Result<_>>()?;
    std::fs::remove_file(path)?;
    let mut watched: Vec<BorrowedFd<'_>> = quick.iter().map(|(client, _)| client.as_fd()).collect();
    watched.push(slow.as_fd());
    meter.blocked("net.tcp", || wait(&watched, PATIENCE_MS))?;
    slow.read_exact(&mut [0])
}

fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    owned(unsafe { libc::eventfd(0, 0) })
}

fn owned(fd: i32) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Waits until one of the fds can be read; how many can.
fn wait(fds: &[BorrowedFd<'_>], timeout_ms: i32) -> io::Result<i32> {
    // SAFETY: no pointers.
    let set = owned(unsafe { libc::epoll_create1(0) })?;
    let mut event = libc::epoll_event {
        events: libc::EPOLLIN as u32,
        u64: 0,
    };
    for fd in fds {
        // SAFETY: both fds are open, `event` is valid.
        let result = unsafe {
            let (set, fd) = (set.as_raw_fd(), fd.as_raw_fd());
            libc::epoll_ctl(set, libc::EPOLL_CTL_ADD, fd, &raw mut event)
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: as above, for one event.
    let ready = unsafe { libc::epoll_wait(set.as_raw_fd(), &raw mut event, 1, timeout_ms) };
    if ready < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(ready)
}
