//! Sites and locks: where time went, by stack and by what was waited for.

use std::collections::{BTreeMap, HashMap};

use perf_ebpf_common::{
    CLASS_NAMES, class,
    signals::ledger::{SiteKey, SiteTotals, detail},
    sys,
};

use super::{accelerator, locks::Locks, threads::Account};
use crate::{
    detect::in_fault,
    drain::{FileFact, StackFact},
    kernel::tables::syscall_name,
    model::{AcceleratorCall, Classes, Detail, Frame, Lock, Site},
    signals::entries,
};

/// Sites shown of each class.
const TOP_SITES: usize = 8;

/// A process's part of a window.
#[derive(Default)]
pub struct ProcessProfile {
    pub sites: Vec<Site>,
    pub rest: Classes,
    pub locks: Vec<Lock>,
    /// CPU time in page faults, where kernel stacks could be read, and its samples.
    pub fault_cpu: (Option<u64>, u64),
    pub accelerator: Vec<AcceleratorCall>,
}

/// Where time went, cumulative and per window.
#[derive(Default)]
pub struct Profiles {
    now: HashMap<SiteKey, SiteTotals>,
    /// Count and time up to the end of the window before, open intervals included.
    before: HashMap<SiteKey, (u64, u64)>,
    pub locks: Locks,
    stacks: HashMap<u64, Vec<Frame>>,
    unix: HashMap<u64, String>,
    files: HashMap<(u32, u64), String>,
    /// Every site is given, as it was measured: not the top ones, and none merged.
    pub every_site: bool,
}

impl Profiles {
    pub fn sites(&mut self, bytes: &[u8]) {
        self.now.extend(entries::<SiteKey, SiteTotals>(bytes));
    }

    pub fn stack(&mut self, fact: &StackFact) {
        let frames = fact
            .frames
            .iter()
            .map(|f| Frame {
                name: f.name.clone(),
                module: f.module.clone(),
                source: f.source.clone(),
                build_id: f.build_id.clone(),
                symbolized: f.symbolized,
                inlined: f.inlined,
            })
            .collect();
        self.stacks.insert(fact.id, frames);
    }

    pub fn unix_name(&mut self, id: u64, path: String) {
        self.unix.insert(id, path);
    }

    pub fn file(&mut self, fact: &FileFact) {
        self.files.insert((fact.dev, fact.inode), fact.path.clone());
    }

    pub fn slot_freed(&mut self, slot: u32) {
        self.before.retain(|key, _| u32::from(key.slot) != slot);
        self.locks.slot_freed(slot);
    }

    /// Profiles of the window by process. `open` is the time of intervals still open, by site.
    pub fn window(
        &mut self,
        owners: &BTreeMap<u32, u32>,
        open: &HashMap<SiteKey, u64>,
        accounts: &[Account],
    ) -> HashMap<u32, ProcessProfile> {
        let mut totals: HashMap<SiteKey, (u64, u64, u64)> = std::mem::take(&mut self.now)
            .into_iter()
            .map(|(k, t)| (k, (t.count, t.sum_ns, t.max_ns)))
            .collect();
        for (key, ns) in open {
            totals.entry(*key).or_default().1 += ns;
        }
        let mut by_process: HashMap<u32, Vec<(SiteKey, Site)>> = HashMap::new();
        for (key, (count, sum_ns, max_ns)) in totals {
            let before = self.before.insert(key, (count, sum_ns)).unwrap_or_default();
            let (count, sum_ns) = (
                count.saturating_sub(before.0),
                sum_ns.saturating_sub(before.1),
            );
            let Some(pid) = owners.get(&key.slot.into()).filter(|_| count + sum_ns > 0) else {
                continue;
            };
            let site = self.site(&key, count, sum_ns, max_ns);
            by_process.entry(*pid).or_default().push((key, site));
        }
        let mut locks = self
            .locks
            .window(accounts, owners, &by_process, &self.stacks);
        by_process
            .into_iter()
            .map(|(pid, sites)| {
                let account = accounts.iter().find(|a| a.who.pid == pid);
                let locks = locks.remove(&pid).unwrap_or_default();
                (pid, profile(sites, account, locks, self.every_site))
            })
            .collect()
    }

