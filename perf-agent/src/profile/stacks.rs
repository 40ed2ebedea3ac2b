//! Sums of time by process, class and stack, over the windows of a trace.
//!
//! What the sums of a class come to is what the ledger says of it, in every window: a CPU sample
//! stands for its share of the class's time; where places of blocks come to more (they keep the time
//! of the events, the ledger that of the scheduler's clocks) they are scaled down; what the ledger
//! has beyond the places (run queue time above all) is there without a stack.

use std::collections::{BTreeMap, HashMap};

use crate::{
    cli::{Mode, Shown},
    detect::hot_function,
    drain::Start,
    model::{
        self, AllocationSite, Classes, Coverage, Detail, ProcessReport, Site, StackMemoCoverage,
        WindowReport,
    },
};

/// Most different stacks kept (by process, class, call and what is waited for), about 100 MB; past
/// it time is kept without its stack.
const MAX_STACKS: usize = 262_144;

/// A frame that is referred to by its place in [`Stacks::frames`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Frame {
    pub frame: model::Frame,
    pub kernel: bool,
}

/// Where time went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// In [`Stacks::processes`].
    pub process: u32,
    pub class: String,
    /// Outermost first: user code, then the kernel. Empty where no stack is known.
    pub stack: Vec<u32>,
    pub syscall: Option<String>,
    /// What is waited for: a peer, a file, a lock.
    pub on: Option<String>,
}

/// How much of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amount {
    /// Completed waits; samples on the CPU; parts of objects that were allocated.
    pub count: u64,
    /// Nanoseconds; bytes that were allocated.
    pub weight: u64,
}

/// The classes of memory: what was allocated is the sum of both.
pub const LIVE: &str = "live";
pub const FREED: &str = "freed";

/// What the figures rest on.
#[derive(Default)]
pub struct Basis {
    pub realtime_ns: u64,
    pub start_ns: u64,
    pub end_ns: u64,
    /// All processes and classes.
    pub lifetime_ns: u64,
    pub residual_ns: u64,
    /// Nanoseconds; bytes that were allocated.
    pub shown_ns: u64,
    /// Allocations that were sampled.
    pub samples: u64,
    /// What of the allocator is probed, and what that costs.
    pub probes: Option<String>,
    pub stackless_ns: u64,
    /// By class, what `--mode` and `--idle` leave out.
    pub left_out: Classes,
    /// By which places had more time than their class, and were scaled down.
    pub scaled_ns: u64,
    pub lost: BTreeMap<String, u64>,
    pub memo: StackMemoCoverage,
    pub agent_cpu_ns: u64,
    pub agent_bpf_ns: u64,
    pub agent_rss_bytes: u64,
}

/// The sums.
pub struct Stacks {
    pub shown: Shown,
    pub processes: Vec<model::Process>,
    pub frames: Vec<Frame>,
    pub basis: Basis,
    ids: HashMap<Frame, u32>,
    places: HashMap<Place, Amount>,
    /// By class and function of the program's own, for the first line.
    own: BTreeMap<(String, String), u64>,
    max_stacks: usize,
}

impl Stacks {
    pub fn new(shown: Shown) -> Stacks {
        Stacks {
            shown,
            processes: Vec::new(),
            frames: Vec::new(),
            basis: Basis::default(),
            ids: HashMap::new(),
            places: HashMap::new(),
            own: BTreeMap::new(),
            max_stacks: MAX_STACKS,
        }
    }

    pub fn start(&mut self, start: &Start) {
        self.basis.realtime_ns = start.realtime_ns;
        self.basis.start_ns = start.monotonic_ns;
        let mut signals = start.signals.iter();
        let probes = signals.find(|(name, ..)| name == "allocations");
        self.basis.probes = probes.map(|(_, _, how)| how.clone());
    }

    /// Adds a window.
    pub fn window(&mut self, report: WindowReport) {
        for process in report.processes {
            self.process(process);
        }
        self.coverage(&report.coverage);
    }

    /// Everything, in the same order for the same trace.
    pub fn in_order(&self) -> Vec<(&Place, Amount)> {
        let mut places: Vec<_> = self.places.iter().map(|(p, a)| (p, *a)).collect();
        places.sort();
        places
    }

