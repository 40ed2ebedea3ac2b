//! Makes frames from a running kernel side: seeds the target, empties the ring on a clock, and
//! reads the maps and `/proc` at the end of each window.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
};

use anyhow::{Context as _, Result, bail};
use perf_ebpf_common::{
    Wire as _, class,
    loss::Loss,
    signals::{
        LatencyCell,
        block_io::BlockIoKey,
        control::Control,
        ledger::{ListenerKey, SiteKey, SiteTotals, StackMemo, ThreadState, thread_state},
        record,
        stacks::MemoStats,
        syscalls::{SyscallErrorKey, SyscallKey},
        unwind::Stop,
    },
};

use super::{
    Fact, Frame, MapId, ProcessFact, SliceFact, Start, ThreadFact, WindowFact,
    files::Names,
    procfs, seeds,
    slots::{self, Slots},
};
use crate::{
    kernel::{Kernel, LoadOptions, host, raw::NOEXIST, tables, unwind::UnwindMaps},
    signals::{
        histograms,
        records::{self, Record},
    },
    symbolize::Stacks,
    unwind::{Request, Unwinder},
};

/// Threads whose `/proc` files are read at the end of each window. Reading one takes 8 µs; a
/// thread past this number keeps the name it had and has no cross-check.
const MAX_THREADS_READ: usize = 512;

/// How long a process must have lived to get lines and histograms of its own, and how often losses
/// of a process's end are looked for.
const SETTLED_NS: u64 = 1_000_000_000;

/// How long BPF run time is counted in each window.
const BPF_COUNTED_NS: u64 = 100_000_000;

struct Process {
    comm: String,
    first_ns: u64,
    threads: HashSet<u32>,
}

/// A trace under way.
pub struct Live {
    kernel: Kernel,
    frames: Vec<Frame>,
    processes: HashMap<u32, Process>,
    slots: Slots,
    stacks: Stacks,
    /// None where no stacks are taken.
    unwinder: Option<Unwinder>,
    names: Names,
    kinds: Vec<u8>,
    received: u64,
    undecodable: u64,
    run_time: (u64, u64),
    stats: Option<(OwnedFd, u64)>,
    bpf_counted: (u64, u64),
    syscalls_since_ns: Option<u64>,
    /// Syscalls are counted all the time, not in slices.
    only_whole_calls: bool,
    syscalls_on_ns: u64,
    counted_calls: HashMap<(u32, u32), u64>,
    /// Seeded threads whose class is known, by id and start of their account.
    resolved: HashSet<(u32, u64)>,
    thread_entries: usize,
}

