//! Finds the class of threads that had no scheduler event since the attach, from `/proc`.
//!
//! The kernel side resolves a seeded thread at its first event. One that sleeps through a whole
//! window has none, so its place is read here: race-free, because the caller checks afterwards that
//! the thread still had no event.

use std::{
    collections::BTreeSet,
    fs, io,
    net::{TcpStream, UdpSocket},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{fs::FileTypeExt as _, net::UnixStream},
    },
};

use perf_ebpf_common::{Blocked, class, classify, fd, sys, task_state};

use super::{
    SeededFact,
    listeners::Listened,
    procfs::{self, InSyscall},
};

/// Inode numbers of the sockets a process has.
pub fn sockets_of(pid: u32) -> Vec<u64> {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let link = fs::read_link(entry.path()).ok()?;
            let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
            inode.parse().ok()
        })
        .collect()
}

/// Kind of an fd by what its link in /proc names; `socket` tells of one that is a socket.
fn fd_kind(link: &str, socket: impl FnOnce() -> u8) -> u8 {
    match link {
        _ if link.starts_with("socket:[") => socket(),
        _ if link.starts_with("pipe:[") => fd::PIPE,
        "anon_inode:[eventfd]" | "anon_inode:[eventpoll]" => fd::EVENTFD,
        "anon_inode:[timerfd]" => fd::TIMERFD,
        "anon_inode:[signalfd]" | "anon_inode:inotify" | "anon_inode:[fanotify]" => fd::NOTIFY,
        _ if link.starts_with("/dev/pts/") || link.starts_with("/dev/tty") => fd::TTY,
        _ if link.starts_with("/dev/nvidia") || link.starts_with("/dev/dri/") => fd::GPU,
        _ if link.starts_with("/dev/") => fd::UNKNOWN,
        _ if link.starts_with('/') => fd::FILE,
        _ => fd::UNKNOWN,
    }
}

/// A copy of a process's fd (pidfd_getfd(2), since 5.6; who may read `/proc/PID/syscall` may do this). The
/// process is not changed by it; where it closes the socket at this moment, that ends with the copy.
fn copy_of(pid: u32, fd: u64) -> io::Result<OwnedFd> {
    let owned = |result: libc::c_long| {
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: an fd that is new and nobody else's.
        Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
    };
    // SAFETY: neither takes a pointer.
    unsafe {
        let process = owned(libc::syscall(libc::SYS_pidfd_open, pid, 0))?;
        owned(libc::syscall(
            libc::SYS_pidfd_getfd,
            process.as_raw_fd(),
            fd,
            0,
        ))
    }
}

/// A socket's option that is a number.
fn option(socket: &OwnedFd, name: i32) -> Option<i32> {
    let (mut value, mut length) = (0i32, size_of::<i32>() as libc::socklen_t);
    // SAFETY: both places are there and as long as it is told.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    (result == 0).then_some(value)
}

/// Kind of a socket. `listened` is the ports on which its network namespace listens.
fn socket_kind(socket: OwnedFd, listened: &BTreeSet<u16>) -> u8 {
    let is = |name| option(&socket, name).unwrap_or(-1);
    match (is(libc::SO_DOMAIN), is(libc::SO_PROTOCOL)) {
        (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_TCP) => {
            if is(libc::SO_ACCEPTCONN) == 1 {
                return fd::TCP_LISTEN;
            }
            let own = TcpStream::from(socket).local_addr();
            match own.is_ok_and(|own| listened.contains(&own.port())) {
                true => fd::TCP_SERVER,
                false => fd::TCP_CLIENT,
            }
        }
        (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_UDP) => {
            match UdpSocket::from(socket).peer_addr().is_ok() {
                true => fd::UDP_CLIENT,
                false => fd::UDP_SERVER,
            }
        }
        // Listeners have a name, and so has what they accepted.
        (libc::AF_UNIX, _) => match UnixStream::from(socket).local_addr() {
            Ok(own) if !own.is_unnamed() => fd::UNIX_SERVER,
            _ => fd::UNIX_CLIENT,
        },
        _ => fd::SOCKET_OTHER,
    }
}