    /// The function of the program's own with the most time in one class: class, function, time.
    pub fn hottest(&self) -> Option<(&str, &str, u64)> {
        let hottest = self.own.iter().max_by_key(|(_, ns)| **ns);
        hottest.map(|((class, function), ns)| (class.as_str(), function.as_str(), *ns))
    }

    /// Whether a class is asked for.
    fn shows(&self, class: &str) -> bool {
        let on_cpu = class.starts_with("cpu.");
        match self.shown.mode {
            Mode::Cpu => on_cpu,
            Mode::Off if on_cpu => false,
            Mode::Off | Mode::Wall => class != "idle" || self.shown.idle,
            Mode::Alloc => false,
        }
    }

    fn process(&mut self, report: ProcessReport) {
        let ledger = report.ledger;
        let process = self.process_number(ledger.who);
        if self.shown.mode == Mode::Alloc {
            for site in report.allocations {
                self.allocation(process, site);
            }
            return;
        }
        // Processes too young for lines of their own charge their parent's places.
        let mut totals = ledger.process.classes;
        for (class, ns) in ledger.process.short_lived.unwrap_or_default().classes {
            *totals.entry(class).or_default() += ns;
        }
        let mut by_class: BTreeMap<String, Vec<Site>> = BTreeMap::new();
        for site in report.profile.sites {
            by_class.entry(site.class.clone()).or_default().push(site);
        }
        for (class, total) in totals {
            if self.shows(&class) {
                let sites = by_class.remove(&class).unwrap_or_default();
                self.class(process, &class, total, sites);
            } else {
                *self.basis.left_out.entry(class).or_default() += total;
            }
        }
        // The ledger has none of their class: there is nothing to scale them to.
        for (class, sites) in by_class {
            if self.shows(&class) {
                self.basis.scaled_ns += sites.iter().map(|s| s.sum_ns).sum::<u64>();
            }
        }
    }

    /// What is freed leaves the live bytes of its stack, which may have been allocated windows ago.
    fn allocation(&mut self, process: u32, site: AllocationSite) {
        self.basis.shown_ns += site.bytes;
        self.basis.samples += site.samples;
        let live = Amount {
            count: site.object_parts.wrapping_sub(site.freed_object_parts),
            weight: site.bytes.wrapping_sub(site.freed_bytes),
        };
        let freed = Amount {
            count: site.freed_object_parts,
            weight: site.freed_bytes,
        };
        let stack: Vec<u32> = site
            .user_stack
            .iter()
            .rev()
            .cloned()
            .map(|f| self.frame(f, false))
            .collect();
        let function = hot_function(&Site {
            user_stack: site.user_stack,
            ..Site::default()
        });
        for (class, amount) in [(LIVE, live), (FREED, freed)] {
            if let Some(function) = &function {
                let own = self
                    .own
                    .entry((class.to_owned(), function.clone()))
                    .or_default();
                *own = own.wrapping_add(amount.weight);
            }
            let place = Place {
                process,
                class: class.to_owned(),
                stack: stack.clone(),
                ..Place::default()
            };
            let sum = self.places.entry(place).or_default();
            // Of one stack less is freed than was allocated, all windows together.
            sum.count = sum.count.wrapping_add(amount.count);
            sum.weight = sum.weight.wrapping_add(amount.weight);
        }
        if stack.is_empty() {
            self.basis.stackless_ns += site.bytes;
        }
    }

    fn class(&mut self, process: u32, class: &str, total: u64, sites: Vec<Site>) {
        let weights: Vec<u64> = match class.starts_with("cpu.") {
            true => sites.iter().map(|s| s.count).collect(),
            false => sites.iter().map(|s| s.sum_ns).collect(),
        };
        let sum: u64 = weights.iter().sum();
        let times = match class.starts_with("cpu.") || sum > total {
            true => shares(total, &weights),
            false => weights,
        };
        if !class.starts_with("cpu.") {
            self.basis.scaled_ns += sum.saturating_sub(total);
        }
        self.basis.shown_ns += total;
        let stackless = total - times.iter().sum::<u64>();
        for (site, weight) in sites.into_iter().zip(times) {
            self.site(process, site, weight);
        }
        if stackless > 0 {
            self.basis.stackless_ns += stackless;
            let place = Place {
                process,
                class: class.to_owned(),
                ..Place::default()
            };
            self.places.entry(place).or_default().weight += stackless;
        }
    }

