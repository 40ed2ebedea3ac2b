//! System calls of a window: exact, or scaled from slices with an error bound.

use std::collections::{BTreeMap, HashMap};

use perf_ebpf_common::signals::{
    LatencyCell,
    syscalls::{SyscallErrorKey, SyscallKey},
};

use crate::{
    drain::SliceFact,
    kernel::tables::syscall_name,
    model::{SyscallRow, Window},
    signals::{entries, latency},
};

use super::slowdown::Slowdown;

/// Calls of one process in a window, without the line's stamp.
pub struct ProcessCalls {
    pub mode: String,
    pub fraction: f64,
    pub slices: u32,
    /// Cost of the hooks a call and what it did to the counts, where they are sampled.
    pub hook: Option<(u64, f64)>,
    pub rows: Vec<SyscallRow>,
}

/// Counters at the end of the window before and now.
#[derive(Default)]
pub struct Calls {
    /// `full`, `sampled` or `off`.
    pub mode: String,
    /// What the hooks add to a call, 0 where it was not measured.
    pub hook_ns: u64,
    now: BTreeMap<SyscallKey, LatencyCell>,
    before: HashMap<SyscallKey, LatencyCell>,
    errors_now: BTreeMap<SyscallErrorKey, u64>,
    errors_before: HashMap<SyscallErrorKey, u64>,
    slices: Vec<SliceFact>,
}

impl Calls {
    pub fn cells(&mut self, bytes: &[u8]) {
        self.now.extend(entries::<SyscallKey, LatencyCell>(bytes));
    }

    pub fn errors(&mut self, bytes: &[u8]) {
        self.errors_now
            .extend(entries::<SyscallErrorKey, u64>(bytes));
    }

    pub fn slice(&mut self, slice: &SliceFact) {
        self.slices.push(slice.clone());
    }

    pub fn slot_freed(&mut self, slot: u32) {
        self.before.retain(|key, _| key.slot != slot);
        self.errors_before.retain(|key, _| key.slot != slot);
    }

