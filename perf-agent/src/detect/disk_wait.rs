//! Threads that wait for storage: which files, which call, which device.

use std::collections::BTreeMap;

use super::view::{View, class, mean, ratio};
use super::{Candidate, DATABASE_SPECIALIST, Explain, evidence, top_stacks};
use crate::model::{BlockIo, Detail, Evidence, Site};
use crate::sink::units;

/// Calls that wait until data is on storage.
const SYNC_CALLS: &[&str] = &[
    "fsync",
    "fdatasync",
    "sync_file_range",
    "msync",
    "sync",
    "syncfs",
];
/// Programs whose files are a database's: their waits are for the one who runs it.
const DATABASES: &[&str] = &[
    "postgres",
    "mysqld",
    "mariadbd",
    "mongod",
    "redis-server",
    "clickhouse",
    "sqlservr",
    "oracle",
];
/// Families with a finding of their own; the rest is one.
const MAX_FAMILIES: usize = 2;

pub const EXPLAIN: Explain = Explain {
    looks_at: "time blocked on storage, by files that belong together and by call",
    numbers: &[
        ("wait", "thread time spent waiting for it, a second"),
        ("waits", "waits that ended, a second"),
        ("mean_wait", "length of one"),
        ("max_wait", "the longest one since the attach"),
        ("fsync_share", "part of it inside fsync and its kind"),
        (
            "fsync_cpu",
            "CPU time inside fsync and its kind, a second, which fewer of them save too; part of the bound",
        ),
        ("device_mean", "a request’s time at the busiest device"),
        ("device_p99", "99 of 100 requests are shorter"),
        ("device_mean_size", "bytes of a request"),
    ],
    bound: "time blocked on these files, and the kernel's CPU time in the calls that write \
               through.",
    confidence: "0.9 where files can be named, 0.7 where they cannot: the wait is measured \
               either way.",
    next: "Compare the wait with the device’s own time: if that is short, fewer calls help; if it is long, the device does not keep up.",
};

pub fn find(view: &View) -> Vec<Candidate> {
    let total_ns = view.class("disk");
    if total_ns == 0 {
        return Vec::new();
    }
    let mut families: BTreeMap<String, Vec<&Site>> = BTreeMap::new();
    for site in view.sites(is_disk) {
        if let Some(family) = family_of(site) {
            families.entry(family).or_default().push(site);
        }
    }
    let sum = |sites: &[&Site]| sites.iter().map(|site| site.sum_ns).sum::<u64>();
    // The places that are not shown are taken to be of the same kinds as those that are.
    let shown_ns: u64 = view.sites(is_disk).map(|site| site.sum_ns).sum();
    let rest_ns = class(&view.profile.rest, "disk");
    let with_rest = |ns: u64| ns + (rest_ns as f64 * ratio(ns, shown_ns)) as u64;
    let mut families: Vec<(String, Vec<&Site>)> = families.into_iter().collect();
    families.sort_by_key(|(_, sites)| std::cmp::Reverse(sum(sites)));
    let mut found = Vec::new();
    let mut named_ns = 0;
    for (family, sites) in families.iter().take(MAX_FAMILIES) {
        let wait_ns = with_rest(sum(sites)).min(total_ns - named_ns);
        named_ns += wait_ns;
        found.push(candidate(view, Some(family), sites, wait_ns));
    }
    let of_rest = |site: &&Site| match family_of(site) {
        Some(family) => families
            .iter()
            .skip(MAX_FAMILIES)
            .any(|(other, _)| *other == family),
        None => true,
    };
    let rest: Vec<&Site> = view.sites(is_disk).filter(of_rest).collect();
    if total_ns > named_ns {
        found.push(candidate(view, None, &rest, total_ns - named_ns));
    }
    found
}

fn is_disk(class: &str) -> bool {
    class == "disk"
}

