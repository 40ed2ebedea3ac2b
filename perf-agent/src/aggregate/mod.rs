//! Turns frames into the lines of each window. Pure: the same frames give the same lines, whether
//! they come from a running kernel or from a recording.

mod accelerator;
mod allocations;
mod clock;
mod io;
mod lines;
mod locks;
mod memory;
mod profile;
mod slowdown;
mod sockets;
mod split;
mod syscalls;
mod threads;

use std::collections::{BTreeMap, HashMap};

use perf_ebpf_common::{Wire as _, signals::ledger::ThreadState};

use crate::{
    detect::Detector,
    drain::{EndFact, Fact, Frame, MapId, Start, WindowFact},
    model::{Body, Line, Window, WindowReport},
    signals::{
        histograms::Histograms,
        records::{self, Record},
    },
};

use self::{
    profile::Profiles,
    syscalls::Calls,
    threads::{Account, Threads},
};

/// The state of a trace, fed with frames.
pub struct Pipeline {
    start: Start,
    detector: Detector,
    window_start_ns: u64,
    threads: Threads,
    profiles: Profiles,
    calls: Calls,
    io: io::BlockIos,
    memory: memory::Memories,
    allocations: allocations::Allocations,
    sockets: sockets::Sockets,
    /// Owner of each histogram slot.
    owners: BTreeMap<u32, u32>,
    /// Histograms at the end of the window before, and what came in this one.
    histograms: HashMap<u32, Histograms>,
    window_histograms: HashMap<u32, Histograms>,
    before: WindowFact,
    totals: lines::Totals,
    /// Records and histograms of this window that could not be read.
    damaged: u64,
}

impl Pipeline {
    pub fn new(detector: Detector) -> Pipeline {
        Pipeline {
            start: Start::default(),
            detector,
            window_start_ns: 0,
            threads: Threads::default(),
            profiles: Profiles::default(),
            calls: Calls::default(),
            io: io::BlockIos::default(),
            memory: memory::Memories::default(),
            allocations: allocations::Allocations::default(),
            sockets: sockets::Sockets::default(),
            owners: BTreeMap::new(),
            histograms: HashMap::new(),
            window_histograms: HashMap::new(),
            before: WindowFact::default(),
            totals: lines::Totals::default(),
            damaged: 0,
        }
    }

    /// One whose reports hold every site as it was measured (for `cpu.*` only counted), where lines
    /// hold the largest of each class.
    pub fn of_every_site() -> Pipeline {
        let mut pipeline = Pipeline::new(Detector::with_delegates(Vec::new()));
        pipeline.profiles.every_site = true;
        pipeline
    }

    /// Takes one frame; gives the report of the window that ends with it, in place of lines.
    pub fn report_of(&mut self, frame: &Frame) -> Option<WindowReport> {
        if let Frame::Fact(Fact::Window(w)) = frame {
            return Some(self.close(w));
        }
        self.frame(frame);
        None
    }

    /// Takes one frame; gives the lines that are complete with it.
    pub fn frame(&mut self, frame: &Frame) -> Vec<Line> {
        match frame {
            Frame::Record(bytes) => self.record(bytes),
            Frame::Map(id, bytes) => self.map(*id, bytes),
            Frame::Fact(fact) => return self.fact(fact),
        }
        Vec::new()
    }

    fn record(&mut self, bytes: &[u8]) {
        match records::parse(bytes) {
            Some(Record::Started(r)) => self.threads.started(&r),
            Some(Record::Exited(r)) => self.threads.exited(&r),
            Some(Record::Exec(r)) => self.threads.exec(&r),
            Some(Record::UnwindMissed(_)) => {}
            Some(Record::UnixName(id, path)) => self.profiles.unix_name(id, path),
            // What they tell of comes as facts.
            Some(Record::Stack(..) | Record::Met(_) | Record::Closed(_)) => {}
            None => self.damaged += 1,
        }
    }

    fn map(&mut self, id: MapId, bytes: &[u8]) {
        match id {
            MapId::Threads => {
                for entry in bytes.chunks_exact(4 + size_of::<ThreadState>()) {
                    if let Some(t) = ThreadState::from_bytes(&entry[4..]) {
                        self.threads.read(t);
                    }
                }
            }
            MapId::Histograms => match Histograms::unpack(bytes) {
                Some(now) => {
                    let before = self.histograms.remove(&now.slot).unwrap_or_default();
                    self.window_histograms.insert(now.slot, now.since(&before));
                    self.histograms.insert(now.slot, now);
                }
                None => self.damaged += 1,
            },
            MapId::Sites => self.profiles.sites(bytes),
            MapId::Wakers => self.profiles.locks.wakers(bytes),
            MapId::LockHolds => self.profiles.locks.holds(bytes),
            MapId::Syscalls => self.calls.cells(bytes),
            MapId::SyscallErrors => self.calls.errors(bytes),
            MapId::BlockIo => self.io.cells(bytes),
            MapId::Growth => self.memory.cells(bytes),
            MapId::Allocations => self.allocations.cells(bytes),
        }
    }

