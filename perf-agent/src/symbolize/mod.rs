//! Names the frames of stacks: blazesym (ELF, DWARF), perf maps and the kernel's own list, as soon as
//! a stack arrives ([`namer`]), so that a target which exits has been symbolized already.

pub mod namer;
mod perf_map;
mod programs;
mod python;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use object::ReadCache;
use perf_ebpf_common::signals::unwind::EXACT;

use self::{
    perf_map::PerfMaps,
    programs::Programs,
    python::{Pythons, Stack},
};
use crate::{
    drain::{FrameFact, StackFact},
    kernel::kallsyms::Kallsyms,
    unwind::{
        mappings::{self, Mapping},
        object::Image,
    },
};

/// Most frames remembered; past it the cache starts anew.
const MAX_CACHED: usize = 65536;

/// A stack without names.
pub struct Unnamed {
    pub id: u64,
    /// 0 for a stack of the kernel.
    pub pid: u32,
    pub addresses: Vec<u64>,
    /// Frames of an interpreter, see `perf_ebpf_common::signals::python::word` and `code_print`.
    pub words: Vec<(u64, u64)>,
    /// Whether the native frames go to the outermost.
    pub whole: bool,
}

impl Unnamed {
    /// A stack without an interpreter's frames.
    pub fn native(id: u64, pid: u32, addresses: Vec<u64>) -> Self {
        Unnamed {
            id,
            pid,
            addresses,
            words: Vec::new(),
            whole: true,
        }
    }

    /// Addresses inside the instructions of its frames.
    fn looked_up(&self) -> Vec<u64> {
        // A frame-pointer walk may end in a word of zero.
        let addresses = self.addresses.iter().take_while(|a| **a != 0);
        // A return address points behind the call: the byte before it is inside.
        let inside = |(i, a): (usize, &u64)| match *a {
            a if i == 0 => a,
            a if self.pid != 0 && a & EXACT != 0 => a & !EXACT,
            a => a.saturating_sub(1),
        };
        addresses.enumerate().map(inside).collect()
    }
}

/// Symbolizes stacks, remembering every frame.
pub struct Stacks {
    programs: Programs,
    /// Whether it names functions that are inlined.
    inlines: bool,
    /// Where it looks for separate debug files first.
    directories: Vec<PathBuf>,
    /// By process (0: the kernel) and address; with the functions inlined there, innermost first.
    frames: HashMap<(u32, u64), Vec<FrameFact>>,
    maps: HashMap<u32, Vec<Mapping>>,
    perf_maps: PerfMaps,
    pythons: Pythons,
    /// Build IDs of files, in hexadecimal.
    build_ids: HashMap<String, Option<String>>,
    /// What `programs` holds, if it has read anything.
    held: Option<Held>,
    /// How often it was let go of before its time.
    cut_short: u32,
}

/// What was read of programs.
#[derive(Clone, Copy)]
struct Held {
    since: Instant,
    /// What reading it and looking up in it took.
    took: Duration,
}

/// Resident memory of the agent from which the symbolizer is let go of, once it was kept for its time.
const LET_GO_BYTES: u64 = 40 << 20;
/// For so many times what it took to read it is kept: reading it again and again takes no more of a CPU
/// than one part of as many (0.5 %; 45 ms for a program of 42 MB, which is then kept for 9 s).
const KEEP_TIMES: u32 = 200;
/// Resident memory from which it is let go of at once.
const CUT_SHORT_BYTES: u64 = 72 << 20;
/// How often that may be; from then on names come from symbol tables alone, without source lines, and
/// what was read of those is kept for its time.
const MAX_CUT_SHORT: u32 = 8;

impl Stacks {
    /// With `inlines`, a frame is followed by the function it is inlined into, and so on; where
    /// debug information tells. Of 300 addresses all over this program's own 42 MB that takes
    /// 14 MB of memory more, of 10,000 it takes 41 MB and 1.0 s in place of 0.4 s.
    ///
    /// Separate debug files are also looked for below `directories` (`.build-id/ab/cdef.debug`, or
    /// under the name the program gives), before the distribution's.
    pub fn new(inlines: bool, directories: &[PathBuf]) -> Self {
        Stacks {
            programs: Programs::new(inlines, directories),
            inlines,
            directories: directories.to_vec(),
            frames: HashMap::new(),
            maps: HashMap::new(),
            perf_maps: PerfMaps::default(),
            pythons: Pythons::default(),
            build_ids: HashMap::new(),
            held: None,
            cut_short: 0,
        }
    }

    /// As [`Stacks::name_all`], of one native stack.
    pub fn name(&mut self, id: u64, pid: u32, addresses: &[u64]) -> StackFact {
        let stack = Unnamed::native(id, pid, addresses.to_vec());
        self.name_all(&[stack]).remove(0)
    }

    /// Stacks of interpreters in which the two walks did not agree, and frames of theirs that could not be
    /// read.
    fn python_counts(&self) -> [u64; 2] {
        [self.pythons.shifted, self.pythons.unreadable]
    }

    /// Whether anything is held that may be let go of.
    fn holds_programs(&self) -> bool {
        self.held.is_some()
    }

