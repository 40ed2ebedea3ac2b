//! Finds the class of threads that had no scheduler event since the attach, from `/proc`.
//!
//! The kernel side resolves a seeded thread at its first event. One that sleeps through a whole
//! window has none, so its place is read here: race-free, because the caller checks afterwards that
//! the thread still had no event.

use std::{collections::HashMap, fs, os::unix::fs::FileTypeExt as _};

use perf_ebpf_common::{Blocked, class, classify, fd, sys, task_state};

use super::{
    SeededFact,
    procfs::{self, InSyscall},
};

/// Sockets of one process's network namespace, read once a window.
#[derive(Default)]
pub struct Sockets {
    tcp: HashMap<u64, procfs::InetSocket>,
    udp: HashMap<u64, procfs::InetSocket>,
    unix: HashMap<u64, String>,
    listening: Vec<u16>,
}

impl Sockets {
    /// Reads the tables as `pid` sees them.
    pub fn of(pid: u32) -> Sockets {
        let read =
            |name: &str| fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap_or_default();
        let table = |names: [&str; 2]| {
            names
                .iter()
                .flat_map(|name| procfs::inet_sockets(&read(name)))
                .map(|s| (s.inode, s))
                .collect::<HashMap<_, _>>()
        };
        let tcp = table(["tcp", "tcp6"]);
        let listening = tcp
            .values()
            .filter(|s| s.state == 10)
            .map(|s| s.local_port)
            .collect();
        Sockets {
            listening,
            tcp,
            udp: table(["udp", "udp6"]),
            unix: procfs::named_unix_sockets(&read("unix")),
        }
    }

    /// Ports listened on.
    pub fn listening(&self) -> &[u16] {
        &self.listening
    }

    fn kind(&self, inode: u64) -> u8 {
        if let Some(s) = self.tcp.get(&inode) {
            return match s.state {
                10 => fd::TCP_LISTEN,
                _ if self.listening.contains(&s.local_port) => fd::TCP_SERVER,
                _ => fd::TCP_CLIENT,
            };
        }
        if let Some(s) = self.udp.get(&inode) {
            return if s.state == 1 {
                fd::UDP_CLIENT
            } else {
                fd::UDP_SERVER
            };
        }
        if self.unix.contains_key(&inode) {
            return fd::UNIX_SERVER;
        }
        // Either a Unix client (its peer cannot be had from /proc) or another family.
        fd::UNIX_CLIENT
    }
}

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

/// Kind of an fd by what its link in /proc names.
fn fd_kind(link: &str, sockets: &Sockets) -> u8 {
    let inode = |prefix: &str| {
        link.strip_prefix(prefix)?
            .strip_prefix(":[")?
            .strip_suffix(']')?
            .parse()
            .ok()
    };
    if let Some(inode) = inode("socket") {
        return sockets.kind(inode);
    }
    if inode("pipe").is_some() {
        return fd::PIPE;
    }
    match link {
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

/// Reads where a thread is; `None` where it is gone.
pub fn class_of(pid: u32, tid: u32, kinds: &[u8], sockets: &Sockets) -> Option<SeededFact> {
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
        match fd_kind(&link(fd), sockets) {
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
    fd_kind: impl Fn(u64) -> u8,
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
        let mut sockets = Sockets::default();
        let row = |port, state, inode| procfs::InetSocket {
            local_port: port,
            state,
            inode,
        };
        sockets.tcp = [row(80, 10, 1), row(80, 1, 2), row(40000, 1, 3)]
            .into_iter()
            .map(|s| (s.inode, s))
            .collect();
        sockets.listening = vec![80];
        for (link, want) in [
            ("socket:[1]", fd::TCP_LISTEN),
            ("socket:[2]", fd::TCP_SERVER),
            ("socket:[3]", fd::TCP_CLIENT),
            ("pipe:[9]", fd::PIPE),
            ("anon_inode:[timerfd]", fd::TIMERFD),
            ("/var/lib/x", fd::FILE),
            ("/dev/null", fd::UNKNOWN),
        ] {
            assert_eq!(fd_kind(link, &sockets), want, "{link}");
        }
    }
}
