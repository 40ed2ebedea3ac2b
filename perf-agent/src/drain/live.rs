//! Makes frames from a running kernel side: seeds the target, empties the ring on a clock, and
//! reads the maps and `/proc` at the end of each window.

mod hook_cost;
mod map_reads;
mod memory;
mod proc_facts;
mod seeding;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    os::fd::OwnedFd,
};

use anyhow::{Context as _, Result};
use perf_ebpf_common::{
    Wire as _,
    loss::Loss,
    signals::{
        control::{Control, FunctionRange},
        python, record,
        sockets::Connection,
        unwind::Stop,
    },
};

pub use self::proc_facts::resident_bytes;
use self::{proc_facts::throttled, seeding::fill_listeners};
use super::{
    Fact, Frame, MapId, ProcessFact, SliceFact, Start, WindowFact, files::Names, outbox::Outbox,
    seeds, slots::Slots,
};
use crate::{
    decode::{
        self,
        connections::{Connections, Taken},
    },
    kernel::{
        Kernel, LoadOptions, host,
        kallsyms::{self, Kallsyms},
        raw::MappedArray,
        tables,
        unwind::UnwindMaps,
    },
    signals::records::{self, Record},
    symbolize::{Unnamed, namer::Namer},
    unwind::{Request, Unwinder},
};

/// How long a process must have lived to get lines and histograms of its own, and how often losses
/// of a process's end are looked for.
const SETTLED_NS: u64 = 1_000_000_000;