/// Nanoseconds of CLOCK_MONOTONIC: the clock of `bpf_ktime_get_ns`.
pub fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut t = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one timespec.
    unsafe { libc::clock_gettime(clock, &raw mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

impl Live {
    /// Loads and attaches the kernel side, and seeds the targets.
    ///
    /// # Errors
    /// As [`Kernel::load`] and [`Kernel::attach`]; a target that is not there.
    pub fn attach(options: &LoadOptions, targets: &[u32], start: Start) -> Result<Live> {
        let mut unwinder = None;
        let mut kernel = Kernel::load_and(options, |maps| {
            unwinder = start_unwinder(maps.unwind.take().filter(|_| options.stacks), targets)?;
            Ok(())
        })?;
        fill_listeners(&kernel, targets)?;
        kernel.attach()?;
        let mut live = Live {
            kernel,
            frames: Vec::new(),
            processes: HashMap::new(),
            slots: Slots::default(),
            stacks: Stacks::new(&options.debug_dirs),
            unwinder,
            names: Names::default(),
            kinds: tables::sys_kinds().to_vec(),
            received: 0,
            undecodable: 0,
            run_time: (0, 0),
            stats: None,
            bpf_counted: (0, 0),
            syscalls_since_ns: None,
            only_whole_calls: start.syscalls == "full",
            syscalls_on_ns: 0,
            counted_calls: HashMap::new(),
            resolved: HashSet::new(),
            thread_entries: 0,
        };
        live.start(start, targets);
        for pid in targets {
            match live.seed(*pid) {
                Err(e) if fs::exists(format!("/proc/{pid}")).unwrap_or(true) => return Err(e),
                // A child that ended meanwhile; if all did, the trace ends at once.
                Err(e) => tracing::debug!(pid, "{e:#}"),
                Ok(()) => {}
            }
        }
        live.count_bpf_time();
        Ok(live)
    }

    fn start(&mut self, mut start: Start, targets: &[u32]) {
        start.realtime_ns = clock_ns(libc::CLOCK_REALTIME);
        start.monotonic_ns = monotonic_ns();
        start.targets = targets.to_vec();
        start.host = host::host_name();
        start.kernel = host::kernel_release();
        start.arch = std::env::consts::ARCH.to_owned();
        start.cpus = aya::util::online_cpus().map_or(0, |c| c.len() as u32);
        start.signals = self
            .kernel
            .signals
            .iter()
            .map(|s| (s.name.clone(), s.on, s.reason.clone()))
            .collect();
        self.frames.push(Frame::Fact(Fact::Start(start)));
    }

    /// Puts every thread of a process under trace. New threads cannot slip by: the fork hook is
    /// attached, and the task list is read until it shows nobody new.
    ///
    /// # Errors
    /// The process is not there, or the thread map is full.
    pub fn seed(&mut self, pid: u32) -> Result<()> {
        let now = monotonic_ns();
        let comm = fs::read_to_string(format!("/proc/{pid}/comm"))
            .with_context(|| format!("process {pid} is not there"))?;
        let slot = self.add_process(pid, comm.trim_end().to_owned(), now);
        self.tell_unwinder(Request::Follow(pid));
        loop {
            let mut new = 0;
            let tasks = fs::read_dir(format!("/proc/{pid}/task"))
                .with_context(|| format!("process {pid} ended"))?;
            for entry in tasks.flatten() {
                let Some(tid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
                    continue;
                };
                new += usize::from(self.seed_thread(pid, tid, slot)?);
            }
            if new == 0 {
                return Ok(());
            }
        }
    }

    /// Whether the thread was not there yet.
    fn seed_thread(&mut self, pid: u32, tid: u32, slot: u32) -> Result<bool> {
        let state = seeded_state(pid, tid, slot, monotonic_ns());
        match self
            .kernel
            .maps
            .threads
            .update(&tid.to_ne_bytes(), state.as_bytes(), NOEXIST)
        {
            Ok(()) => {
                self.thread_entries += 1;
                self.process(pid).threads.insert(tid);
                // The base of the cross-check.
                self.frames
                    .extend(thread_fact(pid, tid).map(|f| Frame::Fact(Fact::Thread(f))));
                Ok(true)
            }
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(e) if e.raw_os_error() == Some(libc::E2BIG) => {
                bail!("process {pid} has more threads than --max-threads allows")
            }
            Err(e) => Err(e).context("seeding a thread"),
        }
    }

    fn process(&mut self, pid: u32) -> &mut Process {
        self.processes.entry(pid).or_insert_with(|| Process {
            comm: String::new(),
            first_ns: monotonic_ns(),
            threads: HashSet::new(),
        })
    }

    /// Gives a process its slot and tells of it.
    fn add_process(&mut self, pid: u32, comm: String, now_ns: u64) -> u32 {
        let slot = self.slots.give(pid);
        if let Err(e) = self
            .kernel
            .maps
            .slots
            .update(&pid.to_ne_bytes(), &slot.to_ne_bytes(), 0)
        {
            tracing::warn!(pid, "giving a process its histograms: {e}");
        }
        let process = self.process(pid);
        process.comm.clone_from(&comm);
        process.first_ns = process.first_ns.min(now_ns);
        self.frames
            .push(Frame::Fact(Fact::Process(ProcessFact { pid, comm, slot })));
        slot
    }

    /// Whether any thread of the target still lives (as of the last window or record).
    pub fn alive(&self) -> bool {
        self.processes.values().any(|p| !p.threads.is_empty())
    }

    /// Whether a process is under trace.
    pub fn follows(&self, pid: u32) -> bool {
        self.processes.contains_key(&pid)
    }

    /// Frames made since the last call.
    pub fn take(&mut self) -> Vec<Frame> {
        std::mem::take(&mut self.frames)
    }

    /// Empties the ring.
    pub fn poll(&mut self) {
        while let Some(bytes) = self.kernel.ring.next().map(|item| item.to_vec()) {
            self.received += 1;
            self.note(&bytes);
            self.frames.push(Frame::Record(bytes));
        }
        if let Some((_, since)) = &self.stats
            && monotonic_ns() - since >= BPF_COUNTED_NS
        {
            self.end_counting();
        }
    }

    fn note(&mut self, bytes: &[u8]) {
        match records::parse(bytes) {
            Some(Record::Started(r)) => {
                self.process(r.tgid).threads.insert(r.tid);
            }
            Some(Record::Exited(r)) => self.thread_ended(r.thread.tgid, r.thread.tid),
            Some(Record::Exec(r)) => {
                self.stacks.forget(r.tgid);
                self.tell_unwinder(Request::Executed(r.tgid));
                let process = self.process(r.tgid);
                process.comm = records::comm(&r.comm);
                process.threads.remove(&r.old_tid);
                process.threads.insert(r.tgid);
            }
            Some(Record::Stack(r, addresses)) => {
                let fact = self.stacks.name(r.id, r.tgid, &addresses);
                self.frames.push(Frame::Fact(Fact::Stack(fact)));
            }
            Some(Record::UnixName(..)) => {}
            Some(Record::UnwindMissed(r)) => {
                self.stacks.remap(r.tgid);
                self.tell_unwinder(Request::Missed(r.tgid));
            }
            None => self.undecodable += 1,
        }
    }

    fn tell_unwinder(&self, request: Request) {
        if let Some(unwinder) = &self.unwinder {
            unwinder.tell(request);
        }
    }

    fn thread_ended(&mut self, pid: u32, tid: u32) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        process.threads.remove(&tid);
        if process.threads.is_empty() {
            self.process_ended(pid);
        }
    }

    fn process_ended(&mut self, pid: u32) {
        self.processes.remove(&pid);
        self.stacks.forget(pid);
        self.tell_unwinder(Request::Ended(pid));
        if self.slots.has(pid) {
            // What it did since the last window: nobody asks for its slot again.
            let slot = self.slots.give(pid);
            self.read_histograms(slot);
            self.slots.ended(pid, monotonic_ns());
            let _ = self.kernel.maps.slots.delete(&pid.to_ne_bytes());
        }
    }

    /// Attaches or detaches the syscalls signal.
    ///
    /// # Errors
    /// The kernel refuses the hooks.
    pub fn set_syscalls(&mut self, on: bool) -> Result<()> {
        let now = monotonic_ns();
        if on {
            if let Some(control) = self.kernel.maps.control.element(0) {
                // SAFETY: a live element of the mapped array; the kernel only reads it.
                unsafe {
                    control.as_ptr().write_volatile(Control {
                        slice_start_ns: now,
                        only_whole_calls: self.only_whole_calls.into(),
                    })
                };
            }
            self.kernel.set_syscalls(true)?;
            self.syscalls_since_ns = Some(monotonic_ns());
            return Ok(());
        }
        self.kernel.set_syscalls(false)?;
        if let Some(since) = self.syscalls_since_ns.take() {
            let length_ns = monotonic_ns().saturating_sub(since);
            self.syscalls_on_ns += length_ns;
            let counts = self.calls_counted()?;
            self.frames
                .push(Frame::Fact(Fact::Slice(SliceFact { length_ns, counts })));
        }
        Ok(())
    }

    /// Calls counted since the last slice, by slot and number.
    fn calls_counted(&mut self) -> Result<Vec<(u32, u32, u64)>> {
        let entries = self
            .kernel
            .maps
            .syscalls
            .entries()
            .context("reading syscalls")?;
        let stride = size_of::<SyscallKey>() + size_of::<LatencyCell>();
        let mut counts = Vec::new();
        for entry in entries.chunks_exact(stride) {
            let (Some(key), Some(count)) = (
                SyscallKey::from_bytes(entry),
                u64::from_bytes(&entry[size_of::<SyscallKey>()..]),
            ) else {
                continue;
            };
            let before = self
                .counted_calls
                .insert((key.slot, key.nr), count)
                .unwrap_or(0);
            if count > before {
                counts.push((key.slot, key.nr, count - before));
            }
        }
        counts.sort_unstable();
        Ok(counts)
    }

    /// Ends a window: reads everything and appends the frames, the window's own last.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn window(&mut self) -> Result<()> {
        let end_ns = monotonic_ns();
        if let Some(since) = self.syscalls_since_ns.replace(end_ns) {
            self.syscalls_on_ns += end_ns.saturating_sub(since);
        } else {
            self.syscalls_since_ns = None;
        }
        let threads = self.read_threads()?;
        self.read_maps()?;
        // The ring after the maps: a thread that ended in between is in one of them at least.
        self.poll();
        self.read_proc(&threads);
        self.settle(end_ns);
        self.frames.push(Frame::Map(MapId::Threads, threads));
        let fact = self.window_fact(end_ns)?;
        self.frames.push(Frame::Fact(Fact::Window(fact)));
        self.free_slots(end_ns)?;
        self.tell_unwinder(Request::Window);
        self.count_bpf_time();
        Ok(())
    }

    /// The thread map, with entries that were caught in the middle of an update read again.
    fn read_threads(&mut self) -> Result<Vec<u8>> {
        let mut entries = self
            .kernel
            .maps
            .threads
            .entries()
            .context("reading threads")?;
        let stride = 4 + size_of::<ThreadState>();
        self.thread_entries = entries.len() / stride;
        for entry in entries.chunks_exact_mut(stride) {
            for _ in 0..3 {
                let Some(t) = ThreadState::from_bytes(&entry[4..]) else {
                    break;
                };
                if t.seq == t.seq_tail {
                    break;
                }
                if let Some(again) = self.kernel.maps.threads.lookup(&entry[..4], 1)? {
                    entry[4..].copy_from_slice(&again);
                }
            }
        }
        Ok(entries)
    }

    fn read_maps(&mut self) -> Result<()> {
        for (_, slot) in self.slots.processes().collect::<Vec<_>>() {
            self.read_histograms(slot);
        }
        let maps = &self.kernel.maps;
        let mut read = |id, map: &crate::kernel::raw::RawMap, name| -> Result<()> {
            let entries = map.entries().with_context(|| format!("reading {name}"))?;
            self.frames.push(Frame::Map(id, entries));
            Ok(())
        };
        read(MapId::Sites, &maps.sites, "sites")?;
        read(MapId::Wakers, &maps.wakers, "wakers")?;
        read(MapId::Syscalls, &maps.syscalls, "syscalls")?;
        read(MapId::SyscallErrors, &maps.syscall_errors, "syscall_errors")?;
        read(MapId::BlockIo, &maps.block_io, "block_io")?;
        let mut facts = Vec::new();
        for frame in &self.frames {
            match frame {
                Frame::Map(MapId::Sites, bytes) => {
                    let owner: HashMap<u32, u32> = self
                        .slots
                        .processes()
                        .map(|(pid, slot)| (slot, pid))
                        .collect();
                    facts.extend(self.names.files(bytes, |slot| owner.get(&slot).copied()));
                }
                Frame::Map(MapId::BlockIo, bytes) => facts.extend(self.names.devices(bytes)),
                _ => {}
            }
        }
        self.frames.extend(facts.into_iter().map(Frame::Fact));
        Ok(())
    }

    fn read_histograms(&mut self, slot: u32) {
        if slot == slots::SHARED {
            return;
        }
        if let Some(element) = self.kernel.maps.histograms.element(slot as usize) {
            // SAFETY: a live element of the mapped array.
            let h = unsafe { histograms::read_live(slot, element.as_ptr()) };
            self.frames.push(Frame::Map(MapId::Histograms, h.pack()));
        }
    }

    /// Reads what `/proc` says of each thread, and where seeded threads without events are.
    fn read_proc(&mut self, threads: &[u8]) {
        // By network namespace: every process of one reads the same tables.
        let mut sockets: HashMap<u64, seeds::Sockets> = HashMap::new();
        for (i, entry) in threads
            .chunks_exact(4 + size_of::<ThreadState>())
            .enumerate()
        {
            let Some(t) = ThreadState::from_bytes(&entry[4..]) else {
                continue;
            };
            if i < MAX_THREADS_READ
                && let Some(fact) = thread_fact(t.tgid, t.tid)
            {
                self.frames.push(Frame::Fact(Fact::Thread(fact)));
            }
            // Once a thread: as long as nothing happens to it, it stays where it was.
            if t.state != thread_state::SEEDED || self.resolved.contains(&(t.tid, t.start_ns)) {
                continue;
            }
            let netns = fs::metadata(format!("/proc/{}/ns/net", t.tgid)).map_or(0, |m| m.ino());
            let sockets = sockets
                .entry(netns)
                .or_insert_with(|| seeds::Sockets::of(t.tgid));
            let Some(fact) = seeds::class_of(t.tgid, t.tid, &self.kinds, sockets) else {
                continue;
            };
            // Only true if nothing happened meanwhile.
            let unchanged = matches!(
                self.kernel.maps.threads.lookup(&entry[..4], 1),
                Ok(Some(now)) if ThreadState::from_bytes(&now)
                    .is_some_and(|now| now.state == thread_state::SEEDED)
            );
            if unchanged {
                self.resolved.insert((t.tid, t.start_ns));
                self.frames.push(Frame::Fact(Fact::Seeded(fact)));
            }
        }
    }

    /// Gives slots to processes that have lived long enough, and notices those whose end was lost.
    fn settle(&mut self, now_ns: u64) {
        let settled: Vec<(u32, String)> = self
            .processes
            .iter()
            .filter(|(pid, p)| {
                !self.slots.has(**pid) && now_ns.saturating_sub(p.first_ns) >= SETTLED_NS / 2
            })
            .map(|(pid, p)| (*pid, p.comm.clone()))
            .collect();
        for (pid, comm) in settled {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm"))
                .map_or(comm, |c| c.trim_end().to_owned());
            self.add_process(pid, comm, now_ns);
        }
        let gone: Vec<u32> = self
            .processes
            .keys()
            .copied()
            .filter(|pid| !fs::exists(format!("/proc/{pid}")).unwrap_or(true))
            .collect();
        for pid in gone {
            self.process_ended(pid);
        }
    }

    /// Empties the elements of slots that are free again.
    fn free_slots(&mut self, now_ns: u64) -> Result<()> {
        for slot in self.slots.rested(now_ns) {
            if let Some(element) = self.kernel.maps.histograms.element(slot as usize) {
                // SAFETY: a live element; no thread charges to it any more.
                unsafe { element.as_ptr().write_bytes(0, 1) };
            }
            let maps = &self.kernel.maps;
            delete_slot::<SiteKey>(
                &maps.sites,
                size_of::<SiteTotals>(),
                |k| k.slot.into(),
                slot,
            )?;
            let cell = size_of::<LatencyCell>();
            delete_slot::<SyscallKey>(&maps.syscalls, cell, |k| k.slot, slot)?;
            delete_slot::<SyscallErrorKey>(&maps.syscall_errors, 8, |k| k.slot, slot)?;
            delete_slot::<BlockIoKey>(&maps.block_io, cell, |k| k.slot, slot)?;
            self.counted_calls.retain(|(s, _), _| *s != slot);
            self.frames.push(Frame::Fact(Fact::SlotFreed { slot }));
        }
        Ok(())
    }

    /// Starts counting BPF run time for the first part of a window.
    fn count_bpf_time(&mut self) {
        self.end_counting();
        self.run_time = self.kernel.run_time();
        match crate::kernel::raw::enable_run_time_stats() {
            Ok(fd) => self.stats = Some((fd, monotonic_ns())),
            Err(e) => tracing::debug!("BPF run time is not counted: {e}"),
        }
    }

    fn end_counting(&mut self) {
        if let Some((fd, since)) = self.stats.take() {
            let length = monotonic_ns() - since;
            drop(fd);
            let now = self.kernel.run_time();
            self.bpf_counted.0 += now.0.saturating_sub(self.run_time.0);
            self.bpf_counted.1 += length;
        }
    }

    fn window_fact(&mut self, end_ns: u64) -> Result<WindowFact> {
        self.end_counting();
        let (bpf_ns, bpf_counted_ns) = std::mem::take(&mut self.bpf_counted);
        let (mut lost, mut inferred) = (BTreeMap::new(), BTreeMap::new());
        for loss in Loss::ALL {
            let count = self.per_cpu_sum(&self.kernel.maps.loss, loss as u32)?;
            if count > 0 {
                let into = if loss.is_loss() {
                    &mut lost
                } else {
                    &mut inferred
                };
                into.insert(loss.name().to_owned(), count);
            }
        }
        for (name, count) in [
            ("undecodable", self.undecodable),
            ("slots_exhausted", self.slots.exhausted),
        ] {
            if count > 0 {
                lost.insert(name.to_owned(), count);
            }
        }
        let mut map_entries = BTreeMap::new();
        map_entries.insert("threads".to_owned(), self.thread_entries as u64);
        if let Some(unwinder) = &self.unwinder {
            lost.extend(unwinder.counters.lost());
            map_entries.extend(unwinder.counters.kept());
        }
        let mut generated = 0;
        for kind in 0..record::END as u32 {
            generated += self.per_cpu_sum(&self.kernel.maps.generated, kind)?;
        }
        Ok(WindowFact {
            end_ns,
            agent_cpu_ns: clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID),
            agent_rss_bytes: resident_bytes(),
            bpf_ns,
            bpf_counted_ns,
            generated,
            received: self.received,
            lost,
            inferred,
            memo: self.memo()?,
            stack_walks: self.stack_walks()?,
            map_entries,
            syscalls_on_ns: std::mem::take(&mut self.syscalls_on_ns),
            throttled: self
                .slots
                .processes()
                .filter_map(|(pid, _)| throttled(pid))
                .collect(),
        })
    }

    fn per_cpu_sum(&self, map: &crate::kernel::raw::RawMap, key: u32) -> Result<u64> {
        let values = map
            .lookup(&key.to_ne_bytes(), self.kernel.cpus)?
            .unwrap_or_default();
        Ok(values.chunks_exact(8).filter_map(u64::from_bytes).sum())
    }

    fn stack_walks(&self) -> Result<BTreeMap<String, u64>> {
        let mut walks = BTreeMap::new();
        for stop in Stop::ALL {
            let count = self.per_cpu_sum(&self.kernel.maps.stack_walks, stop as u32)?;
            if count > 0 {
                walks.insert(stop.name().to_owned(), count);
            }
        }
        Ok(walks)
    }

    fn memo(&self) -> Result<[u64; 4]> {
        let values = self
            .kernel
            .maps
            .memo_stats
            .lookup(&0u32.to_ne_bytes(), self.kernel.cpus)?;
        let mut sum = [0; 4];
        for stats in values
            .unwrap_or_default()
            .chunks_exact(size_of::<MemoStats>())
        {
            if let Some(s) = MemoStats::from_bytes(stats) {
                for (total, part) in sum
                    .iter_mut()
                    .zip([s.hits, s.walks, s.checked, s.mismatched])
                {
                    *total += part;
                }
            }
        }
        Ok(sum)
    }

    /// Detaches every hook, then reads what is left.
    ///
    /// # Errors
    /// As [`Live::window`].
    pub fn finish(&mut self) -> Result<()> {
        self.kernel.detach();
        self.window()
    }
}

