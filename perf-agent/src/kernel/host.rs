//! What this host is and allows.

use std::fs;

use anyhow::{Result, bail};

use super::btf::Btf;

const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_PTRACE: u32 = 19;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Effective capabilities of this process (`CapEff` in /proc/self/status).
pub fn capabilities() -> u64 {
    fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|s| {
            let line = s.lines().find(|l| l.starts_with("CapEff:"))?;
            u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok()
        })
        .unwrap_or(0)
}

/// Which of the needed capabilities are missing, by name.
pub fn missing_capabilities(effective: u64) -> Vec<&'static str> {
    let has = |cap: u32| effective >> cap & 1 != 0;
    if has(CAP_SYS_ADMIN) {
        return Vec::new();
    }
    [
        (CAP_BPF, "CAP_BPF"),
        (CAP_PERFMON, "CAP_PERFMON"),
        (CAP_SYS_PTRACE, "CAP_SYS_PTRACE"),
    ]
    .into_iter()
    .filter_map(|(cap, name)| (!has(cap)).then_some(name))
    .collect()
}

/// Refuses to go on without the privilege that tracing needs.
///
/// # Errors
/// Names the missing capabilities.
pub fn check_privilege() -> Result<()> {
    let missing = missing_capabilities(capabilities());
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "missing privilege: tracing needs root, or {} (run it with sudo)",
        missing.join(", ")
    )
}

/// Kernels before 5.11 charge maps to RLIMIT_MEMLOCK; where it cannot be raised, creating a map
/// says so.
pub fn raise_memlock_limit() {
    let unlimited = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: reads one rlimit.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) };
}

/// `uname -r`.
pub fn kernel_release() -> String {
    read_trimmed("/proc/sys/kernel/osrelease")
}

/// `uname -n`.
pub fn host_name() -> String {
    read_trimmed("/proc/sys/kernel/hostname")
}

fn read_trimmed(path: &str) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Major and minor version of a release string.
pub fn version(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Whether `bpf_task_pt_regs` exists: 5.15 and later (commit dd6e10fbd9fb). By version, because the
/// helper has no other trace in user space than a program that the verifier accepts.
pub fn has_helper_task_pt_regs() -> bool {
    version(&kernel_release()) >= (5, 15)
}

/// `THREAD_SIZE`: 16 KiB on x86-64 (no KASAN) and on arm64 with 4 KiB pages; only used before 5.15.
pub fn kernel_stack_bytes() -> u32 {
    16 * 1024
}

/// Offsets in `pt_regs` of the first four arguments of a system call.
///
/// # Errors
/// The name of a register that `pt_regs` does not have.
pub fn argument_registers(types: &Btf) -> Result<[u32; 4], &'static str> {
    if cfg!(target_arch = "x86_64") {
        let mut offsets = [0; 4];
        let paths = ["pt_regs.di", "pt_regs.si", "pt_regs.dx", "pt_regs.r10"];
        for (offset, path) in offsets.iter_mut().zip(paths) {
            *offset = types.place(path).ok_or(path)?.byte;
        }
        return Ok(offsets);
    }
    // arm64: x0 to x3 of `regs[31]`; x0 is kept in `orig_x0` because the result overwrites it.
    let first = types
        .place("pt_regs.orig_x0")
        .ok_or("pt_regs.orig_x0")?
        .byte;
    let regs = types.place("pt_regs.regs").ok_or("pt_regs.regs")?.byte;
    Ok([first, regs + 8, regs + 16, regs + 24])
}

/// What the kernel's lockdown says, `None` where it has none.
pub fn lockdown() -> Option<String> {
    let text = fs::read_to_string("/sys/kernel/security/lockdown").ok()?;
    let start = text.find('[')? + 1;
    let end = text[start..].find(']')? + start;
    Some(text[start..end].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_the_front_of_any_release_string() {
        assert_eq!(version("6.1.0-28-amd64"), (6, 1));
        assert_eq!(version("5.10"), (5, 10));
        assert_eq!(version("7.3-rc1+deb14"), (7, 3));
        assert_eq!(version(""), (0, 0));
    }

    #[test]
    fn an_administrator_lacks_nothing_and_nobody_lacks_three() {
        assert!(missing_capabilities(1 << CAP_SYS_ADMIN).is_empty());
        assert_eq!(
            missing_capabilities(0),
            ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE"]
        );
        assert_eq!(
            missing_capabilities(1 << CAP_BPF | 1 << CAP_PERFMON),
            ["CAP_SYS_PTRACE"]
        );
    }
}
