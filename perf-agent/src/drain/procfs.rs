//! Parsers of `/proc` text (`Documentation/filesystems/proc.rst`). Pure; each gives `None` or skips
//! the line where the text is not as documented.

/// What is used of `/proc/PID/stat` and `/proc/PID/task/TID/stat`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    pub comm: String,
    /// `R`, `S`, `D`, `T`, `t`, `Z`, ...
    pub state: char,
    pub parent: u32,
    pub minor_faults: u64,
    pub major_faults: u64,
    pub user_ticks: u64,
    pub kernel_ticks: u64,
}

/// Parses a `stat` line. The name may hold anything, parentheses and line ends as well: it ends at
/// the last `)`.
pub fn stat(text: &str) -> Option<Stat> {
    let open = text.find('(')?;
    let close = text.rfind(')')?;
    let comm = text.get(open + 1..close)?.to_owned();
    let fields: Vec<&str> = text.get(close + 1..)?.split_whitespace().collect();
    // Field 3 of the line (the state) is the first of these.
    let number = |n: usize| fields.get(n - 3)?.parse().ok();
    Some(Stat {
        comm,
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        minor_faults: number(10)?,
        major_faults: number(12)?,
        user_ticks: number(14)?,
        kernel_ticks: number(15)?,
    })
}

/// Parses `schedstat`: time on the CPU and time waiting for one, in ns.
pub fn schedstat(text: &str) -> Option<(u64, u64)> {
    let mut words = text.split_whitespace();
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

/// What `/proc/PID/task/TID/syscall` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InSyscall {
    Running,
    /// Blocked, but not in a system call.
    None,
    /// Number and the first three arguments.
    Call(u32, [u64; 3]),
}

/// Parses it.
pub fn syscall(text: &str) -> Option<InSyscall> {
    let mut words = text.split_whitespace();
    let first = words.next()?;
    if first == "running" {
        return Some(InSyscall::Running);
    }
    let nr: i64 = first.parse().ok()?;
    if nr < 0 {
        return Some(InSyscall::None);
    }
    let mut args = [0; 3];
    for arg in &mut args {
        *arg = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
    }
    Some(InSyscall::Call(u32::try_from(nr).ok()?, args))
}

/// Id of a process or thread in its own pid namespace, by its `status`; `None` in the initial one.
pub fn inner_tid(status: &str) -> Option<u32> {
    let ids = status.lines().find_map(|l| l.strip_prefix("NSpid:"))?;
    let mut ids = ids.split_whitespace();
    ids.next()?;
    ids.next_back()?.parse().ok()
}

/// Local ports of the listeners in `/proc/PID/net/tcp` or `tcp6`.
pub fn tcp_listeners(text: &str) -> impl Iterator<Item = u16> {
    /// `TCP_LISTEN` (include/net/tcp_states.h).
    const LISTEN: &str = "0A";
    text.lines().skip(1).filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (_, port) = words.next()?.rsplit_once(':')?;
        let state = words.nth(1)?;
        (state == LISTEN).then(|| u16::from_str_radix(port, 16).ok())?
    })
}

/// `KEY VALUE` lines of a cgroup's `cpu.stat`.
pub fn cpu_stat(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        if name == key {
            value.trim().parse().ok()
        } else {
            None
        }
    })
}

/// A `Name:  VALUE kB` line of `/proc/PID/status` or `/proc/meminfo`, in bytes.
pub fn kilobytes(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        if name != key {
            return None;
        }
        let kilobytes: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kilobytes.checked_mul(1024)
    })
}

/// The path of a process in a cgroup hierarchy, from `/proc/PID/cgroup`: the unified one, or the
/// one of the controller `cpu` (version 1).
pub fn cgroup_path<'a>(text: &'a str, controller: Option<&str>) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let found = match controller {
            None => controllers.is_empty(),
            Some(name) => controllers.split(',').any(|c| c == name),
        };
        found.then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STAT: &str =
        "4242 (a) (b) S 1 4242 4242 0 -1 4194560 2001 0 13 0 57 21 0 0 20 0 4 0 900 1 1 1";

    #[test]
    fn a_name_with_parentheses_ends_at_the_last_one() {
        let s = stat(STAT).unwrap();
        assert_eq!(s.comm, "a) (b");
        assert_eq!(
            (s.state, s.parent, s.minor_faults, s.major_faults),
            ('S', 1, 2001, 13)
        );
        assert_eq!((s.user_ticks, s.kernel_ticks), (57, 21));
    }

    #[test]
    fn the_three_forms_of_syscall_are_told_apart() {
        assert_eq!(syscall("running\n"), Some(InSyscall::Running));
        assert_eq!(syscall("-1 0x7ffd 0x7f00\n"), Some(InSyscall::None));
        assert_eq!(
            syscall("202 0x10 0x80 0x2 0x0 0x0 0x0 0x7ffd 0x7f00\n"),
            Some(InSyscall::Call(202, [16, 128, 2]))
        );
        assert_eq!(syscall(""), None);
    }

    #[test]
    fn the_innermost_id_is_the_last_and_none_without_a_namespace() {
        assert_eq!(inner_tid("Name:\tx\nNSpid:\t4242\t17\t3\n"), Some(3));
        assert_eq!(inner_tid("Name:\tx\nNSpid:\t4242\n"), None);
        assert_eq!(inner_tid(""), None);
    }

    #[test]
    fn listeners_are_read_from_the_socket_tables() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   0: 0100007F:18EB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 8675309 1\n";
        assert_eq!(tcp_listeners(text).collect::<Vec<_>>(), [6379]);
        let connected = text.replace(" 0A ", " 01 ");
        assert_eq!(tcp_listeners(&connected).count(), 0);
    }

    #[test]
    fn cgroup_paths_of_both_versions_are_found() {
        let text = "4:cpu,cpuacct:/a\n1:name=systemd:/b\n0::/c\n";
        assert_eq!(cgroup_path(text, None), Some("/c"));
        assert_eq!(cgroup_path(text, Some("cpu")), Some("/a"));
        assert_eq!(
            cpu_stat("nr_periods 7\nnr_throttled 3\n", "nr_throttled"),
            Some(3)
        );
    }

    #[test]
    fn sizes_are_in_kilobytes_and_a_value_without_the_unit_is_none() {
        let text = "VmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\nThreads:\t4\n";
        assert_eq!(kilobytes(text, "VmRSS"), Some(1 << 20));
        assert_eq!(kilobytes(text, "Threads"), None);
        assert_eq!(kilobytes(text, "Vm"), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in "(?s).{0,300}", digits in "[0-9a-fx :().\n-]{0,300}") {
            for text in [&text, &digits] {
                let _ = stat(text);
                let _ = schedstat(text);
                let _ = syscall(text);
                let _ = tcp_listeners(text).count();
                let _ = cpu_stat(text, "nr_periods");
                let _ = kilobytes(text, "a");
                let _ = cgroup_path(text, Some("cpu"));
            }
        }
    }
}