/// Starts building unwind tables of the targets, which goes on while the programs are loaded.
fn start_unwinder(maps: Option<UnwindMaps>, targets: &[u32]) -> Result<Option<Unwinder>> {
    let Some(maps) = maps else {
        return Ok(None);
    };
    let unwinder = Unwinder::start(maps).context("starting the thread of the unwind tables")?;
    for pid in targets {
        unwinder.tell(Request::Follow(*pid));
    }
    Ok(Some(unwinder))
}

/// The account of a thread that is there already.
fn seeded_state(pid: u32, tid: u32, slot: u32, now_ns: u64) -> ThreadState {
    ThreadState {
        seq: 0,
        since_ns: now_ns,
        start_ns: now_ns,
        spent_ns: [0; class::COUNT],
        unaccounted_ns: 0,
        last_ns: 0,
        woken_ns: 0,
        fences: 0,
        promote_at_ns: u64::MAX,
        switches: 0,
        runtime_ns: 0,
        run_delay_ns: u64::MAX,
        runq_before_ns: 0,
        cpu_before_ns: 0,
        file: 0,
        site: SiteKey::EMPTY,
        memo: [StackMemo::default(); 4],
        sys_enter_ns: 0,
        samples_user: 0,
        samples_kernel: 0,
        tid,
        tgid: pid,
        sys_nr: 0,
        file_port: 0,
        slot: slot as u16,
        file_detail: [0; 2],
        state: thread_state::SEEDED,
        last_class: class::UNKNOWN,
        file_kind: 0,
        file_detail_kind: 0,
        missed_wake_class: 0,
        woken_from: 0,
        pad: [0; 2],
        seq_tail: 0,
    }
}