    fn site(&mut self, process: u32, site: Site, weight: u64) {
        if let Some(function) = hot_function(&site) {
            *self.own.entry((site.class.clone(), function)).or_default() += weight;
        }
        let mut place = Place {
            process,
            class: site.class,
            syscall: site.syscall,
            on: site.detail.as_ref().and_then(on),
            stack: Vec::new(),
        };
        let (user, kernel) = (site.user_stack, site.kernel_stack);
        for frame in user.into_iter().rev() {
            let id = self.frame(frame, false);
            place.stack.push(id);
        }
        for frame in kernel.into_iter().rev() {
            let id = self.frame(frame, true);
            place.stack.push(id);
        }
        if self.places.len() >= self.max_stacks && !self.places.contains_key(&place) {
            *self.basis.lost.entry("profile_stacks".into()).or_default() += site.count;
            (place.stack, place.syscall, place.on) = (Vec::new(), None, None);
        }
        if place.stack.is_empty() {
            self.basis.stackless_ns += weight;
        }
        let amount = self.places.entry(place).or_default();
        amount.count += site.count;
        amount.weight += weight;
    }

    fn frame(&mut self, frame: model::Frame, kernel: bool) -> u32 {
        let frame = Frame { frame, kernel };
        if let Some(id) = self.ids.get(&frame) {
            return *id;
        }
        let id = self.frames.len() as u32;
        self.frames.push(frame.clone());
        self.ids.insert(frame, id);
        id
    }

    fn process_number(&mut self, who: model::Process) -> u32 {
        let at = self.processes.iter().position(|p| *p == who);
        at.unwrap_or_else(|| {
            self.processes.push(who);
            self.processes.len() - 1
        }) as u32
    }

    fn coverage(&mut self, c: &Coverage) {
        let basis = &mut self.basis;
        basis.end_ns = c.window.end_ns;
        basis.lifetime_ns += c.lifetime_ns;
        basis.residual_ns += c.residual_ns;
        for (reason, n) in &c.lost {
            *basis.lost.entry(reason.clone()).or_default() += n;
        }
        basis.memo.hits += c.stack_memo.hits;
        basis.memo.walks += c.stack_memo.walks;
        basis.memo.checked += c.stack_memo.checked;
        basis.memo.mismatched += c.stack_memo.mismatched;
        basis.agent_cpu_ns += c.agent.cpu_ns;
        basis.agent_bpf_ns += c.agent.bpf_ns;
        basis.agent_rss_bytes = basis.agent_rss_bytes.max(c.agent.rss_bytes);
    }
}

/// What a site waits for, in a word.
fn on(detail: &Detail) -> Option<String> {
    match detail {
        Detail::Futex { address } => Some(address.clone()),
        Detail::Peer { peer, .. } => Some(peer.clone()),
        Detail::Unix { path } => (!path.is_empty()).then(|| path.clone()),
        Detail::File {
            device,
            inode,
            path,
        } => Some(match path {
            Some(path) => path.clone(),
            None => format!("inode {inode} on {device}"),
        }),
    }
}

