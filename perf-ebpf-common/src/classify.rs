//! The ledger's classes and how a blocked thread is put into one.
//!
//! [`classify`] is pure and compiled for both sides: the kernel side calls it at `sched_switch`
//! with what the registers and the fd table say, the user side calls it for a thread that slept
//! through a whole window, with what `/proc` says. Both therefore agree by construction.

/// A ledger class as the kernel side knows it. `CPU` is split into user and kernel by samples.
pub mod class {
    pub const CPU: u8 = 0;
    pub const RUNQ: u8 = 1;
    pub const LOCK: u8 = 2;
    pub const DISK: u8 = 3;
    pub const FAULT: u8 = 4;
    pub const NET_TCP: u8 = 5;
    pub const NET_UDP: u8 = 6;
    pub const NET_UNIX: u8 = 7;
    pub const NET_CONNECT: u8 = 8;
    pub const NET_SEND: u8 = 9;
    pub const IPC: u8 = 10;
    pub const GPU: u8 = 11;
    pub const CHILD: u8 = 12;
    pub const TIMER: u8 = 13;
    pub const STOPPED: u8 = 14;
    pub const IDLE: u8 = 15;
    pub const OTHER: u8 = 16;
    /// Attached while off the CPU or on it, and no scheduler event seen since: resolved by the
    /// first event, or by user space from `/proc` when there is none.
    pub const UNKNOWN: u8 = 17;
    /// Waiting for a peer whose protocol is known, named in [`CLASS_NAMES`](super::CLASS_NAMES).
    pub const NET_POSTGRESQL: u8 = 18;
    pub const NET_MYSQL: u8 = 19;
    pub const NET_REDIS: u8 = 20;
    pub const NET_MEMCACHED: u8 = 21;
    pub const NET_MONGODB: u8 = 22;
    pub const NET_HTTP: u8 = 23;
    pub const NET_HTTP2: u8 = 24;
    pub const NET_KAFKA: u8 = 25;
    /// How many there are.
    pub const COUNT: usize = 26;
}

/// Output names, by class number. `CPU` is reported as `cpu.user` and `cpu.kernel`.
pub const CLASS_NAMES: [&str; class::COUNT] = [
    "cpu",
    "runq",
    "lock",
    "disk",
    "fault",
    "net.tcp",
    "net.udp",
    "net.unix",
    "net.connect",
    "net.send",
    "ipc",
    "gpu",
    "child",
    "timer",
    "stopped",
    "idle",
    "other",
    "unknown",
    "net.postgresql",
    "net.mysql",
    "net.redis",
    "net.memcached",
    "net.mongodb",
    "net.http",
    "net.http2",
    "net.kafka",
];

/// What a system call waits for, as far as its number tells. User space fills a table by system
/// call number for the architecture it runs on, so the kernel side knows no numbers.
pub mod sys {
    /// Nothing known: the class comes from the task state alone.
    pub const OTHER: u8 = 0;
    /// Reads from the fd in argument 0.
    pub const READ: u8 = 1;
    /// Writes to the fd in argument 0.
    pub const WRITE: u8 = 2;
    /// `epoll_wait` family: many fds, waits for work.
    pub const POLL_MANY: u8 = 3;
    /// `poll`/`ppoll`: argument 0 a `pollfd` array, argument 1 its length. With one fd it is a
    /// read of that fd in disguise (libpq, resolvers and curl wait so), with none a sleep.
    pub const POLL: u8 = 4;
    /// `futex`: address, operation, value in arguments 0, 1, 2.
    pub const FUTEX: u8 = 5;
    pub const FUTEX_WAITV: u8 = 6;
    pub const SLEEP: u8 = 7;
    pub const WAIT_CHILD: u8 = 8;
    /// `fsync` family: the fd in argument 0, always storage.
    pub const SYNC: u8 = 9;
    pub const CONNECT: u8 = 10;
    pub const ACCEPT: u8 = 11;
    pub const IOCTL: u8 = 12;
    /// Takes a path and may touch storage (`openat`, `stat`, `rename`, ...).
    pub const PATH: u8 = 13;
    /// System V and POSIX message queues, semaphores.
    pub const MESSAGE: u8 = 14;
    /// Waits for a signal (`pause`, `sigsuspend`, `sigtimedwait`).
    pub const SIGNAL: u8 = 15;
    /// File locks (`flock`, `fcntl`).
    pub const FILE_LOCK: u8 = 16;
    /// `vfork`-like clone: the parent sleeps until the child execs.
    pub const CLONE: u8 = 17;
    /// `io_uring_enter`.
    pub const IO_URING: u8 = 18;
    /// `select` family: argument 0 is the number of fds, with none of which it is a sleep.
    pub const SELECT: u8 = 19;
    /// How large the table is; a larger system call number is `OTHER`.
    pub const TABLE_LEN: usize = 512;
    /// "Not in a system call" (user code preempted, page fault), in 16-bit fields.
    pub const NR_NONE: u16 = 0xffff;
}