    fn site(&self, key: &SiteKey, count: u64, sum_ns: u64, max_ns: u64) -> Site {
        let cpu = key.class == class::CPU;
        let class = match (cpu, key.nr) {
            (true, 0) => "cpu.user",
            (true, _) => "cpu.kernel",
            (false, _) => CLASS_NAMES
                .get(key.class as usize)
                .copied()
                .unwrap_or("other"),
        };
        Site {
            class: class.to_owned(),
            syscall: (!cpu && key.nr != sys::NR_NONE).then(|| syscall_name(key.nr.into())),
            count,
            sum_ns,
            max_ns,
            detail: self.detail(key),
            user_stack: self.named(key.user_stack),
            kernel_stack: self.named(key.kernel_stack),
        }
    }

    /// Frames of a stack; none where it is not known.
    pub fn named(&self, id: u64) -> Vec<Frame> {
        self.stacks.get(&id).cloned().unwrap_or_default()
    }

    fn detail(&self, key: &SiteKey) -> Option<Detail> {
        Some(match key.detail_kind {
            detail::FUTEX => Detail::Futex {
                address: format!("{:#x}", key.detail[0]),
            },
            detail::INET4 => {
                let address = std::net::Ipv4Addr::from((key.detail[0] as u32).to_ne_bytes());
                Detail::Peer {
                    peer: format!("{address}:{}", key.port),
                    port: key.port,
                }
            }
            detail::INET6 => {
                let mut bytes = [0; 16];
                bytes[..8].copy_from_slice(&key.detail[0].to_ne_bytes());
                bytes[8..].copy_from_slice(&key.detail[1].to_ne_bytes());
                let address = std::net::Ipv6Addr::from(bytes);
                Detail::Peer {
                    peer: format!("[{address}]:{}", key.port),
                    port: key.port,
                }
            }
            detail::UNIX => Detail::Unix {
                path: self.unix.get(&key.detail[0]).cloned().unwrap_or_default(),
            },
            detail::FILE => {
                let dev = key.detail[1] as u32;
                Detail::File {
                    device: format!("{}:{}", dev >> 20, dev & 0xf_ffff),
                    inode: key.detail[0],
                    path: self.files.get(&(dev, key.detail[0])).cloned(),
                }
            }
            _ => return None,
        })
    }
}

/// The top sites of each class, and what the others sum to; or every site.
fn profile(
    mut sites: Vec<(SiteKey, Site)>,
    account: Option<&Account>,
    locks: Vec<Lock>,
    every_site: bool,
) -> ProcessProfile {
    sites.sort_by_key(|(key, _)| *key);
    if every_site {
        return ProcessProfile {
            sites: sites.into_iter().map(|(_, site)| site).collect(),
            rest: Classes::new(),
            locks,
            // Samples are not scaled to time here.
            fault_cpu: (None, 0),
            accelerator: Vec::new(),
        };
    }
    let mut sites: Vec<Site> = merge(sites);
    // A sample stands for its share of the class's time.
    for class in ["cpu.user", "cpu.kernel"] {
        let samples: u64 = sites
            .iter()
            .filter(|s| s.class == class)
            .map(|s| s.count)
            .sum();
        let time = account
            .and_then(|a| a.ledger.classes.get(class))
            .copied()
            .unwrap_or(0);
        for site in sites.iter_mut().filter(|s| s.class == class) {
            site.sum_ns =
                (u128::from(time) * u128::from(site.count) / u128::from(samples.max(1))) as u64;
        }
    }
    let fault_cpu = fault_cpu(&sites);
    let accelerator = accelerator::calls(&sites);
    sites.sort_by(|a, b| {
        b.sum_ns
            .cmp(&a.sum_ns)
            .then_with(|| b.count.cmp(&a.count))
            .then_with(|| order(a).cmp(&order(b)))
    });
    let mut shown: HashMap<String, usize> = HashMap::new();
    let mut rest = Classes::new();
    sites.retain(|site| {
        let n = shown.entry(site.class.clone()).or_default();
        *n += 1;
        if *n > TOP_SITES {
            *rest.entry(site.class.clone()).or_default() += site.sum_ns;
        }
        *n <= TOP_SITES
    });
    ProcessProfile {
        sites,
        rest,
        locks,
        fault_cpu,
        accelerator,
    }
}