    fn fact(&mut self, fact: &Fact) -> Vec<Line> {
        match fact {
            Fact::Start(start) => {
                self.start = start.clone();
                self.window_start_ns = start.monotonic_ns;
                self.calls.mode = start.syscalls.clone();
                self.calls.hook_ns = start.syscall_hook_ns;
                if start.targets.is_empty() {
                    return self.hello();
                }
            }
            Fact::Process(p) => {
                self.threads.process(p.pid, &p.comm);
                // The shared slot is nobody's: what is charged to it cannot be told apart.
                if p.slot != crate::drain::slots::SHARED {
                    self.owners.insert(p.slot, p.pid);
                }
                // The processes named on the command line follow the start at once.
                return self.hello_when_named(p.pid);
            }
            Fact::SlotFreed { slot } => self.slot_freed(*slot),
            Fact::Thread(t) => self.threads.proc(t),
            Fact::Seeded(s) => self.threads.seeded(s),
            Fact::Stack(s) => self.profiles.stack(s),
            Fact::File(f) => self.profiles.file(f),
            Fact::Memory(m) => self.memory.read(m, self.window_start_ns),
            Fact::Device { dev, name } => self.io.device(*dev, name),
            Fact::Slice(s) => self.calls.slice(s),
            Fact::Connections(c) => self.sockets.connections.clone_from(&c.rows),
            Fact::Statements(s) => self.sockets.statements.clone_from(&s.rows),
            Fact::Requests(r) => self.sockets.requests.clone_from(&r.rows),
            Fact::Traffic(t) => self.sockets.traffic = t.clone(),
            Fact::Window(w) => return self.window(w),
            Fact::End(e) => return vec![self.bye(e)],
        }
        Vec::new()
    }

    fn hello_when_named(&mut self, pid: u32) -> Vec<Line> {
        if self.totals.hello_said || self.start.targets.last() != Some(&pid) {
            return Vec::new();
        }
        self.hello()
    }

    fn hello(&mut self) -> Vec<Line> {
        self.totals.hello_said = true;
        vec![Line::new(Body::Hello(lines::hello(
            &self.start,
            &self.threads,
        )))]
    }

    fn slot_freed(&mut self, slot: u32) {
        self.owners.remove(&slot);
        self.histograms.remove(&slot);
        self.profiles.slot_freed(slot);
        self.calls.slot_freed(slot);
        self.io.slot_freed(slot);
        self.memory.slot_freed(slot);
        self.allocations.slot_freed(slot);
    }

    fn window(&mut self, w: &WindowFact) -> Vec<Line> {
        let report = self.close(w);
        let findings = self.detector.window(&report);
        lines::in_order(report, findings)
    }

    fn close(&mut self, w: &WindowFact) -> WindowReport {
        let window = Window {
            start_ns: self.window_start_ns,
            end_ns: w.end_ns,
        };
        let report = self.report(window, w);
        self.window_start_ns = w.end_ns;
        self.window_histograms.clear();
        self.totals.add(&report);
        self.before = w.clone();
        report
    }

    fn report(&mut self, window: Window, w: &WindowFact) -> WindowReport {
        let stamp = clock::stamp(&self.start, window.end_ns);
        // Before the window is closed, which lets go of the accounts read.
        let open = self.threads.open_sites(window.end_ns);
        let accounts = self.threads.window(window);
        let mut profiles = self.profiles.window(&self.owners, &open, &accounts);
        let demand: HashMap<u32, (u64, u64)> = accounts.iter().map(demand_ns).collect();
        let mut calls = self
            .calls
            .window(window, w.syscalls_on_ns, &self.owners, &demand);
        let mut ios = self.io.window(&self.owners);
        let stack = |id| self.profiles.named(id);
        let mut allocations = self.allocations.window(&self.owners, stack);
        let mut memory = self.memory.window(window.end_ns, &self.owners, stack);
        let slot_of: HashMap<u32, u32> = self.owners.iter().map(|(s, p)| (*p, *s)).collect();
        let mut processes = Vec::new();
        for account in &accounts {
            let pid = account.who.pid;
            let histograms = slot_of
                .get(&pid)
                .and_then(|s| self.window_histograms.get(s));
            let context = lines::Context {
                stamp: &stamp,
                window,
            };
            processes.push(context.process(
                account,
                histograms,
                profiles.remove(&pid).unwrap_or_default(),
                calls.remove(&pid),
                ios.remove(&pid).unwrap_or_default(),
                lines::throttled(pid, &self.before, w),
            ));
        }
        for report in &mut processes {
            let pid = report.ledger.who.pid;
            report.allocations = allocations.remove(&pid).unwrap_or_default();
            let memory = memory.remove(&pid).unwrap_or_default();
            report.ledger.memory = memory.memory.map(Box::new);
            report.profile.growth = memory.growth;
            self.sockets.add_to(report, &stamp, window);
        }
        let damaged = std::mem::take(&mut self.damaged);
        let mut coverage = lines::coverage(&stamp, window, &processes, (&self.before, w), damaged);
        self.sockets.cover(&mut coverage);
        WindowReport {
            processes,
            coverage,
        }
    }

    fn bye(&mut self, end: &EndFact) -> Line {
        let stamp = clock::stamp(&self.start, self.window_start_ns);
        Line::new(Body::Bye(self.totals.bye(stamp, end, &self.before)))
    }
}

/// Time of a process on the CPU, and waiting for one.
fn demand_ns(account: &Account) -> (u32, (u64, u64)) {
    let of = |class| account.ledger.classes.get(class).copied().unwrap_or(0);
    let on_cpu = of("cpu.user") + of("cpu.kernel");
    (account.who.pid, (on_cpu, of("runq")))
}

#[cfg(test)]
mod tests;
