//! Names the frames of CPython, from the memory of the process.

use std::{collections::HashMap, fs::File, rc::Rc};

use object::ReadCache;

use crate::{
    drain::FrameFact,
    python::{
        Interpreter,
        code::{self, Code},
        merge::{self, Native, PythonFrame},
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
    /// By process and address, with the print.
    codes: HashMap<(u32, u64), (u64, Rc<Code>)>,
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
    pub words: &'a [(u64, u64)],
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
        calls: &[Vec<PythonFrame>],
    ) -> Vec<Vec<FrameFact>> {
        let mut memory = None;
        let mut frame = |frame: &PythonFrame| match self.code(pid, &mut memory, interpreter, frame)
        {
            Some(code) if code.hidden => None,
            Some(code) => Some(code.frame(&interpreter.code, frame.unit)),
            None => {
                self.unreadable += 1;
                Some(FrameFact {
                    name: format!("[python code {:#x}]", frame.code),
                    module: Some("[python]".to_owned()),
                    ..FrameFact::default()
                })
            }
        };
        let named = |run: &Vec<PythonFrame>| run.iter().filter_map(&mut frame).collect();
        calls.iter().map(named).collect()
    }

    /// The code object of a frame, if it is still there or was read before.
    fn code(
        &mut self,
        pid: u32,
        memory: &mut Option<File>,
        interpreter: &Interpreter,
        frame: &PythonFrame,
    ) -> Option<Rc<Code>> {
        let known = self.codes.get(&(pid, frame.code));
        if let Some((_, code)) = known.filter(|(print, _)| *print == frame.print) {
            return Some(code.clone());
        }
        if memory.is_none() {
            *memory = File::open(format!("/proc/{pid}/mem")).ok();
        }
        let names = interpreter.names_at();
        let code = code::read(memory.as_ref()?, &interpreter.code, names, frame)?;
        let code = Rc::new(code);
        if self.codes.len() >= MAX_CACHED {
            self.codes.clear();
        }
        let entry = (frame.print, code.clone());
        self.codes.insert((pid, frame.code), entry);
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