/// Deletes a slot's entries from a map.
fn delete_slot<K: perf_ebpf_common::Wire>(
    map: &crate::kernel::raw::RawMap,
    value_size: usize,
    slot_of: impl Fn(&K) -> u32,
    slot: u32,
) -> Result<()> {
    for entry in map.entries()?.chunks_exact(size_of::<K>() + value_size) {
        if let Some(key) = K::from_bytes(entry)
            && slot_of(&key) == slot
        {
            map.delete(key.as_bytes())?;
        }
    }
    Ok(())
}

/// Tells the kernel side which ports the targets' network namespaces listen on.
fn fill_listeners(kernel: &Kernel, targets: &[u32]) -> Result<()> {
    let mut done = HashSet::new();
    for pid in targets {
        let Ok(namespace) = fs::metadata(format!("/proc/{pid}/ns/net")) else {
            continue;
        };
        let netns = namespace.ino() as u32;
        if !done.insert(netns) {
            continue;
        }
        for port in seeds::Sockets::of(*pid).listening() {
            let key = ListenerKey {
                netns,
                port: (*port).into(),
            };
            kernel
                .maps
                .listeners
                .update(key.as_bytes(), &[1], 0)
                .context("filling listeners")?;
        }
    }
    Ok(())
}

fn thread_fact(pid: u32, tid: u32) -> Option<ThreadFact> {
    let read = |name| fs::read_to_string(format!("/proc/{pid}/task/{tid}/{name}")).ok();
    let stat = procfs::stat(&read("stat")?)?;
    let (run_ns, wait_ns) = procfs::schedstat(&read("schedstat")?).unwrap_or_default();
    Some(ThreadFact {
        tid,
        pid,
        comm: stat.comm,
        run_ns,
        wait_ns,
        minor_faults: stat.minor_faults,
        major_faults: stat.major_faults,
        user_ticks: stat.user_ticks,
        kernel_ticks: stat.kernel_ticks,
    })
}