/// Reads where a thread is; `None` where it is gone. `listened` is only asked where it waits for a socket.
pub fn class_of(pid: u32, tid: u32, kinds: &[u8], listened: &mut Listened) -> Option<SeededFact> {
    let base = format!("/proc/{pid}/task/{tid}");
    let state = procfs::stat(&fs::read_to_string(format!("{base}/stat")).ok()?)?.state;
    let call = procfs::syscall(&fs::read_to_string(format!("{base}/syscall")).ok()?)?;
    let link = |fd: u64| {
        fs::read_link(format!("/proc/{pid}/fd/{fd}"))
            .map(|p| p.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    let is_fifo = |fd: u64| {
        fs::metadata(format!("/proc/{pid}/fd/{fd}")).is_ok_and(|m| m.file_type().is_fifo())
    };
    Some(resolve(tid, state, call, kinds, |fd| {
        let socket =
            || copy_of(pid, fd).map_or(fd::UNKNOWN, |socket| socket_kind(socket, listened.by(pid)));
        match fd_kind(&link(fd), socket) {
            // A pipe with a name is called by it.
            fd::FILE if is_fifo(fd) => fd::PIPE,
            kind => kind,
        }
    }))
}

/// The pure part of [`class_of`].
fn resolve(
    tid: u32,
    state: char,
    call: InSyscall,
    kinds: &[u8],
    fd_kind: impl FnOnce(u64) -> u8,
) -> SeededFact {
    let running = SeededFact {
        tid,
        class: class::CPU,
        nr: sys::NR_NONE,
    };
    let mut blocked = Blocked {
        state: match state {
            'R' => return running,
            'D' => task_state::UNINTERRUPTIBLE,
            'T' => task_state::STOPPED,
            't' => task_state::TRACED,
            _ => 1,
        },
        in_iowait: false,
        in_syscall: false,
        sys: sys::OTHER,
        fd: fd::UNKNOWN,
        futex_op: 0,
        futex_value: 0,
    };
    let mut nr_now = sys::NR_NONE;
    match call {
        InSyscall::Running => return running,
        InSyscall::None => {}
        InSyscall::Call(nr, args) => {
            nr_now = nr as u16;
            blocked.in_syscall = true;
            blocked.sys = kinds.get(nr as usize).copied().unwrap_or(sys::OTHER);
            match blocked.sys {
                sys::READ | sys::WRITE | sys::SYNC | sys::IOCTL => {
                    blocked.fd = fd_kind(args[0] & 0xffff_ffff);
                }
                // Without an fd it is a sleep.
                sys::POLL if args[1] == 0 => blocked.sys = sys::SLEEP,
                sys::SELECT if args[0] == 0 => blocked.sys = sys::SLEEP,
                // The fd is in user memory, which is not read from here.
                sys::POLL => blocked.sys = sys::POLL_MANY,
                sys::FUTEX => {
                    blocked.futex_op = args[1] as u32;
                    blocked.futex_value = args[2] as u32;
                }
                _ => {}
            }
        }
    }
    SeededFact {
        tid,
        class: classify(&blocked),
        nr: nr_now,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::TcpListener,
        os::{fd::RawFd, unix::net::UnixListener},
    };

    use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};

    use super::*;
    use crate::kernel::tables::{sys_kinds, syscall_number};

    fn class(state: char, name: &str, args: [u64; 3], kind: u8) -> u8 {
        let nr = syscall_number(name).unwrap();
        resolve(7, state, InSyscall::Call(nr, args), &sys_kinds(), |_| kind).class
    }

    #[test]
    fn a_sleeper_is_classed_as_the_kernel_side_would() {
        assert_eq!(class('S', "read", [3, 0, 0], fd::PIPE), class::IPC);
        assert_eq!(
            class('S', "read", [3, 0, 0], fd::TCP_CLIENT),
            class::NET_TCP
        );
        assert_eq!(class('S', "futex", [4096, 128, 2], 0), class::LOCK);
        assert_eq!(class('S', "clock_nanosleep", [0, 0, 0], 0), class::TIMER);
        assert_eq!(class('T', "read", [3, 0, 0], fd::PIPE), class::STOPPED);
        assert_eq!(
            resolve(7, 'R', InSyscall::Running, &[], |_| 0).class,
            class::CPU
        );
        assert_eq!(
            resolve(7, 'D', InSyscall::None, &[], |_| 0).class,
            class::FAULT
        );
    }

    #[test]
    fn links_of_descriptors_name_their_kind() {
        for (link, want) in [
            ("socket:[1]", fd::TCP_LISTEN),
            ("pipe:[9]", fd::PIPE),
            ("anon_inode:[timerfd]", fd::TIMERFD),
            ("/var/lib/x", fd::FILE),
            ("/dev/null", fd::UNKNOWN),
        ] {
            assert_eq!(fd_kind(link, || fd::TCP_LISTEN), want, "{link}");
        }
    }

    #[test]
    fn sockets_of_a_process_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (server, _) = listener.accept().unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let fixed = UdpSocket::bind("127.0.0.1:0").unwrap();
        fixed.connect(udp.local_addr().unwrap()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let unix = UnixListener::bind(&path).unwrap();
        let unix_client = UnixStream::connect(&path).unwrap();
        let (unix_server, _) = unix.accept().unwrap();
        let kind = |fd: RawFd| {
            let copy = copy_of(std::process::id(), fd as u64).unwrap();
            socket_kind(copy, &BTreeSet::from([port]))
        };
        assert_eq!(kind(listener.as_raw_fd()), fd::TCP_LISTEN);
        assert_eq!(kind(client.as_raw_fd()), fd::TCP_CLIENT);
        assert_eq!(kind(server.as_raw_fd()), fd::TCP_SERVER);
        assert_eq!(kind(udp.as_raw_fd()), fd::UDP_SERVER);
        assert_eq!(kind(fixed.as_raw_fd()), fd::UDP_CLIENT);
        assert_eq!(kind(unix.as_raw_fd()), fd::UNIX_SERVER);
        assert_eq!(kind(unix_server.as_raw_fd()), fd::UNIX_SERVER);
        assert_eq!(kind(unix_client.as_raw_fd()), fd::UNIX_CLIENT);
        assert_eq!(
            kind(Socket::new(NETLINK_SOCK_DIAG).unwrap().as_raw_fd()),
            fd::SOCKET_OTHER
        );
        let not_there = copy_of(std::process::id(), 1 << 30);
        assert_eq!(not_there.unwrap_err().raw_os_error(), Some(libc::EBADF));
    }
}
