//! The parts of a process's section.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::state::{LatencySum, ProcessSum, SyscallSum, busy_ns, is_idle};
use crate::model::{Classes, Detail, Frame, Site, ThreadLedger};
use crate::sink::text::{Align, Span, Style, Table, Text, plain};
use crate::sink::units;

const THREADS: usize = 10;
const SITES: usize = 8;
const LOCKS: usize = 5;
const SYSCALLS: usize = 10;
/// Cells of a full bar.
const BAR: usize = 20;
/// Frames shown of a stack.
const FRAMES: usize = 4;

/// A 99th percentile: of several windows only its bound is known.
fn p99(latency: &LatencySum) -> String {
    match latency.windows {
        0 => String::new(),
        1 => units::duration(latency.p99_ns),
        _ => format!("≤ {}", units::duration(latency.p99_ns)),
    }
}

/// count, mean, p99, max; empty where nothing was timed.
fn latency_cells(latency: Option<&LatencySum>) -> [Span; 4] {
    match latency {
        Some(latency) if latency.count > 0 => [
            plain(units::count(latency.count)),
            plain(units::duration(latency.mean_ns())),
            plain(p99(latency)),
            plain(units::duration(latency.max_ns)),
        ],
        _ => std::array::from_fn(|_| plain("")),
    }
}

pub fn ledger(text: &mut Text, process: &ProcessSum) {
    let mut classes: Vec<(&str, u64)> = process
        .classes
        .iter()
        .map(|(class, ns)| (class.as_str(), *ns))
        .filter(|(_, ns)| *ns > 0)
        .collect();
    classes.sort_by_key(|(_, ns)| Reverse(*ns));
    text.heading("Where the time went", "");
    let mut table = Table::new(&[
        ("class", Align::Left),
        ("time", Align::Right),
        ("share", Align::Right),
        ("", Align::Left),
        ("count", Align::Right),
        ("mean", Align::Right),
        ("p99", Align::Right),
        ("max", Align::Right),
    ]);
    for (class, ns) in classes {
        let style = if is_idle(class) {
            Style::Dim
        } else {
            Style::Plain
        };
        let bar = units::bar(ns, process.lifetime_ns, BAR);
        let mut cells = vec![
            (style, class.to_owned()),
            (style, units::duration(ns)),
            (style, units::percent(ns, process.lifetime_ns)),
            (style, format!("{bar:BAR$}")),
        ];
        cells.extend(latency_cells(process.latency.get(class)));
        table.row(cells);
    }
    table.put(text);
    if let Some(cpu) = process.latency.get("cpu").filter(|cpu| cpu.count > 0) {
        text.line([(
            Style::Dim,
            format!(
                "    on the CPU {} times, mean {}, p99 {}, max {}",
                units::count(cpu.count),
                units::duration(cpu.mean_ns()),
                p99(cpu),
                units::duration(cpu.max_ns)
            ),
        )]);
    }
}

/// `lock 60 %, disk 5 %`: what a thread waited for, the small ones left out.
fn blocked(classes: &Classes, lifetime_ns: u64) -> String {
    let waits = classes
        .iter()
        .filter(|(class, _)| !class.starts_with("cpu.") && *class != "runq");
    largest(waits, lifetime_ns)
}

/// The largest classes with their parts of `whole_ns`, the small ones left out.
fn largest<'a>(classes: impl Iterator<Item = (&'a String, &'a u64)>, whole_ns: u64) -> String {
    let mut times: Vec<(&String, u64)> = classes
        .map(|(class, ns)| (class, *ns))
        .filter(|(_, ns)| ns * 200 >= whole_ns && *ns > 0)
        .collect();
    times.sort_by_key(|(_, ns)| Reverse(*ns));
    let shown = times.into_iter().take(4);
    let shown: Vec<String> = shown
        .map(|(class, ns)| format!("{class} {}", units::percent(ns, whole_ns)))
        .collect();
    shown.join(", ")
}

pub fn threads(text: &mut Text, process: &ProcessSum) {
    let mut threads: Vec<&ThreadLedger> = process.threads.values().collect();
    if threads.len() < 2 {
        return;
    }
    threads.sort_by_key(|thread| (Reverse(busy_ns(&thread.classes)), thread.tid));
    let remark = match threads.len() {
        n if n > THREADS => format!("the busiest {THREADS} of {n}"),
        _ => String::new(),
    };
    text.heading("Threads", &remark);
    let mut table = Table::new(&[
        ("tid", Align::Right),
        ("name", Align::Left),
        ("lived", Align::Right),
        ("cpu", Align::Right),
        ("runq", Align::Right),
        ("waited", Align::Left),
    ]);
    for thread in threads.into_iter().take(THREADS) {
        let of = |names: &[&str]| {
            let times = names.iter().filter_map(|name| thread.classes.get(*name));
            units::percent(times.sum(), thread.lifetime_ns)
        };
        table.row(vec![
            plain(thread.tid.to_string()),
            plain(thread.comm.clone()),
            plain(units::duration(thread.lifetime_ns)),
            plain(of(&["cpu.user", "cpu.kernel"])),
            plain(of(&["runq"])),
            plain(blocked(&thread.classes, thread.lifetime_ns)),
        ]);
    }
    table.put(text);
}