/// Throttling of the process's cgroup since its making, where it has a CPU quota.
fn throttled(pid: u32) -> Option<(u32, (String, u64, u64, u64))> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let read = |path: String| fs::read_to_string(path).ok();
    if let Some(path) = procfs::cgroup_path(&text, Some("cpu")) {
        let base = format!("/sys/fs/cgroup/cpu{path}");
        let quota: i64 = read(format!("{base}/cpu.cfs_quota_us"))?
            .trim()
            .parse()
            .ok()?;
        if quota < 0 {
            return None;
        }
        let stat = read(format!("{base}/cpu.stat"))?;
        let value = |key| procfs::cpu_stat(&stat, key).unwrap_or(0);
        let figures = (
            value("nr_periods"),
            value("nr_throttled"),
            value("throttled_time"),
        );
        return Some((pid, (path.to_owned(), figures.0, figures.1, figures.2)));
    }
    let path = procfs::cgroup_path(&text, None)?;
    let base = format!("/sys/fs/cgroup{path}");
    if read(format!("{base}/cpu.max"))?.starts_with("max") {
        return None;
    }
    let stat = read(format!("{base}/cpu.stat"))?;
    let value = |key| procfs::cpu_stat(&stat, key).unwrap_or(0);
    let figures = (
        value("nr_periods"),
        value("nr_throttled"),
        value("throttled_usec") * 1000,
    );
    Some((pid, (path.to_owned(), figures.0, figures.1, figures.2)))
}

/// Resident memory of this process (`/proc/self/statm`, second field, in pages).
fn resident_bytes() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|s| s.split_whitespace().nth(1)?.parse::<u64>().ok())
        .unwrap_or(0);
    // SAFETY: no memory is touched.
    pages * unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.max(1) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seeded_account_is_empty_and_its_own() {
        let t = seeded_state(10, 11, 3, 77);
        assert_eq!(
            (t.tgid, t.tid, t.slot, t.since_ns, t.start_ns),
            (10, 11, 3, 77, 77)
        );
        assert_eq!((t.state, t.seq, t.seq_tail), (thread_state::SEEDED, 0, 0));
    }
}