    /// Calls by process, for the part `on_ns` of the window in which they were counted. `demand`
    /// is the time of each process on the CPU and waiting for one in the window.
    pub fn window(
        &mut self,
        window: Window,
        on_ns: u64,
        owners: &BTreeMap<u32, u32>,
        demand: &HashMap<u32, (u64, u64)>,
    ) -> HashMap<u32, ProcessCalls> {
        let slices = std::mem::take(&mut self.slices);
        let full = self.mode == "full";
        let fraction = if full {
            1.0
        } else {
            (on_ns as f64 / window.length_ns().max(1) as f64).min(1.0)
        };
        let errors = self.window_errors();
        let mut out: HashMap<u32, ProcessCalls> = HashMap::new();
        if self.mode == "off" || fraction == 0.0 {
            self.forget_now();
            return out;
        }
        let mut counted: Vec<(u32, SyscallKey, LatencyCell, Option<LatencyCell>)> = Vec::new();
        let mut calls: HashMap<u32, u64> = HashMap::new();
        for (key, cell) in std::mem::take(&mut self.now) {
            let before = self.before.insert(key, cell);
            let count = cell.count - before.map_or(0, |b| b.count);
            if let Some(pid) = owners.get(&key.slot).filter(|_| count > 0) {
                *calls.entry(*pid).or_default() += count;
                counted.push((*pid, key, cell, before));
            }
        }
        let length_ns = window.length_ns().max(1);
        for (pid, key, cell, before) in counted {
            let slowdown = if full {
                Slowdown::NONE
            } else {
                let (cpu_ns, runq_ns) = demand.get(&pid).copied().unwrap_or_default();
                let of_window = |ns| ns as f64 / length_ns as f64;
                let calls = calls.get(&pid).copied().unwrap_or(0);
                let demand = (of_window(cpu_ns), of_window(runq_ns));
                Slowdown::of(calls, self.hook_ns, on_ns, demand)
            };
            let scale = Slowdown::scale(slowdown.likely, fraction);
            let scaled = |n: u64| (n as f64 * scale).round() as u64;
            let count = cell.count - before.map_or(0, |b| b.count);
            let spread = || error_bound(&slices, &key, window);
            let row = SyscallRow {
                name: syscall_name(key.nr),
                count: scaled(count),
                count_error: if full { None } else { spread() }.map(|half| {
                    let slowed = count as f64 * slowdown.error(fraction);
                    (half * slowdown.likely + slowed).ceil() as u64
                }),
                errors: errors
                    .get(&key)
                    .into_iter()
                    .flatten()
                    .map(|(name, n)| (name.clone(), scaled(*n)))
                    .collect(),
                latency: latency::of_cell(&cell, before.as_ref()),
                bytes: scaled(cell.bytes - before.map_or(0, |b| b.bytes)),
            };
            let process = out.entry(pid).or_insert_with(|| ProcessCalls {
                mode: self.mode.clone(),
                fraction,
                slices: if full { 1 } else { slices.len() as u32 },
                hook: (!full && self.hook_ns > 0).then_some((self.hook_ns, slowdown.likely)),
                rows: Vec::new(),
            });
            process.rows.push(row);
        }
        for process in out.values_mut() {
            process
                .rows
                .sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.name.cmp(&b.name)));
        }
        out
    }

    fn forget_now(&mut self) {
        for (key, cell) in std::mem::take(&mut self.now) {
            self.before.insert(key, cell);
        }
    }

    /// Errors of the window by call and errno name.
    fn window_errors(&mut self) -> HashMap<SyscallKey, BTreeMap<String, u64>> {
        let mut out: HashMap<SyscallKey, BTreeMap<String, u64>> = HashMap::new();
        for (key, count) in std::mem::take(&mut self.errors_now) {
            let count = count - self.errors_before.insert(key, count).unwrap_or(0);
            if count > 0 {
                let call = SyscallKey {
                    slot: key.slot,
                    nr: key.nr.into(),
                };
                *out.entry(call)
                    .or_default()
                    .entry(errno_name(key.errno))
                    .or_default() += count;
            }
        }
        out
    }
}

/// Half width of the 95 % confidence interval of a scaled count, from how much the slices of the
/// window differ: t(n−1) · s / √n per slice, times the number of slices that fill the window.
/// `None` with fewer than two slices.
fn error_bound(slices: &[SliceFact], key: &SyscallKey, window: Window) -> Option<f64> {
    let n = slices.len();
    if n < 2 {
        return None;
    }
    // Calls per ns of each slice.
    let rates: Vec<f64> = slices
        .iter()
        .map(|s| {
            let count = s
                .counts
                .iter()
                .find(|(slot, nr, _)| (*slot, *nr) == (key.slot, key.nr))
                .map_or(0, |(_, _, count)| *count);
            count as f64 / s.length_ns.max(1) as f64
        })
        .collect();
    let mean = rates.iter().sum::<f64>() / n as f64;
    let variance = rates.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / (n - 1) as f64;
    let half = student_t_95(n - 1) * (variance / n as f64).sqrt();
    Some(half * window.length_ns() as f64)
}

/// Two-sided 95 % quantile of Student's t.
fn student_t_95(degrees: usize) -> f64 {
    const TABLE: [f64; 10] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    ];
    match degrees {
        0 => f64::INFINITY,
        n => TABLE
            .get(n - 1)
            .copied()
            .unwrap_or(if n < 30 { 2.1 } else { 1.96 }),
    }
}