    /// Names the frames of stacks, in their order. From kernel stacks the scheduler's own frames (and the
    /// tracer's above them) are taken off.
    ///
    /// What is not known yet of a process is asked for at once.
    pub fn name_all(&mut self, stacks: &[Unnamed]) -> Vec<StackFact> {
        let looked_up: Vec<Vec<u64>> = stacks.iter().map(Unnamed::looked_up).collect();
        // Before it is found out which frames are missing: what goes is missing too.
        if self.frames.len() + looked_up.iter().map(Vec::len).sum::<usize>() > MAX_CACHED {
            self.frames.clear();
        }
        // Code made at run time is looked up every time: its map grows, and other code may stand
        // there now.
        let mut made: HashMap<(u32, u64), FrameFact> = HashMap::new();
        let mut missing: BTreeMap<u32, BTreeSet<u64>> = BTreeMap::new();
        for (stack, addresses) in stacks.iter().zip(&looked_up) {
            for address in addresses {
                let at = (stack.pid, *address);
                if self.frames.contains_key(&at) || made.contains_key(&at) {
                    continue;
                }
                match self.mapped(at.0, at.1) {
                    Some(m) if m.is_memory() => {
                        made.insert(at, self.without_symbol(at.0, at.1));
                    }
                    _ => {
                        missing.entry(at.0).or_default().insert(at.1);
                    }
                }
            }
        }
        for (pid, addresses) in missing {
            let addresses: Vec<u64> = addresses.into_iter().collect();
            self.look_up(pid, &addresses, &mut made);
        }
        let stacks = stacks.iter().zip(&looked_up);
        stacks
            .map(|(stack, addresses)| self.put_together(stack, addresses, &made))
            .collect()
    }

    /// A stack of which every frame is known by now.
    fn put_together(
        &mut self,
        stack: &Unnamed,
        looked_up: &[u64],
        made: &HashMap<(u32, u64), FrameFact>,
    ) -> StackFact {
        let pid = stack.pid;
        // A frame-pointer walk through code without frame pointers reads what happens to stand
        // there: from the first word that is no address of code on it is data, the target's.
        let frames_of = |a: &u64| match made.get(&(pid, *a)) {
            Some(frame) => Some(std::slice::from_ref(frame)),
            None => self.frames.get(&(pid, *a)).map(Vec::as_slice),
        };
        let native: Vec<Vec<FrameFact>> = looked_up
            .iter()
            .map_while(frames_of)
            .take_while(|f| pid == 0 || f.iter().any(|f| f.symbolized || f.module.is_some()))
            .map(<[FrameFact]>::to_vec)
            .collect();
        let mut frames = if stack.words.is_empty() {
            native.into_iter().flatten().collect()
        } else {
            if !self.maps.contains_key(&pid) {
                self.read_mappings(pid);
            }
            let mappings = self.maps.get(&pid).map_or(&[][..], Vec::as_slice);
            let stack = Stack {
                pid,
                addresses: looked_up,
                words: &stack.words,
                whole: stack.whole,
            };
            self.pythons.merge(&stack, native, mappings)
        };
        if pid == 0 {
            strip_scheduler(&mut frames);
        }
        StackFact {
            id: stack.id,
            frames,
        }
    }

    /// The process maps code that was not known of.
    pub fn remap(&mut self, pid: u32) {
        self.maps.remove(&pid);
        self.programs.forget(pid);
    }

    /// The process runs another program now.
    pub fn forget(&mut self, pid: u32) {
        self.frames.retain(|(p, _), _| *p != pid);
        self.maps.remove(&pid);
        self.programs.forget(pid);
        self.perf_maps.forget(pid);
        self.pythons.forget(pid);
    }

    /// Lets go of what was read of programs so far (debug information takes 10 to 40 MB) where the
    /// agent has become large. The names of frames seen stay. `resident_bytes` is only asked where
    /// it matters.
    pub fn let_go(&mut self, now: Instant, resident_bytes: impl FnOnce() -> u64) {
        let Some(held) = self.held else { return };
        let early = now.duration_since(held.since) < held.took * KEEP_TIMES;
        if early && !self.reads_debug() {
            return;
        }
        if resident_bytes() < if early { CUT_SHORT_BYTES } else { LET_GO_BYTES } {
            return;
        }
        self.programs = Programs::new(self.inlines, &self.directories);
        self.held = None;
        self.cut_short += u32::from(early);
        crate::kernel::give_memory_back();
    }

    /// Whether names come with source lines, where there are any.
    fn reads_debug(&self) -> bool {
        self.cut_short < MAX_CUT_SHORT
    }

    fn look_up(&mut self, pid: u32, addresses: &[u64], made: &mut HashMap<(u32, u64), FrameFact>) {
        if pid == 0 {
            return self.look_up_kernel(addresses);
        }
        let found = self.read(pid, addresses);
        for (address, mut frames) in addresses.iter().zip(found) {
            if frames.is_empty() {
                let frame = self.without_symbol(pid, *address);
                if frame.module.as_deref().is_some_and(mappings::is_memory) {
                    made.insert((pid, *address), frame);
                    continue;
                }
                frames.push(frame);
            }
            self.frames.insert((pid, *address), frames);
        }
    }