/// Splits a total by weights: whole numbers that sum to it exactly, or to 0 where no weight is.
fn shares(total: u64, weights: &[u64]) -> Vec<u64> {
    let sum: u128 = weights.iter().map(|w| u128::from(*w)).sum();
    let mut so_far = 0u128;
    let mut given = 0u64;
    let share = |weight: &u64| {
        so_far += u128::from(*weight);
        let upto = (u128::from(total) * so_far / sum.max(1)) as u64;
        let share = upto - given;
        given = upto;
        share
    };
    weights.iter().map(share).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::profile::fixtures::{PID, report, shown, sites, stacks};

    fn sum(stacks: &Stacks, class: &str) -> u64 {
        let places = stacks.in_order();
        let of_class = places.iter().filter(|(p, _)| p.class == class);
        of_class.map(|(_, a)| a.weight).sum()
    }

    #[test]
    fn every_class_sums_to_the_ledger_with_what_has_no_stack() {
        let stacks = stacks(shown(Mode::Wall, true));
        for (class, ns) in report().processes[0].ledger.process.classes.clone() {
            assert_eq!(sum(&stacks, &class), ns, "{class}");
        }
        let basis = &stacks.basis;
        assert_eq!(basis.shown_ns, 10_000);
        // The run queue, and what the ledger has of `disk` beyond its place.
        assert_eq!(basis.stackless_ns, 500 + 200);
        // Places of `lock` have 100 ns more than the ledger.
        assert_eq!(basis.scaled_ns, 100);
        assert_eq!(stacks.hottest(), Some(("lock", "app::update", 3_000)));
    }

    #[test]
    fn a_mode_shows_its_classes_and_says_what_it_leaves_out() {
        for (mode, idle, want) in [
            (Mode::Cpu, false, vec!["cpu.kernel", "cpu.user"]),
            (Mode::Cpu, true, vec!["cpu.kernel", "cpu.user"]),
            (Mode::Off, false, vec!["disk", "lock", "runq"]),
            (Mode::Off, true, vec!["disk", "idle", "lock", "runq"]),
        ] {
            let stacks = stacks(shown(mode, idle));
            let mut classes: Vec<&str> = stacks
                .in_order()
                .iter()
                .map(|(p, _)| p.class.as_str())
                .collect();
            classes.dedup();
            assert_eq!(classes, want, "{mode:?} {idle}");
            let left_out: u64 = stacks.basis.left_out.values().sum();
            assert_eq!(stacks.basis.shown_ns + left_out, 10_000);
        }
    }

    #[test]
    fn short_lived_children_are_part_of_the_process_they_are_counted_under() {
        let mut report = report();
        report.processes[0].ledger.process.short_lived = Some(model::ShortLived {
            classes: Classes::from([("cpu.user".into(), 1_000)]),
            ..model::ShortLived::default()
        });
        let mut stacks = Stacks::new(shown(Mode::Wall, true));
        stacks.window(report);
        assert_eq!(sum(&stacks, "cpu.user"), 4_000 + 1_000);
    }

    #[test]
    fn windows_add_up_and_stacks_past_the_limit_are_counted_and_keep_their_time() {
        let mut stacks = Stacks::new(shown(Mode::Wall, true));
        stacks.window(report());
        let places = stacks.in_order().len();
        stacks.max_stacks = places;
        stacks.window(report());
        assert_eq!(stacks.in_order().len(), places);
        let mut other = report();
        other.processes[0].profile.sites = sites();
        let mut moved = sites().remove(0);
        moved.user_stack[0].name = "elsewhere".into();
        other.processes[0].profile.sites[0] = moved;
        stacks.window(other);
        assert_eq!(stacks.basis.shown_ns, 30_000);
        assert_eq!(sum(&stacks, "cpu.user"), 12_000);
        assert_eq!(stacks.basis.lost["profile_stacks"], 3);
        assert_eq!(stacks.processes[0].pid, PID);
    }

    #[test]
    fn of_what_was_allocated_the_freed_part_leaves_the_live_one_in_any_later_window() {
        let mut stacks = Stacks::new(shown(Mode::Alloc, false));
        for (bytes, freed_bytes) in [(1_000, 100), (0, 600)] {
            let mut report = report();
            report.processes[0].allocations = vec![AllocationSite {
                samples: u64::from(bytes > 0),
                bytes,
                freed_bytes,
                user_stack: sites().remove(0).user_stack,
                ..AllocationSite::default()
            }];
            stacks.window(report);
        }
        assert_eq!((sum(&stacks, LIVE), sum(&stacks, FREED)), (300, 700));
        assert_eq!(stacks.basis.shown_ns, 1_000);
        assert_eq!(stacks.hottest(), Some((FREED, "app::hash", 700)));
        assert_eq!(stacks.in_order().len(), 2);
        let folded = crate::profile::folded::write(&stacks).unwrap();
        assert_eq!(
            String::from_utf8(folded).unwrap(),
            "app;[freed];main;app::work;app::hash_[i] 700\napp;[live];main;app::work;app::hash_[i] 300\n"
        );
    }

    proptest! {
        #[test]
        fn shares_sum_to_the_total(total in 0u64..1 << 62, weights in proptest::collection::vec(0u64..1 << 60, 0..20)) {
            let shares = shares(total, &weights);
            let want = if weights.iter().any(|w| *w > 0) { total } else { 0 };
            prop_assert_eq!(shares.iter().sum::<u64>(), want);
        }
    }
}