/// Symbolic name of an errno (`include/uapi/asm-generic/errno*.h`), `errno_N` for a rare one.
fn errno_name(errno: u16) -> String {
    let name = match i32::from(errno) {
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::ESRCH => "ESRCH",
        libc::EINTR => "EINTR",
        libc::EIO => "EIO",
        libc::ENXIO => "ENXIO",
        libc::E2BIG => "E2BIG",
        libc::EBADF => "EBADF",
        libc::ECHILD => "ECHILD",
        libc::EAGAIN => "EAGAIN",
        libc::ENOMEM => "ENOMEM",
        libc::EACCES => "EACCES",
        libc::EFAULT => "EFAULT",
        libc::EBUSY => "EBUSY",
        libc::EEXIST => "EEXIST",
        libc::EXDEV => "EXDEV",
        libc::ENODEV => "ENODEV",
        libc::ENOTDIR => "ENOTDIR",
        libc::EISDIR => "EISDIR",
        libc::EINVAL => "EINVAL",
        libc::ENFILE => "ENFILE",
        libc::EMFILE => "EMFILE",
        libc::ENOTTY => "ENOTTY",
        libc::EFBIG => "EFBIG",
        libc::ENOSPC => "ENOSPC",
        libc::ESPIPE => "ESPIPE",
        libc::EROFS => "EROFS",
        libc::EPIPE => "EPIPE",
        libc::ERANGE => "ERANGE",
        libc::EDEADLK => "EDEADLK",
        libc::ENAMETOOLONG => "ENAMETOOLONG",
        libc::ENOSYS => "ENOSYS",
        libc::ENOTEMPTY => "ENOTEMPTY",
        libc::ELOOP => "ELOOP",
        libc::ENODATA => "ENODATA",
        libc::EOVERFLOW => "EOVERFLOW",
        libc::ENOTSOCK => "ENOTSOCK",
        libc::EDESTADDRREQ => "EDESTADDRREQ",
        libc::EMSGSIZE => "EMSGSIZE",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::EADDRINUSE => "EADDRINUSE",
        libc::EADDRNOTAVAIL => "EADDRNOTAVAIL",
        libc::ENETUNREACH => "ENETUNREACH",
        libc::ECONNABORTED => "ECONNABORTED",
        libc::ECONNRESET => "ECONNRESET",
        libc::ENOBUFS => "ENOBUFS",
        libc::EISCONN => "EISCONN",
        libc::ENOTCONN => "ENOTCONN",
        libc::ETIMEDOUT => "ETIMEDOUT",
        libc::ECONNREFUSED => "ECONNREFUSED",
        libc::EHOSTUNREACH => "EHOSTUNREACH",
        libc::EALREADY => "EALREADY",
        libc::EINPROGRESS => "EINPROGRESS",
        libc::ECANCELED => "ECANCELED",
        // Restart codes never reach user space; a tracer sees them at the exit of an interrupted
        // call (`include/linux/errno.h`).
        512 => "ERESTARTSYS",
        513 => "ERESTARTNOINTR",
        514 => "ERESTARTNOHAND",
        516 => "ERESTART_RESTARTBLOCK",
        n => return format!("errno_{n}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(count: u64) -> SliceFact {
        SliceFact {
            length_ns: 25_000_000,
            counts: vec![(1, 0, count)],
        }
    }

    #[test]
    fn equal_slices_have_no_error_and_unequal_ones_the_students() {
        let window = Window {
            start_ns: 0,
            end_ns: 1_000_000_000,
        };
        let key = SyscallKey { slot: 1, nr: 0 };
        assert_eq!(
            error_bound(&[slice(10), slice(10)], &key, window),
            Some(0.0)
        );
        assert_eq!(error_bound(&[slice(10)], &key, window), None);
        // Rates 8 and 12 calls a slice of 25 ms: s = √8, t(1) = 12.706, 40 slices fill the window.
        let want = 12.706 * (8.0f64 / 2.0).sqrt() * 40.0;
        let half = error_bound(&[slice(8), slice(12)], &key, window).unwrap();
        assert!((half - want).abs() < 1e-6, "{half}, not {want}");
    }

    #[test]
    fn errors_are_named() {
        assert_eq!(errno_name(2), "ENOENT");
        assert_eq!(errno_name(4000), "errno_4000");
    }
}