/// CPU time and samples in page faults; no time where the kernel's stacks have no names.
fn fault_cpu(sites: &[Site]) -> (Option<u64>, u64) {
    let in_kernel: Vec<&Site> = sites.iter().filter(|s| s.class == "cpu.kernel").collect();
    let named = |site: &&Site| site.kernel_stack.iter().any(|f| f.symbolized);
    if !in_kernel.is_empty() && !in_kernel.iter().any(named) {
        return (None, 0);
    }
    let faults = in_kernel.iter().filter(|s| in_fault(s));
    let (ns, samples) = faults.fold((0, 0), |sum, s| (sum.0 + s.sum_ns, sum.1 + s.count));
    (Some(ns), samples)
}

/// What is shown of a site's place: class, system call, detail, frames.
type Reading = (String, Option<String>, Option<Detail>, Vec<String>);

/// Sites that read the same (the same names at other addresses) are one. Takes them in order.
fn merge(sites: Vec<(SiteKey, Site)>) -> Vec<Site> {
    let mut merged: Vec<Site> = Vec::new();
    let mut index: HashMap<Reading, usize> = HashMap::new();
    for (_, site) in sites {
        let names: Vec<String> = site
            .user_stack
            .iter()
            .chain(&site.kernel_stack)
            .map(|f| f.name.clone())
            .collect();
        let key = (
            site.class.clone(),
            site.syscall.clone(),
            site.detail.clone(),
            names,
        );
        match index.get(&key) {
            Some(at) => {
                let into: &mut Site = &mut merged[*at];
                into.count += site.count;
                into.sum_ns += site.sum_ns;
                into.max_ns = into.max_ns.max(site.max_ns);
            }
            None => {
                index.insert(key, merged.len());
                merged.push(site);
            }
        }
    }
    merged
}

/// A total order of sites with equal figures, so that equal input gives equal output.
fn order(site: &Site) -> (&str, Option<&str>, Option<&Detail>, Vec<&str>) {
    (
        &site.class,
        site.syscall.as_deref(),
        site.detail.as_ref(),
        site.user_stack
            .iter()
            .chain(&site.kernel_stack)
            .map(|f| f.name.as_str())
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{frame, site};

    fn kernel(names: &[&str], samples: u64, sum_ns: u64) -> Site {
        let mut site = site("cpu.kernel", "", samples, sum_ns, None);
        site.kernel_stack = names.iter().map(|n| frame(n, "[kernel]")).collect();
        site
    }

    #[test]
    fn time_in_faults_is_that_of_the_samples_that_went_through_the_fault_entry() {
        let sites = [
            kernel(
                &["clear_page_rep", "handle_mm_fault", "asm_exc_page_fault"],
                6,
                60,
            ),
            kernel(&["do_anonymous_page", "do_page_fault", "el0_da"], 3, 30),
            kernel(&["vfs_read", "do_syscall_64"], 9, 90),
        ];
        assert_eq!(fault_cpu(&sites), (Some(90), 9));
    }

    #[test]
    fn without_kernel_stacks_the_time_in_faults_is_unknown_and_without_kernel_time_it_is_none() {
        assert_eq!(fault_cpu(&[kernel(&[], 9, 90)]), (None, 0));
        assert_eq!(fault_cpu(&[]), (Some(0), 0));
    }
}