fn detail(detail: &Detail) -> String {
    match detail {
        Detail::Futex { address } => address.clone(),
        Detail::Peer { peer, .. } => peer.clone(),
        Detail::Unix { path } => path.clone(),
        Detail::File {
            path: Some(path), ..
        } => path.clone(),
        Detail::File { device, inode, .. } => format!("file {device}:{inode}"),
    }
}

/// `inner ← caller ← …`, of the user stack; of the kernel's where there is none, and where the time
/// was spent in the kernel.
fn stack(site: &Site) -> Option<String> {
    let in_kernel = site.class == "cpu.kernel" && !site.kernel_stack.is_empty();
    let frames = match site.user_stack.is_empty() || in_kernel {
        true => &site.kernel_stack,
        false => &site.user_stack,
    };
    let name = |frame: &Frame| match &frame.source {
        Some(source) => format!("{} ({source})", frame.name),
        None => frame.name.clone(),
    };
    let mut names: Vec<String> = frames.iter().take(FRAMES).map(name).collect();
    if frames.len() > FRAMES {
        names.push("…".to_owned());
    }
    (!names.is_empty()).then(|| names.join(" ← "))
}

/// Class, system call and what was waited for.
fn place(site: &Site) -> String {
    let parts = [site.syscall.clone(), site.detail.as_ref().map(detail)];
    let parts = std::iter::once(site.class.clone()).chain(parts.into_iter().flatten());
    parts.collect::<Vec<String>>().join(" ")
}

/// Places by what is shown of them, the largest first: those that differ in a stack which is not
/// shown (the kernel's of a wait, a caller further out) would be so many rows that read the same.
fn shown_sites(process: &ProcessSum) -> Vec<(String, Option<String>, Site)> {
    let mut rows: BTreeMap<(String, Option<String>), Site> = BTreeMap::new();
    let sites = process.sites.values().filter(|site| !is_idle(&site.class));
    for site in sites.filter(|site| site.sum_ns > 0) {
        let row = rows.entry((place(site), stack(site)));
        row.and_modify(|sum| {
            sum.count += site.count;
            sum.sum_ns += site.sum_ns;
            sum.max_ns = sum.max_ns.max(site.max_ns);
        })
        .or_insert_with(|| site.clone());
    }
    let rows = rows
        .into_iter()
        .map(|((what, stack), site)| (what, stack, site));
    let mut rows: Vec<_> = rows.collect();
    rows.sort_by_key(|(_, _, site)| Reverse(site.sum_ns));
    rows.truncate(SITES);
    rows
}

pub fn sites(text: &mut Text, process: &ProcessSum) {
    let rows = shown_sites(process);
    if rows.is_empty() {
        return;
    }
    text.heading("Hottest places", "share of thread time");
    for (what, stack, site) in rows {
        let share = units::percent(site.sum_ns, process.lifetime_ns);
        let count = match site.class.starts_with("cpu.") {
            true => format!("{} samples", units::count(site.count)),
            false => format!(
                "{} times, max {}",
                units::count(site.count),
                units::duration(site.max_ns)
            ),
        };
        text.line([
            plain(format!("    {share:>6}  {what}  ")),
            (Style::Dim, count),
        ]);
        if let Some(stack) = stack {
            text.line([(Style::Dim, format!("            {stack}"))]);
        }
    }
}

pub fn locks(text: &mut Text, process: &ProcessSum) {
    let mut locks: Vec<_> = process.locks.iter().collect();
    if locks.is_empty() {
        return;
    }
    locks.sort_by_key(|(_, lock)| Reverse(lock.sum_ns));
    text.heading("Locks", "");
    let mut table = Table::new(&[
        ("address", Align::Left),
        ("waits", Align::Right),
        ("time", Align::Right),
        ("mean", Align::Right),
        ("max", Align::Right),
        ("held most by", Align::Left),
        ("who meanwhile was in", Align::Left),
    ]);
    for (address, lock) in locks.into_iter().take(LOCKS) {
        let holder = lock.holders.iter().max_by_key(|(_, h)| h.hold_ns);
        let (who, meanwhile) = holder.map_or_else(Default::default, |((tid, comm), held)| {
            let share = units::percent(held.hold_ns, lock.hold_ns);
            let who = format!("{comm} ({tid}), {share}");
            (who, largest(held.meanwhile.iter(), held.hold_ns))
        });
        table.row(vec![
            plain(address.clone()),
            plain(units::count(lock.waits)),
            plain(units::duration(lock.sum_ns)),
            plain(units::duration(
                lock.sum_ns.checked_div(lock.waits).unwrap_or(0),
            )),
            plain(units::duration(lock.max_ns)),
            plain(who),
            plain(meanwhile),
        ]);
    }
    table.put(text);
}

