//! Names the frames of stacks: blazesym (ELF, DWARF, kallsyms) as soon as a stack arrives, so that
//! a target which exits has been symbolized already.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use blazesym::{
    Pid,
    symbolize::{
        Input, Symbolized, Symbolizer,
        source::{Kernel, Process, Source},
    },
};

use object::ReadCache;
use perf_ebpf_common::signals::unwind::EXACT;

use crate::{
    drain::{FrameFact, StackFact},
    unwind::{
        mappings::{self, Mapping},
        object::Image,
    },
};

/// Module of code that no file holds: made at run time.
const ANONYMOUS: &str = "[anon]";

/// Most frames remembered; past it the cache starts anew.
const MAX_CACHED: usize = 65536;

/// Symbolizes stacks, remembering every frame.
pub struct Stacks {
    symbolizer: Symbolizer,
    kernel: Source<'static>,
    /// By process (0: the kernel) and address.
    frames: HashMap<(u32, u64), FrameFact>,
    maps: HashMap<u32, Vec<Mapping>>,
    /// Build IDs of files, in hexadecimal.
    build_ids: HashMap<String, Option<String>>,
}

/// Where distributions put debug information, by build ID or under the program's own path.
const DEBUG_DIRECTORIES: [&str; 2] = ["/usr/lib/debug", "/lib/debug"];

impl Default for Stacks {
    fn default() -> Self {
        Stacks::new(&[])
    }
}

impl Stacks {
    /// Also looks for separate debug files below `directories` (`.build-id/ab/cdef.debug`, or under
    /// the name the program gives), before the distribution's.
    pub fn new(directories: &[PathBuf]) -> Self {
        let kernel = Kernel {
            // kallsyms has every function's name; DWARF of the kernel is hundreds of MB.
            vmlinux: blazesym::MaybeDefault::None,
            ..Kernel::default()
        };
        Stacks {
            symbolizer: Symbolizer::builder()
                .enable_inlined_fns(false)
                .set_debug_dirs(Some(
                    directories
                        .iter()
                        .map(PathBuf::as_path)
                        .chain(DEBUG_DIRECTORIES.map(Path::new)),
                ))
                .build(),
            kernel: Source::Kernel(kernel),
            frames: HashMap::new(),
            maps: HashMap::new(),
            build_ids: HashMap::new(),
        }
    }

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
            .map(|(i, a)| match a {
                _ if i == 0 => *a,
                _ if pid != 0 && a & EXACT != 0 => a & !EXACT,
                _ => a.saturating_sub(1),
            })
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

    /// The process maps code that was not known of.
    pub fn remap(&mut self, pid: u32) {
        self.maps.remove(&pid);
    }

    /// The process runs another program now.
    pub fn forget(&mut self, pid: u32) {
        self.frames.retain(|(p, _), _| *p != pid);
        self.maps.remove(&pid);
    }

    fn look_up(&mut self, pid: u32, addresses: &[u64]) {
        if self.frames.len() + addresses.len() > MAX_CACHED {
            self.frames.clear();
        }
        let mut found = if pid == 0 {
            self.ask(&self.kernel, addresses)
        } else {
            self.ask(&Source::Process(Process::new(Pid::from(pid))), addresses)
        };
        let left: Vec<u64> = addresses
            .iter()
            .zip(&found)
            .filter(|(_, f)| f.is_none())
            .map(|(a, _)| *a)
            .collect();
        if pid != 0 && !left.is_empty() {
            // Debug information covers a part of most programs (their own code and not their
            // libraries'); where it has nothing the symbol table may.
            let mut process = Process::new(Pid::from(pid));
            process.debug_syms = false;
            let mut again = self.ask(&Source::Process(process), &left).into_iter();
            for frame in found.iter_mut().filter(|f| f.is_none()) {
                *frame = again.next().flatten();
            }
        }
        for (address, frame) in addresses.iter().zip(found) {
            let frame = frame.unwrap_or_else(|| self.unnamed(pid, *address));
            self.frames.insert((pid, *address), frame);
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
        let ids = &mut self.build_ids;
        let mut build_id = |m: &Mapping| {
            if m.inode == 0 {
                return None;
            }
            ids.entry(m.name.clone())
                .or_insert_with(|| {
                    let data = ReadCache::new(fs::File::open(m.link(pid)).ok()?);
                    let id = Image::parse(&data).ok()?.build_id()?;
                    Some(id.iter().map(|byte| format!("{byte:02x}")).collect())
                })
                .clone()
        };
        let mut place = |mappings: &[Mapping]| {
            let m = mappings
                .iter()
                .find(|m| (m.start..m.end).contains(&address))?;
            let name = if m.name.is_empty() {
                ANONYMOUS
            } else {
                &m.name
            };
            let file = name.rsplit('/').next().unwrap_or(name);
            Some(FrameFact {
                name: format!("{file}+{:#x}", address - m.start + m.offset),
                module: Some(name.to_owned()),
                build_id: build_id(m),
                ..FrameFact::default()
            })
        };
        let mut found = self.maps.get(&pid).and_then(|m| place(m));
        if found.is_none() && pid != 0 {
            let mappings = mappings::parse(
                &fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default(),
            );
            found = place(&mappings);
            self.maps.insert(pid, mappings);
        }
        found.unwrap_or_else(|| FrameFact {
            name: format!("{address:#x}"),
            ..FrameFact::default()
        })
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
        ..FrameFact::default()
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
        let maps = "1000-2000 r-xp 00004000 fe:00 77   /usr/bin/thing\n";
        let mut stacks = Stacks::default();
        stacks.maps.insert(7, mappings::parse(maps));
        let frame = stacks.unnamed(7, 0x1010);
        assert_eq!(
            (frame.name.as_str(), frame.symbolized),
            ("thing+0x4010", false)
        );
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