/// What an fd refers to.
pub mod fd {
    pub const UNKNOWN: u8 = 0;
    pub const FILE: u8 = 1;
    pub const PIPE: u8 = 2;
    /// TCP where this end connected.
    pub const TCP_CLIENT: u8 = 3;
    /// TCP accepted from a listener.
    pub const TCP_SERVER: u8 = 4;
    pub const TCP_LISTEN: u8 = 5;
    /// UDP with a fixed peer.
    pub const UDP_CLIENT: u8 = 6;
    pub const UDP_SERVER: u8 = 7;
    pub const UNIX_CLIENT: u8 = 8;
    pub const UNIX_SERVER: u8 = 9;
    /// A socketpair, or a Unix socket with no name on either side.
    pub const UNIX_PAIR: u8 = 10;
    pub const EVENTFD: u8 = 11;
    pub const TIMERFD: u8 = 12;
    /// signalfd, inotify, fanotify, epoll: waits for something to happen.
    pub const NOTIFY: u8 = 13;
    pub const TTY: u8 = 14;
    /// An accelerator's device node.
    pub const GPU: u8 = 15;
    /// Netlink, raw and the other socket families.
    pub const SOCKET_OTHER: u8 = 16;
}

/// Task state bits (`include/linux/sched.h`; unchanged from 5.10 to 7.x).
pub mod task_state {
    pub const UNINTERRUPTIBLE: u32 = 0x2;
    pub const STOPPED: u32 = 0x4;
    pub const TRACED: u32 = 0x8;
    pub const DEAD: u32 = 0x80;
}

/// Futex operations (`include/uapi/linux/futex.h`), flags masked off.
pub mod futex {
    pub const WAIT: u32 = 0;
    pub const LOCK_PI: u32 = 6;
    pub const WAIT_BITSET: u32 = 9;
    pub const WAIT_REQUEUE_PI: u32 = 11;
    pub const LOCK_PI2: u32 = 13;
    /// `FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME` cleared.
    pub const CMD_MASK: u32 = 0x7f;

    /// Whether a futex wait is for a lock, by what the primitive expects to find in the word.
    ///
    /// The operation alone does not tell a mutex from a condition variable, and Rust's locks and
    /// glibc's condition variables use the same one. The expected value does:
    /// glibc's mutex (`lowlevellock.h`), Rust's `Mutex` and Go's `mutex` wait for 2 ("locked, with
    /// waiters"); glibc's rwlock for 2 or 3 (`PTHREAD_RWLOCK_FUTEX_USED`); robust and musl mutexes
    /// and Rust's `RwLock` set one of the two top bits. glibc's condition variable and semaphore
    /// wait for 0, a joiner for a thread id, Rust's parked thread for `u32::MAX`, Rust's `Condvar`
    /// for a counter (which passes 2 and 3 once each: one wait in 2^32 is misread).
    pub const fn is_lock(op: u32, value: u32) -> bool {
        match op & CMD_MASK {
            LOCK_PI | LOCK_PI2 => true,
            WAIT | WAIT_BITSET => {
                value == 2 || value == 3 || (value & 0xc000_0000 != 0 && value != u32::MAX)
            }
            _ => false,
        }
    }
}

/// What is known of a thread at the moment it leaves the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// Task state bits, see [`task_state`]. Not zero: zero is "preempted", which is `runq`.
    pub state: u32,
    /// `task->in_iowait`.
    pub in_iowait: bool,
    /// Whether the thread is inside a system call at all.
    pub in_syscall: bool,
    /// Its kind, see [`sys`].
    pub sys: u8,
    /// Kind of the fd it waits on, see [`fd`]; `UNKNOWN` where the call has none.
    pub fd: u8,
    /// Futex operation and expected value, 0 elsewhere.
    pub futex_op: u32,
    pub futex_value: u32,
}