    /// The frames at each address, as the program's files tell.
    fn read(&mut self, pid: u32, addresses: &[u64]) -> Vec<Vec<FrameFact>> {
        let began = Instant::now();
        let debug = self.reads_debug();
        let mut found = self.programs.frames(pid, debug, addresses);
        if debug {
            self.ask_symbols(pid, addresses, &mut found);
        }
        let held = self.held.get_or_insert(Held {
            since: began,
            took: Duration::ZERO,
        });
        held.took += began.elapsed();
        found
    }

    fn look_up_kernel(&mut self, addresses: &[u64]) {
        let kernel = Kallsyms::of_running_kernel();
        for address in addresses {
            let frame = match kernel.name(*address) {
                Some(name) => FrameFact {
                    name: name.to_owned(),
                    symbolized: true,
                    ..FrameFact::default()
                },
                None => unnamed_address(*address),
            };
            self.frames.insert((0, *address), vec![frame]);
        }
    }

    /// Asks the symbol table where debug information says nothing (it covers a part of most
    /// programs: their own code and not their libraries') or names a Rust function without its
    /// path, as it does where it is made for line numbers alone.
    fn ask_symbols(&mut self, pid: u32, addresses: &[u64], found: &mut [Vec<FrameFact>]) {
        let at: Vec<usize> = (0..found.len())
            .filter(|i| found[*i].last().is_none_or(lacks_path))
            .collect();
        if at.is_empty() {
            return;
        }
        let addresses: Vec<u64> = at.iter().map(|i| addresses[*i]).collect();
        let symbols = self.programs.frames(pid, false, &addresses);
        for (i, mut symbol) in at.into_iter().zip(symbols) {
            match (found[i].last_mut(), symbol.pop()) {
                (Some(frame), Some(symbol)) => frame.name = symbol.name,
                (None, Some(symbol)) => found[i].push(symbol),
                (_, None) => {}
            }
        }
    }

    /// A frame that no object has a symbol for: code made at run time, which a perf map may name,
    /// or stripped code, which is module and offset, never a guess.
    fn without_symbol(&mut self, pid: u32, address: u64) -> FrameFact {
        if self.mapped(pid, address).is_none() && pid != 0 {
            self.read_mappings(pid);
        }
        let Some(m) = self.mapped(pid, address) else {
            return unnamed_address(address);
        };
        let (m, offset) = (m.clone(), address - m.start + m.offset);
        let named = match m.is_memory() {
            true => self.perf_maps.name(pid, address),
            false => None,
        };
        let module = m.module();
        let file = module.rsplit('/').next().unwrap_or_default();
        FrameFact {
            symbolized: named.is_some(),
            build_id: self.build_id(pid, &m).filter(|_| named.is_none()),
            name: named.unwrap_or_else(|| format!("{file}+{offset:#x}")),
            module: Some(module.to_owned()),
            ..FrameFact::default()
        }
    }

    /// Reads the mappings of a process. One that is gone leaves what was known of it.
    fn read_mappings(&mut self, pid: u32) {
        let text = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        if !text.is_empty() {
            self.maps.insert(pid, mappings::parse(&text));
        }
    }

    /// The build ID of what is mapped, in hexadecimal.
    fn build_id(&mut self, pid: u32, m: &Mapping) -> Option<String> {
        if m.inode == 0 {
            return None;
        }
        let read = || {
            let data = ReadCache::new(fs::File::open(m.link(pid)).ok()?);
            let id = Image::parse(&data).ok()?.build_id()?;
            Some(id.iter().map(|byte| format!("{byte:02x}")).collect())
        };
        self.build_ids
            .entry(m.name.clone())
            .or_insert_with(read)
            .clone()
    }

    /// The executable mapping an address is in, as far as the mappings were read.
    fn mapped(&self, pid: u32, address: u64) -> Option<&Mapping> {
        let mut mappings = self.maps.get(&pid)?.iter();
        mappings.find(|m| (m.start..m.end).contains(&address))
    }
}

fn unnamed_address(address: u64) -> FrameFact {
    FrameFact {
        name: format!("{address:#x}"),
        ..FrameFact::default()
    }
}

/// Whether a function's name is bare where it stands in a Rust source file.
fn lacks_path(frame: &FrameFact) -> bool {
    let source = frame.source.as_deref().unwrap_or_default();
    let file = source.split(':').next().unwrap_or_default();
    file.ends_with(".rs") && !frame.name.contains("::")
}

/// Takes off what every blocked thread's kernel stack begins with: the tracer's own program, the
/// tracepoint, the scheduler.
fn strip_scheduler(frames: &mut Vec<FrameFact>) {
    let scheduler = |f: &FrameFact| {
        matches!(
            f.name.as_str(),
            "schedule" | "__schedule" | "io_schedule" | "preempt_schedule_common"
        ) || f.name.starts_with("schedule_")
    };
    if let Some(last) = frames.iter().take(16).rposition(scheduler) {
        frames.drain(..=last);
    }
}