/// Directory and extension of a site's file, runs of digits folded: files that are one to the
/// program that writes them.
fn family_of(site: &Site) -> Option<String> {
    match &site.detail {
        Some(Detail::File {
            path: Some(path), ..
        }) => Some(file_family(path)),
        Some(Detail::File { device, .. }) => Some(format!("files on {device}")),
        _ => None,
    }
}

fn file_family(path: &str) -> String {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    let name = match name.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() => format!("*.{}", fold_digits(extension)),
        _ => fold_digits(name),
    };
    format!("{}/{name}", fold_digits(directory))
}

/// Runs of digits become `#`; so do runs of eight or more hexadecimal digits (log segments, hashes).
fn fold_digits(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let hex = rest.bytes().take_while(u8::is_ascii_hexdigit).count();
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let folded = if hex >= 8 { hex } else { digits };
        if folded > 0 {
            out.push('#');
            rest = &rest[folded..];
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

fn is_sync(site: &Site) -> bool {
    site.syscall
        .as_deref()
        .is_some_and(|name| SYNC_CALLS.contains(&name))
}

/// Whether a sample fell into such a call: samples have no call, but the C library's function for it is
/// innermost of the program's stack.
fn is_in_sync(site: &Site) -> bool {
    site.user_stack.first().is_some_and(|frame| {
        let name = frame.name.trim_start_matches("__GI_");
        SYNC_CALLS.contains(&name.trim_start_matches('_'))
    })
}

/// The call that waits longest.
fn top_call(sites: &[&Site]) -> Option<String> {
    let mut by_call: BTreeMap<&str, u64> = BTreeMap::new();
    for site in sites {
        if let Some(name) = &site.syscall {
            *by_call.entry(name).or_default() += site.sum_ns;
        }
    }
    let top = by_call.into_iter().max_by_key(|(_, ns)| *ns);
    top.map(|(name, _)| name.to_owned())
}

fn candidate(view: &View, family: Option<&str>, sites: &[&Site], wait_ns: u64) -> Candidate {
    let total_ns = view.class("disk");
    let share = view.share_of(|classes| class(classes, "disk")) * ratio(wait_ns, total_ns);
    let call = top_call(sites);
    let sites_ns: u64 = sites.iter().map(|site| site.sum_ns).sum();
    let sync_sites = sites.iter().filter(|site| is_sync(site));
    let sync_share = ratio(sync_sites.map(|site| site.sum_ns).sum(), sites_ns);
    let what = match (family, &call) {
        (Some(family), Some(call)) => format!("{call} of {family}"),
        (Some(family), None) => family.to_owned(),
        (None, Some(call)) => format!("{call} of various files"),
        (None, None) => "storage".to_owned(),
    };
    let cpu_ns = if sync_share >= 0.5 {
        sync_cpu_ns(view, sites)
    } else {
        0
    };
    let bound_ns = wait_ns.saturating_add(cpu_ns);
    let mut found = Candidate::new(family.unwrap_or("other files"), bound_ns, share);
    // The wait is measured; that files could be named says what to change.
    found.confidence = if family.is_some() { 0.9 } else { 0.7 };
    let comm = view.who().comm.as_str();
    if DATABASES.contains(&comm) {
        (found.area, found.delegate) = ("database_performance", DATABASE_SPECIALIST);
    }
    let device = busiest_device(view);
    let on = match device {
        Some(io) => format!(
            " ({}: mean {})",
            io.device,
            units::duration(mean(io.latency.sum_ns, io.latency.count))
        ),
        None => String::new(),
    };
    found.title = format!(
        "Threads wait {} for the disk: {what}{on}",
        units::duration_per_s(view.per_s(wait_ns)),
    );
    found.subject = what;
    found.evidence = figures(view, sites, wait_ns, sync_share, device);
    if cpu_ns > 0 {
        let value = view.per_s(cpu_ns) as f64;
        found.evidence.push(evidence(
            "fsync_cpu",
            value,
            "ns/s",
            sites.iter().map(|site| site.count).sum(),
        ));
    }
    found.recommendations = recommendations(sync_share);
    found.stacks = top_stacks(sites.iter().copied());
    found
}

/// CPU time that goes into syncing, by these sites' part of all the waits for it.
fn sync_cpu_ns(view: &View, sites: &[&Site]) -> u64 {
    let on_cpu = view.sites(|class| class == "cpu.kernel");
    let cpu_ns: u64 = on_cpu.filter(|s| is_in_sync(s)).map(|s| s.sum_ns).sum();
    let waits = |sites: &mut dyn Iterator<Item = &Site>| {
        let sync = sites.filter(|site| is_sync(site));
        sync.map(|site| site.sum_ns).sum::<u64>()
    };
    let theirs = waits(&mut sites.iter().copied());
    (cpu_ns as f64 * ratio(theirs, waits(&mut view.sites(is_disk)))) as u64
}

/// The device and operation the process's requests spent most time in.
fn busiest_device<'a>(view: &View<'a>) -> Option<&'a BlockIo> {
    let io = view.ledger.block_io.iter();
    io.filter(|io| io.latency.count > 0)
        .max_by_key(|io| io.latency.sum_ns)
}