/// Nice value of work beside which others come first.
const BESIDE: libc::c_int = 10;

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
    frames: Outbox,
    processes: HashMap<u32, Process>,
    slots: Slots,
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
    connection_entries: usize,
    data_ring_bytes: usize,
    connections: Connections,
    /// When the kernel side was told of connections last.
    told_ns: u64,
    /// Connections that ended; told of once the data before their end was taken.
    closed: Vec<Connection>,
    /// Processes that began or changed their program since functions to probe were looked for.
    unprobed: HashSet<u32>,
    growth: memory::Watch,
    /// Allocations are sampled.
    allocations: bool,
    /// Processes that ended or changed their program in this window.
    gone: HashSet<u32>,
    /// Every hook is detached.
    detached: bool,
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
    pub fn attach(
        options: &LoadOptions,
        namer: Namer,
        decode: decode::Options,
        targets: &[u32],
        mut start: Start,
    ) -> Result<Live> {
        let mut unwinder = None;
        let mut kernel = Kernel::load_and(options, |maps| {
            unwinder = start_unwinder(maps.unwind.take().filter(|_| options.stacks), targets)?;
            read_kernel_names(maps.schedule.take().filter(|_| options.stacks));
            Ok(())
        })?;
        fill_listeners(&kernel, targets)?;
        // Before the hooks: what is made from here on is new.
        let sockets_before: Vec<u64> = targets.iter().flat_map(|p| seeds::sockets_of(*p)).collect();
        if start.syscalls == "sampled" {
            // Refused hooks are said in `hello`; the counts are then absent, too.
            match hook_cost::measure(&mut kernel) {
                Ok(ns) => start.syscall_hook_ns = ns,
                Err(e) => tracing::debug!("cost of the syscall hooks: {e:#}"),
            }
        }
        kernel.attach()?;
        let mut live = Live {
            kernel,
            frames: Outbox::new(namer),
            processes: HashMap::new(),
            slots: Slots::default(),
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
            connection_entries: 0,
            data_ring_bytes: options.data_ring_bytes as usize,
            connections: Connections::new(decode),
            told_ns: 0,
            closed: Vec::new(),
            unprobed: HashSet::new(),
            growth: memory::Watch::default(),
            allocations: options.allocations.is_some(),
            gone: HashSet::new(),
            detached: false,
        };
        live.connections.preexisting(sockets_before);
        (start.realtime_ns, start.monotonic_ns) = (clock_ns(libc::CLOCK_REALTIME), monotonic_ns());
        for pid in targets {
            match live.seed(*pid) {
                Err(e) if fs::exists(format!("/proc/{pid}")).unwrap_or(true) => return Err(e),
                // A child that ended meanwhile; if all did, the trace ends at once.
                Err(e) => tracing::debug!(pid, "{e:#}"),
                Ok(()) => start.targets.push(*pid),
            }
        }
        if let Some(program) = &options.command
            && live.kernel.probe_command(program)
        {
            live.connections.tls_since(monotonic_ns());
        }
        for pid in targets {
            live.probe(*pid);
        }
        live.read_memory()?;
        live.start(start);
        live.count_bpf_time();
        Ok(live)
    }

    /// Puts the first fact in front of what seeding told, with the targets that were there.
    fn start(&mut self, mut start: Start) {
        start.host = host::host_name();
        start.kernel = host::kernel_release();
        start.arch = std::env::consts::ARCH.to_owned();
        start.cpus = aya::util::online_cpus().map_or(0, |c| c.len() as u32);
        let uprobes = self.kernel.uprobe_states();
        start.signals = self
            .kernel
            .signals
            .iter()
            .chain(&uprobes)
            .map(|s| (s.name.clone(), s.on, s.reason.clone()))
            .collect();
        self.frames.push_first(Frame::Fact(Fact::Start(start)));
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

    /// Frames made since the last call, but those behind a stack that has no names yet.
    pub fn take(&mut self) -> Vec<Frame> {
        self.frames.take()
    }

    /// See [`Outbox::named`].
    ///
    /// # Errors
    /// As there.
    pub async fn named(&mut self) -> Result<()> {
        self.frames.named().await
    }

    /// Probes OpenSSL and allocators where a process has them mapped; connections that were there are
    /// joined late.
    fn probe(&mut self, pid: u32) {
        if self.kernel.probe(pid) {
            self.connections.tls_since(monotonic_ns());
        }
    }

    /// Empties the rings. True where the data ring was so full that it should be emptied sooner next
    /// time.
    pub fn poll(&mut self) -> bool {
        self.kernel.drain_debug_log();
        self.poll_events();
        for pid in std::mem::take(&mut self.unprobed) {
            self.probe(pid);
        }
        let taken = self.poll_data();
        for connection in std::mem::take(&mut self.closed) {
            self.connections.closed(&connection);
        }
        self.tell_of_connections();
        if let Some((_, since)) = &self.stats
            && monotonic_ns() - since >= BPF_COUNTED_NS
        {
            self.end_counting();
        }
        taken > self.data_ring_bytes / 4
    }

    /// Tells the kernel side what its bytes say of connections.
    fn tell_of_connections(&mut self) {
        let before_ns = std::mem::replace(&mut self.told_ns, monotonic_ns());
        for (id, told) in self.connections.tell(before_ns) {
            // Where it is full, waits for the others stay `net.tcp` and `idle`.
            let protocols = &self.kernel.maps.protocols;
            if let Err(e) = protocols.update(&id.to_ne_bytes(), told.as_bytes(), 0) {
                tracing::debug!("telling the kernel side of a connection: {e}");
            }
        }
    }

    /// Bytes taken from the data ring.
    fn poll_data(&mut self) -> usize {
        let mut taken = 0;
        loop {
            let Some(record) = self.kernel.data.next() else {
                return taken;
            };
            taken += record.len();
            self.received += 1;
            let what = self.connections.data(&record);
            drop(record);
            match what {
                Taken::Read => {}
                // Its description lies in the other ring.
                Taken::Held => self.poll_events(),
                Taken::Refused => self.undecodable += 1,
            }
        }
    }

    /// Sockets of a process that is followed from now on are older than that.
    pub fn note_sockets(&mut self, pid: u32) {
        self.connections.preexisting(seeds::sockets_of(pid));
    }

    fn poll_events(&mut self) {
        while let Some(bytes) = self.kernel.ring.next().map(|item| item.to_vec()) {
            self.received += 1;
            self.note(&bytes);
            self.frames.push(Frame::Record(bytes));
        }
    }

    fn note(&mut self, bytes: &[u8]) {
        match records::parse(bytes) {
            Some(Record::Started(r)) => {
                self.unprobed.insert(r.tgid);
                self.process(r.tgid).threads.insert(r.tid);
            }
            Some(Record::Exited(r)) => self.thread_ended(r.thread.tgid, r.thread.tid),
            Some(Record::Exec(r)) => {
                self.unprobed.insert(r.tgid);
                self.gone.insert(r.tgid);
                self.frames.namer.forget(r.tgid);
                self.tell_unwinder(Request::Executed(r.tgid));
                let process = self.process(r.tgid);
                process.comm = records::comm(&r.comm);
                process.threads.remove(&r.old_tid);
                process.threads.insert(r.tgid);
            }
            Some(Record::Stack(r, addresses, python)) => {
                self.frames.push_stack(Unnamed {
                    id: r.id,
                    pid: r.tgid,
                    addresses,
                    words: python,
                    whole: u32::from(r.stop) == Stop::Complete as u32,
                });
            }
            Some(Record::UnixName(id, path)) => self.connections.unix_name(id, &path),
            Some(Record::Met(r)) => self.connections.met(&r.connection),
            Some(Record::Closed(r)) => self.closed.push(r.connection),
            Some(Record::UnwindMissed(r)) => {
                self.frames.namer.remap(r.tgid);
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
        self.gone.insert(pid);
        self.frames.namer.forget(pid);
        self.tell_unwinder(Request::Ended(pid));
        // Of most that came and went there is none.
        let _ = self.kernel.maps.resident.delete(&pid.to_ne_bytes());
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
                        uprobes_stopped: 0,
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
        let mut threads = self.read_threads()?;
        self.read_maps()?;
        // The ring after the maps: a thread that ended in between is in one of them at least.
        self.poll();
        let connections = self.end_connections(end_ns)?;
        self.name_waits(&mut threads, &connections);
        self.read_proc(&threads);
        // One that ended before `/proc` was read of it has its name in its record.
        self.poll_events();
        self.settle(end_ns);
        self.read_memory()?;
        // A library may be loaded at any time.
        self.unprobed.extend(self.processes.keys());
        self.frames.push(Frame::Map(MapId::Threads, threads));
        let fact = self.window_fact(end_ns)?;
        self.frames.push(Frame::Fact(Fact::Window(Box::new(fact))));
        self.free_slots(end_ns)?;
        self.forget_allocations()?;
        self.tell_unwinder(Request::Window);
        self.count_bpf_time();
        Ok(())
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
        if self.detached {
            let open = self.open_requests()?;
            if open > 0 {
                inferred.insert("io_open".to_owned(), open);
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
        map_entries.insert("connections".to_owned(), self.connection_entries as u64);
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
            python_walks: self.python_walks()?,
            map_entries,
            syscalls_on_ns: std::mem::take(&mut self.syscalls_on_ns),
            throttled: self
                .slots
                .processes()
                .filter_map(|(pid, _)| throttled(pid))
                .collect(),
        })
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

    fn python_walks(&self) -> Result<BTreeMap<String, u64>> {
        let mut walks = self.frames.namer.python_counts();
        for stop in python::Stop::ALL {
            let count = self.per_cpu_sum(&self.kernel.maps.python_walks, stop as u32)?;
            walks.insert(stop.name().to_owned(), count);
        }
        walks.retain(|_, count| *count > 0);
        Ok(walks)
    }

    /// Detaches every hook, then reads what is left. All stacks have their names then.
    ///
    /// # Errors
    /// As [`Live::window`] and [`Live::named`].
    pub async fn finish(&mut self) -> Result<()> {
        if let Some(control) = self.kernel.maps.control.element(0) {
            // SAFETY: a live element of the mapped array; the kernel only reads it.
            unsafe { (&raw mut (*control.as_ptr()).uprobes_stopped).write_volatile(1) };
        }
        self.kernel.detach();
        self.detached = true;
        self.poll();
        self.kernel.finish_search();
        self.connections.end();
        // Before the window that has what became of them.
        self.frames.all_named().await?;
        self.window()?;
        self.frames.all_named().await
    }
}

/// Reads the kernel's names with what the loading of the programs leaves of the CPUs. First the function that
/// kernel stacks of blocks begin with: until it is told, they begin a frame earlier while another tracer is there,
/// and what is remembered then is found out of date. Then all of them: whoever names a stack waits for them.
fn read_kernel_names(told: Option<MappedArray<FunctionRange>>) {
    let Some(told) = told else {
        return;
    };
    let read = move || {
        // SAFETY: takes numbers alone; 0 is this thread. It costs nothing but time if it fails.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, BESIDE) };
        match (kallsyms::range_of("__schedule"), told.element(0)) {
            (Ok(Some((start, end))), Some(element)) => {
                let range = FunctionRange { start, end };
                // SAFETY: a live element of the mapped array; the kernel only reads it.
                unsafe { element.as_ptr().write_volatile(range) };
            }
            _ => tracing::debug!("no __schedule in /proc/kallsyms"),
        }
        Kallsyms::of_running_kernel();
        // Three times the table was in use to sort it, and stays with the thread's own heap otherwise.
        crate::kernel::give_memory_back();
    };
    let thread = std::thread::Builder::new().name("kallsyms".to_owned());
    if let Err(e) = thread.spawn(read) {
        tracing::debug!("reading the kernel's names: {e}");
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
