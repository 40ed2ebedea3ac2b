//! Names the frames of stacks: blazesym (ELF, DWARF) and the kernel's own list, as soon as a stack
//! arrives, so that a target which exits has been symbolized already.

mod kallsyms;

use std::{collections::HashMap, fs};

use blazesym::{
    Pid,
    symbolize::{
        Input, Symbolized, Symbolizer,
        source::{Process, Source},
    },
};

use self::kallsyms::Kallsyms;
use crate::drain::{FrameFact, StackFact};

/// Most frames remembered; past it the cache starts anew.
const MAX_CACHED: usize = 65536;

/// Symbolizes stacks, remembering every frame.
pub struct Stacks {
    symbolizer: Symbolizer,
    /// Read at the first kernel stack.
    kernel: Option<Kallsyms>,
    /// By process (0: the kernel) and address.
    frames: HashMap<(u32, u64), FrameFact>,
    maps: HashMap<u32, Vec<Mapping>>,
    /// Whether `symbolizer` has read anything.
    loaded: bool,
    /// How often it was let go of, and until when it is kept after the last time.
    let_go: u32,
    keep_until_ns: u64,
}

/// Resident memory of the agent from which the symbolizer is let go of.
const LET_GO_BYTES: u64 = 40 << 20;
/// How often debug information is read again after that (45 ms each time for a program of 42 MB);
/// from then on names come from symbol tables alone, without source lines.
const MAX_DEBUG_READS: u32 = 8;
/// How long symbol tables are kept at least once that is so.
const KEEP_FOR_NS: u64 = 10_000_000_000;

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mapping {
    start: u64,
    end: u64,
    offset: u64,
    name: String,
}

impl Default for Stacks {
    fn default() -> Self {
        Stacks {
            symbolizer: symbolizer(),
            kernel: None,
            frames: HashMap::new(),
            maps: HashMap::new(),
            loaded: false,
            let_go: 0,
            keep_until_ns: 0,
        }
    }
}

fn symbolizer() -> Symbolizer {
    Symbolizer::builder().enable_inlined_fns(false).build()
}

impl Stacks {
    /// Names a stack's frames. `pid` 0 is a kernel stack, from which the scheduler's own frames
    /// (and the tracer's above them) are taken off.
    pub fn name(&mut self, id: u64, pid: u32, addresses: &[u64]) -> StackFact {
        // A frame-pointer walk may end in a word of zero.
        let end = addresses
            .iter()
            .position(|a| *a == 0)
            .unwrap_or(addresses.len());
        let addresses = &addresses[..end];
        // A return address points behind the call: the byte before it is inside.
        let looked_up: Vec<u64> = addresses
            .iter()
            .enumerate()
            .map(|(i, a)| if i == 0 { *a } else { a.saturating_sub(1) })
            .collect();
        let missing: Vec<u64> = looked_up
            .iter()
            .copied()
            .filter(|a| !self.frames.contains_key(&(pid, *a)))
            .collect();
        if !missing.is_empty() {
            self.look_up(pid, &missing);
        }
        // A frame-pointer walk through code without frame pointers reads what happens to stand
        // there: from the first word that is no address of code on it is data, the target's.
        let mut frames: Vec<FrameFact> = looked_up
            .iter()
            .map_while(|a| self.frames.get(&(pid, *a)).cloned())
            .take_while(|f| pid == 0 || f.symbolized || f.module.is_some())
            .collect();
        if pid == 0 {
            strip_scheduler(&mut frames);
        }
        StackFact { id, frames }
    }

    /// The process runs another program now.
    pub fn forget(&mut self, pid: u32) {
        self.frames.retain(|(p, _), _| *p != pid);
        self.maps.remove(&pid);
    }