fn figures(
    view: &View,
    sites: &[&Site],
    wait_ns: u64,
    sync_share: f64,
    device: Option<&BlockIo>,
) -> Vec<Evidence> {
    let waits: u64 = sites.iter().map(|site| site.count).sum();
    let longest = sites.iter().map(|site| site.max_ns).max().unwrap_or(0);
    let mut out = vec![
        evidence("wait", view.per_s(wait_ns) as f64, "ns/s", waits),
        evidence("waits", view.per_s(waits) as f64, "1/s", waits),
        evidence("mean_wait", mean(wait_ns, waits) as f64, "ns", waits),
        evidence("max_wait", longest as f64, "ns", waits),
        evidence("fsync_share", sync_share, "ratio", waits),
    ];
    if let Some(io) = device {
        let latency = &io.latency;
        let mean_ns = mean(latency.sum_ns, latency.count) as f64;
        out.push(evidence("device_mean", mean_ns, "ns", latency.count));
        let p99_ns = latency.p99_ns as f64;
        out.push(evidence("device_p99", p99_ns, "ns", latency.count));
        let size = mean(io.bytes, latency.count) as f64;
        out.push(evidence("device_mean_size", size, "bytes", latency.count));
    }
    out
}

fn recommendations(sync_share: f64) -> Vec<String> {
    let texts: &[&str] = if sync_share >= 0.5 {
        &[
            "Sync once for several writes (group commit) instead of after each",
            "Leave syncing to a thread of its own, where the caller needs no durability at once",
            "Check whether each of these files must survive a power loss at all",
            "Put them on a device with a protected write cache, apart from other load",
        ]
    } else {
        &[
            "Keep what is read again in memory: more page cache, or a cache of the program's own",
            "Read in larger blocks and ahead of need (readahead, posix_fadvise, io_uring)",
            "Do the I/O in other threads than those that serve requests",
            "Compare the device's latency with what it should do; look for other load on it",
        ]
    };
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{frame, latency, report, site, thread};

    fn file(path: &str) -> Option<Detail> {
        Some(Detail::File {
            device: "254:0".into(),
            inode: 7,
            path: Some(path.into()),
        })
    }

    #[test]
    fn an_fsync_loop_names_its_files_call_and_device() {
        let times = [("cpu.kernel", 50_000_000), ("disk", 950_000_000)];
        let mut report = report("log", vec![thread(1, &times)]);
        report.profile.sites = vec![
            site("disk", "fsync", 80, 800_000_000, file("/data/seg-0001.wal")),
            site("disk", "write", 10, 100_000_000, file("/data/seg-0002.wal")),
        ];
        report.ledger.block_io = vec![BlockIo {
            device: "vda".into(),
            operation: "flush".into(),
            requests: 100,
            bytes: 0,
            latency: crate::model::Latency {
                sum_ns: 700_000_000,
                p99_ns: 20_000_000,
                ..latency(100)
            },
        }];
        report.profile.rest.insert("disk".into(), 30_000_000);
        let found = find(&View::new(&report));
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].bound_ns, 930_000_000, "with the places not shown");
        assert_eq!(found[0].key, "/data/*.wal");
        assert_eq!(
            found[0].title,
            "Threads wait 930 ms/s for the disk: fsync of /data/*.wal (vda: mean 7.00 ms)"
        );
        let figures: Vec<(&str, f64)> = found[0]
            .evidence
            .iter()
            .map(|e| (e.name.as_str(), e.value))
            .collect();
        assert_eq!(figures[0], ("wait", 9.3e8));
        assert_eq!(figures[2], ("mean_wait", 10_333_333.0));
        assert_eq!(figures[4].0, "fsync_share");
        assert!((figures[4].1 - 8.0 / 9.0).abs() < 1e-9);
        assert_eq!(figures[6], ("device_p99", 20e6));
        assert!(found[0].recommendations[0].contains("group commit"));
        assert_eq!(found[0].delegate, super::super::PERFORMANCE_ENGINEER);
        assert_eq!(found[1].bound_ns, 20_000_000, "what no site explains");
    }

    #[test]
    fn the_cpu_time_of_fsync_is_saved_with_it() {
        let times = [("cpu.kernel", 300_000_000), ("disk", 700_000_000)];
        let mut report = report("log", vec![thread(1, &times)]);
        report.profile.sites = vec![
            site("disk", "fsync", 80, 600_000_000, file("/data/1.wal")),
            site("disk", "fsync", 10, 100_000_000, file("/data/1.index")),
            site("cpu.kernel", "", 30, 210_000_000, None),
            site("cpu.kernel", "", 9, 90_000_000, None),
        ];
        report.profile.sites[2].user_stack = vec![frame("__GI_fsync", "/lib/libc.so.6")];
        report.profile.sites[3].user_stack = vec![frame("__GI___libc_write", "/lib/libc.so.6")];
        let found = find(&View::new(&report));
        assert_eq!(found[0].bound_ns, 600_000_000 + 180_000_000);
        assert_eq!(found[1].bound_ns, 100_000_000 + 30_000_000);
        assert!(
            found[0].title.starts_with("Threads wait 600 ms/s"),
            "{}",
            found[0].title
        );
    }

    #[test]
    fn a_database_waiting_for_its_files_is_for_the_database_specialist() {
        let mut report = report("postgres", vec![thread(1, &[("disk", 1_000_000_000)])]);
        report.profile.sites = vec![site(
            "disk",
            "pread64",
            9,
            1_000_000_000,
            file("/pg/base/16384/2601"),
        )];
        let found = find(&View::new(&report));
        assert_eq!(found[0].delegate, DATABASE_SPECIALIST);
        assert_eq!(found[0].key, "/pg/base/#/#");
        assert!(found[0].recommendations[0].contains("page cache"));
    }

    #[test]
    fn a_process_that_never_waits_for_storage_gives_nothing() {
        let report = report("app", vec![thread(1, &[("cpu.user", 1_000_000_000)])]);
        assert!(find(&View::new(&report)).is_empty());
    }

    #[test]
    fn files_fold_into_families() {
        for (path, want) in [
            ("/var/log/app.log.3", "/var/log/*.#"),
            ("/pg/pg_wal/00000001000000A2000000FB", "/pg/pg_wal/#"),
            ("/data/MANIFEST-000123", "/data/MANIFEST-#"),
            ("/tmp/x.tmp (deleted)", "/tmp/*.tmp"),
            ("/home/.profile", "/home/.profile"),
            ("name", "/name"),
            ("/d\u{e9}j\u{e0}12/v\u{fc}.db", "/d\u{e9}j\u{e0}#/*.db"),
        ] {
            assert_eq!(file_family(path), want, "{path}");
        }
    }
}