pub fn syscalls(text: &mut Text, process: &ProcessSum, wall_ns: u64) {
    let Some((mode, fraction)) = &process.syscall_mode else {
        return;
    };
    if process.syscalls.is_empty() {
        return;
    }
    let remark = match mode.as_str() {
        "full" => "every call".to_owned(),
        _ => format!(
            "counted in {:.0} % of the time and scaled, ± at 95 %",
            fraction * 100.0
        ),
    };
    text.heading("System calls", &remark);
    let mut rows: Vec<(&String, &SyscallSum)> = process.syscalls.iter().collect();
    rows.sort_by_key(|(_, row)| Reverse(row.time_ns()));
    let mut table = Table::new(&[
        ("name", Align::Left),
        ("calls", Align::Right),
        ("±", Align::Right),
        ("per s", Align::Right),
        ("time", Align::Right),
        ("mean", Align::Right),
        ("p99", Align::Right),
        ("max", Align::Right),
        ("bytes", Align::Right),
        ("errors", Align::Left),
    ]);
    for (name, row) in rows.into_iter().take(SYSCALLS) {
        let errors = row.errors.iter();
        let errors: Vec<String> = errors
            .map(|(errno, n)| format!("{errno} {}", units::count(*n)))
            .collect();
        let error = match row.count_error() {
            0 => String::new(),
            error => units::percent(error, row.count),
        };
        let bytes = match row.bytes {
            0 => String::new(),
            bytes => units::bytes(bytes),
        };
        table.row(vec![
            plain(name.clone()),
            plain(units::count(row.count)),
            plain(error),
            plain(units::rate(row.count as f64 * 1e9 / wall_ns.max(1) as f64)),
            plain(units::duration(row.time_ns())),
            plain(units::duration(row.latency.mean_ns())),
            plain(p99(&row.latency)),
            plain(units::duration(row.latency.max_ns)),
            plain(bytes),
            plain(errors.join(", ")),
        ]);
    }
    table.put(text);
}

pub fn block_io(text: &mut Text, process: &ProcessSum) {
    if process.block_io.is_empty() {
        return;
    }
    text.heading("Block I/O", "");
    let mut table = Table::new(&[
        ("device", Align::Left),
        ("operation", Align::Left),
        ("bytes", Align::Right),
        ("count", Align::Right),
        ("mean", Align::Right),
        ("p99", Align::Right),
        ("max", Align::Right),
    ]);
    let mut rows: Vec<_> = process.block_io.iter().collect();
    rows.sort_by_key(|(_, sum)| Reverse(sum.latency.sum_ns));
    for ((device, operation), sum) in rows {
        let mut cells = vec![
            plain(device.clone()),
            plain(operation.clone()),
            plain(units::bytes(sum.bytes)),
            plain(units::count(sum.requests)),
        ];
        cells.extend(latency_cells(Some(&sum.latency)).into_iter().skip(1));
        table.row(cells);
    }
    table.put(text);
}

/// What takes one line each: page faults, throttling, short-lived processes.
pub fn facts(text: &mut Text, process: &ProcessSum, wall_ns: u64) {
    let per_s = |n: u64| units::rate(n as f64 * 1e9 / wall_ns.max(1) as f64);
    let faults = &process.faults;
    let mut lines = Vec::new();
    if faults.minor + faults.major > 0 {
        let mut line = format!(
            "page faults: {} minor ({}/s), {} major, asleep in them {}",
            units::count(faults.minor),
            per_s(faults.minor),
            units::count(faults.major),
            units::duration(faults.blocked_ns),
        );
        if let Some(cpu_ns) = faults.cpu_ns.filter(|_| faults.cpu_samples > 0) {
            line.push_str(&format!(
                ", on the CPU in them {} ({} samples)",
                units::duration(cpu_ns),
                units::count(faults.cpu_samples)
            ));
        }
        lines.push(line);
    }
    if let Some(throttled) = process.throttled.as_ref().filter(|t| t.periods > 0) {
        lines.push(format!(
            "CPU quota of {}: {} of {} periods cut short, {} throttled",
            throttled.cgroup,
            units::count(throttled.throttled_periods),
            units::count(throttled.periods),
            units::duration(throttled.throttled_ns),
        ));
    }
    let gone = &process.short_lived;
    if gone.processes > 0 {
        let mut comms: Vec<_> = gone.comms.iter().collect();
        comms.sort_by_key(|(_, count)| Reverse(**count));
        let comms = comms.into_iter().take(3);
        let comms: Vec<String> = comms.map(|(name, n)| format!("{name} {n}")).collect();
        lines.push(format!(
            "short-lived processes: {} ({}/s; {}), {} thread time",
            units::count(gone.processes),
            per_s(gone.processes),
            comms.join(", "),
            units::duration(gone.lifetime_ns),
        ));
    }
    if !lines.is_empty() {
        text.gap();
    }
    for line in lines {
        text.line([plain(format!("  {line}"))]);
    }
}