    /// Lets go of what was read of programs so far (debug information takes 10 to 40 MB) where the
    /// agent has become large. The names of frames seen stay. `resident_bytes` is only asked where
    /// it matters.
    pub fn let_go(&mut self, now_ns: u64, resident_bytes: impl FnOnce() -> u64) {
        if !self.loaded || now_ns < self.keep_until_ns || resident_bytes() < LET_GO_BYTES {
            return;
        }
        self.symbolizer = symbolizer();
        self.loaded = false;
        crate::kernel::give_memory_back();
        self.let_go += 1;
        if self.let_go >= MAX_DEBUG_READS {
            self.keep_until_ns = now_ns + KEEP_FOR_NS;
        }
    }

    fn look_up(&mut self, pid: u32, addresses: &[u64]) {
        if self.frames.len() + addresses.len() > MAX_CACHED {
            self.frames.clear();
        }
        if pid == 0 {
            return self.look_up_kernel(addresses);
        }
        self.loaded = true;
        let debug = self.let_go < MAX_DEBUG_READS;
        let mut found = self.ask(&process(pid, debug), addresses);
        let left: Vec<u64> = addresses
            .iter()
            .zip(&found)
            .filter(|(_, f)| f.is_none())
            .map(|(a, _)| *a)
            .collect();
        if debug && !left.is_empty() {
            // Debug information covers a part of most programs (their own code and not their
            // libraries'); where it has nothing the symbol table may.
            let mut again = self.ask(&process(pid, false), &left).into_iter();
            for frame in found.iter_mut().filter(|f| f.is_none()) {
                *frame = again.next().flatten();
            }
        }
        for (address, frame) in addresses.iter().zip(found) {
            let frame = frame.unwrap_or_else(|| self.unnamed(pid, *address));
            self.frames.insert((pid, *address), frame);
        }
    }

    fn look_up_kernel(&mut self, addresses: &[u64]) {
        let kernel = self.kernel.get_or_insert_with(|| {
            Kallsyms::of_running_kernel().unwrap_or_else(|e| {
                tracing::debug!("reading the kernel's symbols: {e}");
                Kallsyms::default()
            })
        });
        for address in addresses {
            let frame = match kernel.name(*address) {
                Some(name) => FrameFact {
                    name: name.to_owned(),
                    symbolized: true,
                    ..FrameFact::default()
                },
                None => unnamed_address(*address),
            };
            self.frames.insert((0, *address), frame);
        }
    }

    fn ask(&self, source: &Source<'_>, addresses: &[u64]) -> Vec<Option<FrameFact>> {
        match self.symbolizer.symbolize(source, Input::AbsAddr(addresses)) {
            Ok(results) => results.iter().map(named).collect(),
            Err(e) => {
                tracing::debug!("symbolizing {source:?}: {e}");
                vec![None; addresses.len()]
            }
        }
    }

    /// A frame without a symbol: module and offset, never a guess.
    fn unnamed(&mut self, pid: u32, address: u64) -> FrameFact {
        let place = |mappings: &[Mapping]| {
            let m = mappings
                .iter()
                .find(|m| (m.start..m.end).contains(&address))?;
            let file = m.name.rsplit('/').next().filter(|f| !f.is_empty())?;
            Some(FrameFact {
                name: format!("{file}+{:#x}", address - m.start + m.offset),
                module: Some(m.name.clone()),
                source: None,
                symbolized: false,
            })
        };
        let mut found = self.maps.get(&pid).and_then(|m| place(m));
        if found.is_none() {
            let mappings =
                mappings(&fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default());
            found = place(&mappings);
            self.maps.insert(pid, mappings);
        }
        found.unwrap_or_else(|| unnamed_address(address))
    }
}

fn process(pid: u32, debug: bool) -> Source<'static> {
    let mut process = Process::new(Pid::from(pid));
    process.debug_syms = debug;
    Source::Process(process)
}

fn unnamed_address(address: u64) -> FrameFact {
    FrameFact {
        name: format!("{address:#x}"),
        ..FrameFact::default()
    }
}

