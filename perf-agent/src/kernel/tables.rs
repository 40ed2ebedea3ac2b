//! System calls and devices by what waiting in them means, for the architecture this is built for.

use perf_ebpf_common::{fd, signals::sockets::buffer, sys};

/// Kind ([`sys`]) of each system call, by number.
pub fn sys_kinds() -> [u8; sys::TABLE_LEN] {
    table(sys::OTHER, KINDS)
}

/// Where each system call's data is ([`buffer`]), by number.
pub fn buffer_kinds() -> [u8; sys::TABLE_LEN] {
    table(buffer::UNKNOWN, BUFFERS)
}

fn table(otherwise: u8, kinds: &[(u8, &[&str])]) -> [u8; sys::TABLE_LEN] {
    let mut table = [otherwise; sys::TABLE_LEN];
    for (kind, names) in kinds {
        for name in *names {
            if let Some(nr) = syscall_number(name)
                && let Some(entry) = table.get_mut(nr as usize)
            {
                *entry = *kind;
            }
        }
    }
    table
}

/// Those that move bytes of a stream socket.
const BUFFERS: &[(u8, &[&str])] = &[
    (buffer::PLAIN, &["read", "write", "sendto"]),
    (buffer::PLAIN | buffer::FLAGS_IN_ARG3, &["recvfrom"]),
    (buffer::IOVEC, &["readv", "writev"]),
    (buffer::MSGHDR, &["recvmsg", "sendmsg"]),
];

/// Names by kind; those an architecture does not have are passed over.
const KINDS: &[(u8, &[&str])] = &[
    (
        sys::READ,
        &[
            "read",
            "readv",
            "pread64",
            "preadv",
            "preadv2",
            "recvfrom",
            "recvmsg",
            "recvmmsg",
            "getdents",
            "getdents64",
        ],
    ),
    (
        sys::WRITE,
        &[
            "write",
            "writev",
            "pwrite64",
            "pwritev",
            "pwritev2",
            "sendto",
            "sendmsg",
            "sendmmsg",
            "sendfile",
            "fallocate",
            "ftruncate",
        ],
    ),
    (
        sys::POLL_MANY,
        &["epoll_wait", "epoll_pwait", "epoll_pwait2"],
    ),
    (sys::SELECT, &["select", "pselect6"]),
    (sys::POLL, &["poll", "ppoll"]),
    (sys::FUTEX, &["futex"]),
    (sys::FUTEX_WAITV, &["futex_waitv"]),
    (sys::SLEEP, &["nanosleep", "clock_nanosleep"]),
    (sys::WAIT_CHILD, &["wait4", "waitid"]),
    (
        sys::SYNC,
        &[
            "fsync",
            "fdatasync",
            "sync_file_range",
            "syncfs",
            "msync",
            "sync",
        ],
    ),
    (sys::CONNECT, &["connect"]),
    (sys::ACCEPT, &["accept", "accept4"]),
    (sys::IOCTL, &["ioctl"]),
    (
        sys::PATH,
        &[
            "open",
            "openat",
            "openat2",
            "creat",
            "stat",
            "lstat",
            "newfstatat",
            "statx",
            "access",
            "faccessat",
            "faccessat2",
            "rename",
            "renameat",
            "renameat2",
            "unlink",
            "unlinkat",
            "mkdir",
            "mkdirat",
            "rmdir",
            "link",
            "linkat",
            "symlink",
            "symlinkat",
            "truncate",
            "execve",
            "execveat",
            "readlink",
            "readlinkat",
            "close",
            "fstat",
            "copy_file_range",
        ],
    ),
    (
        sys::MESSAGE,
        &[
            "msgrcv",
            "msgsnd",
            "mq_timedreceive",
            "mq_timedsend",
            "semop",
            "semtimedop",
        ],
    ),
    (sys::SIGNAL, &["pause", "rt_sigsuspend", "rt_sigtimedwait"]),
    (sys::FILE_LOCK, &["flock", "fcntl"]),
    (sys::CLONE, &["clone", "clone3", "vfork", "fork"]),
    (sys::IO_URING, &["io_uring_enter"]),
];

/// Number of a system call on this architecture.
pub fn syscall_number(name: &str) -> Option<u32> {
    name.parse::<syscalls::Sysno>()
        .ok()
        .map(|nr| nr.id() as u32)
}

/// Name of a system call on this architecture, `syscall_N` where it is not known.
pub fn syscall_name(nr: u32) -> String {
    syscalls::Sysno::new(nr as usize)
        .map_or_else(|| format!("syscall_{nr}"), |s| s.name().to_owned())
}

/// Kind ([`fd`]) of each character device major: terminals by their fixed numbers
/// (`Documentation/admin-guide/devices.txt`), accelerators by the names in `/proc/devices`.
pub fn device_kinds(proc_devices: &str) -> [u8; 512] {
    let mut table = [fd::UNKNOWN; 512];
    for major in [4, 5].into_iter().chain(136..=143) {
        table[major] = fd::TTY;
    }
    let characters = proc_devices.split("Block devices:").next().unwrap_or("");
    for line in characters.lines() {
        let mut words = line.split_whitespace();
        let (Some(major), Some(name)) = (words.next(), words.next()) else {
            continue;
        };
        let accelerator = ["nvidia", "drm", "kfd", "accel", "habanalabs", "neuron"]
            .iter()
            .any(|prefix| name.starts_with(prefix));
        if let Ok(major) = major.parse::<usize>()
            && accelerator
            && let Some(entry) = table.get_mut(major)
        {
            *entry = fd::GPU;
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_knows_the_calls_of_this_architecture_by_number() {
        let table = sys_kinds();
        assert_eq!(table[libc::SYS_futex as usize], sys::FUTEX);
        assert_eq!(table[libc::SYS_read as usize], sys::READ);
        assert_eq!(table[libc::SYS_fsync as usize], sys::SYNC);
        assert_eq!(table[libc::SYS_getppid as usize], sys::OTHER);
        assert_eq!(syscall_name(libc::SYS_openat as u32), "openat");
        assert_eq!(syscall_name(5000), "syscall_5000");
    }

    #[test]
    fn accelerators_are_found_among_the_character_devices_only() {
        let table = device_kinds(
            "Character devices:\n195 nvidia\n226 drm\n\nBlock devices:\n 8 nvidia-x\n",
        );
        assert_eq!(table[195], fd::GPU);
        assert_eq!(table[226], fd::GPU);
        assert_eq!(table[8], fd::UNKNOWN);
        assert_eq!(table[136], fd::TTY);
    }
}