/// The class of a thread that left the CPU. See the table in ARCHITECTURE.md.
#[inline(always)]
pub const fn classify(b: &Blocked) -> u8 {
    if b.state & (task_state::STOPPED | task_state::TRACED) != 0 {
        return class::STOPPED;
    }
    if !b.in_syscall {
        // A page fault (or reclaim inside one); nothing else puts user code to sleep.
        return class::FAULT;
    }
    match b.sys {
        // io_uring_enter sets in_iowait while it waits for any completion, sockets included.
        sys::IO_URING => return class::OTHER,
        sys::SYNC => return class::DISK,
        _ => {}
    }
    if b.in_iowait {
        return class::DISK;
    }
    let uninterruptible = b.state & task_state::UNINTERRUPTIBLE != 0;
    match b.sys {
        sys::READ | sys::POLL => match b.fd {
            fd::FILE => class::DISK,
            fd::PIPE | fd::UNIX_PAIR | fd::EVENTFD => class::IPC,
            fd::TCP_CLIENT => class::NET_TCP,
            fd::UDP_CLIENT => class::NET_UDP,
            fd::UNIX_CLIENT => class::NET_UNIX,
            fd::TCP_SERVER | fd::TCP_LISTEN | fd::UDP_SERVER | fd::UNIX_SERVER => class::IDLE,
            fd::NOTIFY | fd::TTY => class::IDLE,
            fd::TIMERFD => class::TIMER,
            fd::GPU => class::GPU,
            _ => {
                if b.sys == sys::POLL {
                    class::IDLE
                } else {
                    class::OTHER
                }
            }
        },
        sys::WRITE => match b.fd {
            fd::FILE => class::DISK,
            fd::PIPE | fd::EVENTFD => class::IPC,
            fd::TCP_CLIENT
            | fd::TCP_SERVER
            | fd::UDP_CLIENT
            | fd::UDP_SERVER
            | fd::UNIX_CLIENT
            | fd::UNIX_SERVER
            | fd::UNIX_PAIR => class::NET_SEND,
            fd::GPU => class::GPU,
            _ => class::OTHER,
        },
        sys::POLL_MANY | sys::SELECT | sys::ACCEPT | sys::SIGNAL => class::IDLE,
        sys::FUTEX => {
            if futex::is_lock(b.futex_op, b.futex_value) {
                class::LOCK
            } else {
                class::IDLE
            }
        }
        sys::FUTEX_WAITV | sys::FILE_LOCK => class::LOCK,
        sys::SLEEP => class::TIMER,
        sys::WAIT_CHILD => class::CHILD,
        sys::CLONE => class::CHILD,
        sys::CONNECT => class::NET_CONNECT,
        sys::MESSAGE => class::IPC,
        sys::IOCTL => {
            if b.fd == fd::GPU {
                class::GPU
            } else {
                class::OTHER
            }
        }
        sys::PATH => {
            if uninterruptible {
                class::DISK
            } else {
                class::OTHER
            }
        }
        _ => class::OTHER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Blocked = Blocked {
        state: 1,
        in_iowait: false,
        in_syscall: true,
        sys: sys::READ,
        fd: fd::TCP_CLIENT,
        futex_op: 0,
        futex_value: 0,
    };

    #[test]
    fn a_read_is_classed_by_what_the_fd_is() {
        for (kind, want) in [
            (fd::TCP_CLIENT, class::NET_TCP),
            (fd::TCP_SERVER, class::IDLE),
            (fd::UNIX_CLIENT, class::NET_UNIX),
            (fd::UNIX_PAIR, class::IPC),
            (fd::PIPE, class::IPC),
            (fd::FILE, class::DISK),
            (fd::UNKNOWN, class::OTHER),
        ] {
            assert_eq!(
                classify(&Blocked { fd: kind, ..READ }),
                want,
                "fd kind {kind}"
            );
        }
    }

    #[test]
    fn the_value_a_futex_waits_for_tells_a_lock_from_a_condition() {
        let futex = |op, value| {
            classify(&Blocked {
                sys: sys::FUTEX,
                futex_op: op,
                futex_value: value,
                ..READ
            })
        };
        const PRIVATE: u32 = 128;
        assert_eq!(futex(futex::WAIT | PRIVATE, 2), class::LOCK, "glibc mutex");
        assert_eq!(
            futex(futex::WAIT_BITSET | PRIVATE, 2),
            class::LOCK,
            "Rust Mutex"
        );
        assert_eq!(
            futex(futex::WAIT_BITSET | PRIVATE | 256, 0),
            class::IDLE,
            "glibc condvar"
        );
        assert_eq!(
            futex(futex::WAIT_BITSET | PRIVATE, u32::MAX),
            class::IDLE,
            "Rust park"
        );
        assert_eq!(
            futex(futex::WAIT, 0x8000_1234),
            class::LOCK,
            "robust or musl mutex"
        );
        assert_eq!(
            futex(futex::WAIT_BITSET | 256, 4711),
            class::IDLE,
            "pthread_join"
        );
        assert_eq!(futex(futex::LOCK_PI | PRIVATE, 0), class::LOCK, "PI mutex");
        assert_eq!(
            futex(futex::WAIT_REQUEUE_PI | PRIVATE, 0),
            class::IDLE,
            "PI condvar"
        );
    }

    #[test]
    fn outside_a_system_call_a_sleep_is_a_fault_and_a_stop_is_a_stop() {
        assert_eq!(
            classify(&Blocked {
                in_syscall: false,
                ..READ
            }),
            class::FAULT
        );
        assert_eq!(
            classify(&Blocked {
                in_syscall: false,
                state: task_state::TRACED,
                ..READ
            }),
            class::STOPPED
        );
    }

    #[test]
    fn every_class_has_a_name_of_its_own() {
        for (i, name) in CLASS_NAMES.iter().enumerate() {
            assert!(!CLASS_NAMES[..i].contains(name), "{name} twice");
        }
    }
}
