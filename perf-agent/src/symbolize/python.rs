//! Names the frames of CPython, from the memory of the process.

use std::{collections::HashMap, fs::File, rc::Rc};

use object::ReadCache;

use crate::{
    drain::FrameFact,
    python::{
        Interpreter,
        code::{self, Code, Identity},
        merge::{self, Native},
    },
    unwind::{
        mappings::Mapping,
        object::{Image, linked_address},
    },
};

/// Most code objects remembered; past it they are read again.
const MAX_CACHED: usize = 16384;

/// An interpreter as a process has it mapped.
struct Mapped {
    interpreter: Interpreter,
    loop_start: u64,
    loop_length: u64,
}

/// Interpreters of the processes seen, and their code objects.
#[derive(Default)]
pub struct Pythons {
    processes: HashMap<u32, Rc<Mapped>>,
    codes: HashMap<(u32, u64), (Identity, Rc<Code>)>,
    /// Stacks in which the two walks did not agree on how often the interpreter's loop was called.
    pub shifted: u64,
    /// Frames whose code object could not be read.
    pub unreadable: u64,
}

/// A stack as it came, outermost frame last.
pub struct Stack<'a> {
    pub pid: u32,
    /// Addresses of the native frames.
    pub addresses: &'a [u64],
    pub words: &'a [u64],
    /// Whether the native frames go to the outermost.
    pub whole: bool,
}

impl Pythons {
    /// The process runs another program now.
    pub fn forget(&mut self, pid: u32) {
        self.processes.remove(&pid);
        self.codes.retain(|(p, _), _| *p != pid);
    }

    /// Puts the interpreter's frames into a native stack. `native` may end before its addresses do.
    pub fn merge(
        &mut self,
        stack: &Stack<'_>,
        native: Vec<Vec<FrameFact>>,
        mappings: &[Mapping],
    ) -> Vec<FrameFact> {
        let Some(mapped) = self.interpreter(stack.pid, mappings) else {
            return native.into_iter().flatten().collect();
        };
        let cut = native.len() < stack.addresses.len();
        let native = native
            .into_iter()
            .zip(stack.addresses)
            .map(|(frames, address)| Native {
                frames,
                is_loop: address.wrapping_sub(mapped.loop_start) < mapped.loop_length,
            })
            .collect();
        let calls = merge::calls(stack.words);
        let python = self.name(stack.pid, &mapped.interpreter, &calls.calls);
        let (merged, agreed) = merge::merge(native, python, stack.whole && !cut && calls.whole);
        self.shifted += u64::from(!agreed);
        merged
    }

    fn interpreter(&mut self, pid: u32, mappings: &[Mapping]) -> Option<Rc<Mapped>> {
        if let Some(known) = self.processes.get(&pid) {
            return Some(known.clone());
        }
        let found = Rc::new(find(pid, mappings)?);
        self.processes.insert(pid, found.clone());
        Some(found)
    }

    fn name(
        &mut self,
        pid: u32,
        interpreter: &Interpreter,
        calls: &[Vec<(u64, u32)>],
    ) -> Vec<Vec<FrameFact>> {
        let memory = File::open(format!("/proc/{pid}/mem")).ok();
        let mut frame = |(address, unit): &(u64, u32)| match self.code(
            pid,
            memory.as_ref(),
            interpreter,
            *address,
        ) {
            Some(code) if code.hidden => None,
            Some(code) => Some(code.frame(&interpreter.code, *unit)),
            None => {
                self.unreadable += 1;
                Some(FrameFact {
                    name: format!("[python code {address:#x}]"),
                    module: Some("[python]".to_owned()),
                    ..FrameFact::default()
                })
            }
        };
        let named = |run: &Vec<(u64, u32)>| run.iter().filter_map(&mut frame).collect();
        calls.iter().map(named).collect()
    }

    /// The code object at an address now; of a process that ended, what was there last.
    fn code(
        &mut self,
        pid: u32,
        memory: Option<&File>,
        interpreter: &Interpreter,
        address: u64,
    ) -> Option<Rc<Code>> {
        let layout = &interpreter.code;
        let known = self.codes.get(&(pid, address));
        let Some((memory, identity)) =
            memory.and_then(|m| Some((m, code::identity(m, layout, address)?)))
        else {
            return known.map(|(_, code)| code.clone());
        };
        if let Some((_, code)) = known.filter(|(same, _)| *same == identity) {
            return Some(code.clone());
        }
        let code = Rc::new(code::read(memory, layout, identity)?);
        if self.codes.len() >= MAX_CACHED {
            self.codes.clear();
        }
        self.codes.insert((pid, address), (identity, code.clone()));
        Some(code)
    }
}

/// The interpreter among what a process has mapped.
fn find(pid: u32, mappings: &[Mapping]) -> Option<Mapped> {
    mappings.iter().find_map(|m| {
        if m.inode == 0 || m.is_memory() {
            return None;
        }
        let data = ReadCache::new(File::open(m.link(pid)).ok()?);
        let image = Image::parse(&data).ok()?;
        let interpreter = Interpreter::of(&image)?;
        let linked = linked_address(&image.loads().ok()?, m.offset)?;
        let at = interpreter.at(m.start.wrapping_sub(linked));
        Some(Mapped {
            loop_start: at.eval_start,
            loop_length: at.eval_length,
            interpreter,
        })
    })
}
