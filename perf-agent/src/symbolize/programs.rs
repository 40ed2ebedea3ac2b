//! What blazesym finds in the files that a process has mapped.

use std::{
    collections::VecDeque,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use blazesym::{
    Pid,
    symbolize::{
        CodeInfo, Input, Reason, Symbolized, Symbolizer, cache, evict,
        source::{Process, Source},
    },
};

use crate::drain::FrameFact;

/// Where distributions put debug information, by build ID or under the program's own path.
const DEBUG_DIRECTORIES: [&str; 2] = ["/usr/lib/debug", "/lib/debug"];

/// Mappings remembered of all processes: some 250 bytes each, 4 MB. A process has 20 to 500, and may have 65,530.
const MAX_MAPPINGS: usize = 16384;

/// Names addresses of processes, and remembers what it read.
pub struct Programs {
    symbolizer: Symbolizer,
    /// Processes whose mappings are remembered, with how many those are, the oldest first.
    mapped: VecDeque<(u32, usize)>,
}

/// What was found at addresses.
struct Found {
    /// Innermost first, none where there is no symbol.
    frames: Vec<Vec<FrameFact>>,
    /// Something was not mapped, or could not be opened: what is remembered may be out of date.
    doubtful: bool,
}

impl Programs {
    /// See [`super::Stacks::new`].
    pub fn new(inlines: bool, directories: &[PathBuf]) -> Self {
        let given = directories.iter().map(PathBuf::as_path);
        let symbolizer = Symbolizer::builder()
            .enable_inlined_fns(inlines)
            .set_debug_dirs(Some(given.chain(DEBUG_DIRECTORIES.map(Path::new))))
            .build();
        Programs {
            symbolizer,
            mapped: VecDeque::new(),
        }
    }

    /// The frames at each address, none where there is no symbol. Source lines and inlined functions only
    /// with `debug`.
    ///
    /// The mappings of the process are read once and again where they do not fit: each sample of a busy CPU has an
    /// address of its own, and reading the mappings for each took 2 % of a CPU.
    pub fn frames(&mut self, pid: u32, debug: bool, addresses: &[u64]) -> Vec<Vec<FrameFact>> {
        let mut process = Process::new(Pid::from(pid));
        process.debug_syms = debug;
        // See `perf_map`.
        process.perf_map = false;
        let source = Source::Process(process);
        let remembered = self.mapped.iter().any(|(known, _)| *known == pid);
        if !remembered {
            self.remember(pid);
        }
        let found = self.ask(&source, addresses);
        if !found.doubtful || !remembered {
            return found.frames;
        }
        self.forget(pid);
        self.remember(pid);
        self.ask(&source, addresses).frames
    }

    /// The process maps other code by now.
    pub fn forget(&mut self, pid: u32) {
        self.mapped.retain(|(known, _)| *known != pid);
        self.evict(pid);
    }

    fn evict(&mut self, pid: u32) {
        let process = evict::Process::new(Pid::from(pid));
        if let Err(e) = self.symbolizer.evict(&process.into()) {
            tracing::debug!("forgetting the mappings of {pid}: {e}");
        }
    }

    /// Remembers the mappings of a process, where it is there and has not too many.
    fn remember(&mut self, pid: u32) {
        let Some(count) = mappings(pid).filter(|count| *count <= MAX_MAPPINGS) else {
            return;
        };
        let mut all = count + self.mapped.iter().map(|(_, count)| count).sum::<usize>();
        while all > MAX_MAPPINGS
            && let Some((oldest, count)) = self.mapped.pop_front()
        {
            self.evict(oldest);
            all -= count;
        }
        let mut process = cache::Process::new(Pid::from(pid));
        process.cache_perf_map = false;
        match self.symbolizer.cache(&process.into()) {
            Ok(()) => self.mapped.push_back((pid, count)),
            Err(e) => tracing::debug!("reading the mappings of {pid}: {e}"),
        }
    }

    fn ask(&self, source: &Source<'_>, addresses: &[u64]) -> Found {
        match self.symbolizer.symbolize(source, Input::AbsAddr(addresses)) {
            Ok(results) => Found {
                frames: results.iter().map(named).collect(),
                doubtful: results
                    .iter()
                    .any(|r| matches!(r, Symbolized::Unknown(Reason::Unmapped))),
            },
            // One address in a file that cannot be read fails them all.
            Err(e) if addresses.len() > 1 => {
                tracing::debug!("symbolizing {source:?}: {e}; one by one");
                let halves = addresses.split_at(addresses.len() / 2);
                let (first, second) = (self.ask(source, halves.0), self.ask(source, halves.1));
                Found {
                    frames: first.frames.into_iter().chain(second.frames).collect(),
                    doubtful: first.doubtful || second.doubtful,
                }
            }
            Err(e) => {
                tracing::debug!("symbolizing {source:?}: {e}");
                Found {
                    frames: vec![Vec::new()],
                    doubtful: true,
                }
            }
        }
    }
}

/// How many mappings a process has.
fn mappings(pid: u32) -> Option<usize> {
    let mut text = Vec::new();
    let file = fs::File::open(format!("/proc/{pid}/maps"));
    file.ok()?.read_to_end(&mut text).ok()?;
    Some(memchr::memchr_iter(b'\n', &text).count())
}

/// A function and those inlined in it at the address, innermost first.
fn named(result: &Symbolized<'_>) -> Vec<FrameFact> {
    let Some(symbol) = result.as_sym() else {
        return Vec::new();
    };
    let module = symbol
        .module
        .as_ref()
        .map(|m| m.to_string_lossy().into_owned());
    let frame = |name: &str, code: Option<&CodeInfo<'_>>, inlined| FrameFact {
        name: name.to_owned(),
        module: module.clone(),
        source: code.map(|c| match c.line {
            Some(line) => format!("{}:{line}", c.to_path().display()),
            None => c.to_path().display().to_string(),
        }),
        symbolized: true,
        inlined,
        build_id: None,
    };
    // Told in the order of the calls: the outermost first.
    let inlined = symbol.inlined.iter().rev();
    inlined
        .map(|i| frame(&i.name, i.code_info.as_ref(), true))
        .chain([frame(&symbol.name, symbol.code_info.as_deref(), false)])
        .collect()
}