fn named(result: &Symbolized<'_>) -> Option<FrameFact> {
    let symbol = result.as_sym()?;
    Some(FrameFact {
        name: symbol.name.to_string(),
        module: symbol
            .module
            .as_ref()
            .map(|m| m.to_string_lossy().into_owned()),
        source: symbol.code_info.as_ref().map(|c| match c.line {
            Some(line) => format!("{}:{line}", c.to_path().display()),
            None => c.to_path().display().to_string(),
        }),
        symbolized: true,
    })
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

fn mappings(text: &str) -> Vec<Mapping> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (start, end) = words.next()?.split_once('-')?;
            let hex = |s| u64::from_str_radix(s, 16).ok();
            let permissions = words.next()?;
            let offset = words.next()?;
            if !permissions.contains('x') {
                return None;
            }
            Some(Mapping {
                start: hex(start)?,
                end: hex(end)?,
                offset: hex(offset)?,
                name: words.nth(2)?.to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    fn known_function() -> u64 {
        known_function as fn() -> u64 as usize as u64
    }

    #[test]
    fn a_function_of_this_program_is_named_with_its_source() {
        let stack = Stacks::default().name(1, std::process::id(), &[known_function()]);
        let frame = &stack.frames[0];
        assert!(frame.name.contains("known_function"), "{frame:?}");
        assert!(frame.symbolized);
        assert!(
            frame
                .source
                .as_deref()
                .is_some_and(|s| s.contains("mod.rs:")),
            "{frame:?}"
        );
    }

    #[test]
    fn an_address_without_a_symbol_is_a_module_and_an_offset() {
        let maps =
            "1000-2000 r-xp 00004000 fe:00 77   /usr/bin/thing\n3000-4000 rw-p 00000000 00:00 0\n";
        assert_eq!(
            mappings(maps),
            [Mapping {
                start: 0x1000,
                end: 0x2000,
                offset: 0x4000,
                name: "/usr/bin/thing".into()
            }]
        );
        let mut stacks = Stacks::default();
        stacks.maps.insert(7, mappings(maps));
        let frame = stacks.unnamed(7, 0x1010);
        assert_eq!(
            (frame.name.as_str(), frame.symbolized),
            ("thing+0x4010", false)
        );
    }

    #[test]
    fn what_was_read_is_let_go_of_when_large_and_names_stay() {
        let mut stacks = Stacks::default();
        let (pid, address) = (std::process::id(), known_function());
        let named = stacks.name(1, pid, &[address]);
        stacks.let_go(0, || LET_GO_BYTES - 1);
        assert!(stacks.loaded);
        stacks.let_go(0, || LET_GO_BYTES);
        assert!(!stacks.loaded);
        assert_eq!(stacks.name(1, pid, &[address]), named);
        assert!(!stacks.loaded, "the name was remembered");
    }

    #[test]
    fn debug_information_is_not_read_over_and_over() {
        let mut stacks = Stacks::default();
        let (pid, address) = (std::process::id(), known_function());
        for i in 0..MAX_DEBUG_READS {
            let stack = stacks.name(1, pid, &[address + u64::from(i)]);
            assert!(stack.frames[0].source.is_some(), "{i}: {stack:?}");
            stacks.let_go(0, || LET_GO_BYTES);
        }
        let later = stacks.name(1, pid, &[address + u64::from(MAX_DEBUG_READS)]);
        assert!(later.frames[0].name.contains("known_function"), "{later:?}");
        assert_eq!(later.frames[0].source, None);
        for (now_ns, loaded) in [(KEEP_FOR_NS - 1, true), (KEEP_FOR_NS, false)] {
            stacks.let_go(now_ns, || LET_GO_BYTES);
            assert_eq!(stacks.loaded, loaded, "{now_ns}");
        }
    }

    #[test]
    fn the_schedulers_frames_are_taken_off() {
        let frame = |name: &str| FrameFact {
            name: name.into(),
            ..FrameFact::default()
        };
        let mut frames = [
            "bpf_prog_1",
            "__schedule",
            "schedule",
            "futex_wait",
            "do_syscall_64",
        ]
        .map(frame)
        .to_vec();
        strip_scheduler(&mut frames);
        assert_eq!(frames, ["futex_wait", "do_syscall_64"].map(frame));
    }
}
