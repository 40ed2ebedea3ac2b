//! The thread that builds tables: which process maps what, and what of it has a table.

use std::{
    collections::{HashMap, HashSet, hash_map::DefaultHasher},
    fs::{self, File},
    hash::{Hash, Hasher as _},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::MetadataExt as _,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{self, Receiver, Sender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use object::{ReadCache, ReadRef};
use perf_ebpf_common::signals::{
    python::Python,
    unwind::{MAX_RANGES, MAX_SPACES, PAGE_SHIFT, Range, Rule},
};

use super::{
    compile,
    mappings::{self, Mapping},
    object::{Image, Load, linked_address},
    table::{Maps, Refused, Tables},
};
use crate::python::Interpreter;

/// A space that no process has any more may still be walked: it rests for so long.
const REST: Duration = Duration::from_secs(1);

/// After a miss that brought nothing new the process's mappings are left alone for this long, each
/// time twice as long, up to the second.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Processes whose mappings are read again in each window, in turn: some 50 µs each.
const CHECKED_PER_WINDOW: usize = 4;

/// What the builder is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// A process is under trace.
    Follow(u32),
    /// It runs another program.
    Executed(u32),
    /// Code of it is in no mapping known of.
    Missed(u32),
    Ended(u32),
    /// A window ended: time to look whether mappings went away.
    Window,
}

/// What the builder did and could not do, since the start.
#[derive(Debug, Default)]
pub struct Counters {
    pub objects: AtomicU64,
    /// Bytes of the maps in use.
    pub bytes: AtomicU64,
    /// Objects for which the maps had no room.
    pub tables_full: AtomicU64,
    /// Objects that could not be read.
    pub unreadable: AtomicU64,
    /// Address spaces for which there was no room.
    pub spaces_full: AtomicU64,
    /// Executable mappings past what one space has room for.
    pub ranges_full: AtomicU64,
}

impl Counters {
    /// What was lost, by name in `coverage.lost`.
    pub fn lost(&self) -> impl Iterator<Item = (String, u64)> {
        [
            ("unwind_tables_full", &self.tables_full),
            ("unwind_unreadable", &self.unreadable),
            ("unwind_spaces_full", &self.spaces_full),
            ("unwind_ranges_full", &self.ranges_full),
        ]
        .into_iter()
        .map(|(name, count)| (name.to_owned(), count.load(Relaxed)))
        .filter(|(_, count)| *count > 0)
    }

    /// What the kernel side's maps hold, by name in `coverage.maps`.
    pub fn kept(&self) -> impl Iterator<Item = (String, u64)> {
        [
            ("unwind_objects", &self.objects),
            ("unwind_bytes", &self.bytes),
        ]
        .into_iter()
        .map(|(name, count)| (name.to_owned(), count.load(Relaxed)))
    }
}

/// The process ended or mapped something else there: `ENOENT`, or `ESRCH` while it gives back its memory
/// (4 % of the opens beside a process that execs and ends; `mm_access`, kernel/fork.c).
pub(super) fn went_away(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

/// The building thread. It ends with this.
pub struct Unwinder {
    requests: Option<Sender<Request>>,
    pub counters: Arc<Counters>,
    thread: Option<JoinHandle<()>>,
}

impl Unwinder {
    /// Starts the thread.
    ///
    /// # Errors
    /// The thread cannot be made.
    pub fn start<M: Maps + Send + 'static>(maps: M) -> io::Result<Unwinder> {
        let (requests, told) = mpsc::channel();
        let counters = Arc::new(Counters::default());
        let shared = counters.clone();
        let thread = std::thread::Builder::new()
            .name("unwind-tables".to_owned())
            .spawn(move || match Builder::new(maps, shared) {
                Ok(mut builder) => builder.run(&told),
                Err(e) => tracing::warn!("no unwind tables: {e}"),
            })?;
        Ok(Unwinder {
            requests: Some(requests),
            counters,
            thread: Some(thread),
        })
    }

    /// Tells the thread; it comes to it in time.
    pub fn tell(&self, request: Request) {
        if let Some(requests) = &self.requests {
            // Fails only where the thread could not begin, which was said.
            _ = requests.send(request);
        }
    }
}

impl Drop for Unwinder {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

/// A file by what stays the same while it does.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct FileKey {
    device: u64,
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

/// An object that was looked at.
struct Known {
    /// Its table, 0 for none, and the address it begins at.
    object: u32,
    begin: u64,
    loads: Vec<Load>,
    python: Option<Interpreter>,
}

#[derive(Default)]
struct Followed {
    /// Of the text of its mappings read last.
    hash: u64,
    back_off: Duration,
    quiet_until: Option<Instant>,
}

#[derive(Clone, Copy, Default)]
struct SpaceState {
    /// Of its content; 0: none yet.
    hash: u64,
    last_used: Option<Instant>,
}

/// The state of the thread.
struct Builder<M> {
    tables: Tables<M>,
    counters: Arc<Counters>,
    files: HashMap<FileKey, Rc<Known>>,
    build_ids: HashMap<Vec<u8>, Rc<Known>>,
    vdso: Option<Rc<Known>>,
    processes: HashMap<u32, Followed>,
    /// Whose turn it is at the end of a window.
    turn: u32,
    spaces: Vec<SpaceState>,
}

fn hash_of(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish() | 1
}

impl<M: Maps> Builder<M> {
    fn new(maps: M, counters: Arc<Counters>) -> io::Result<Self> {
        Ok(Builder {
            tables: Tables::new(maps)?,
            counters,
            files: HashMap::new(),
            build_ids: HashMap::new(),
            vdso: None,
            processes: HashMap::new(),
            turn: 0,
            spaces: vec![SpaceState::default(); MAX_SPACES as usize],
        })
    }

    fn run(&mut self, told: &Receiver<Request>) {
        while let Ok(request) = told.recv() {
            let objects = self.tables.objects();
            if let Err(e) = self.handle(request) {
                tracing::warn!("unwind tables: {e}");
            }
            if self.tables.objects() != objects {
                give_memory_back();
            }
        }
    }

    fn handle(&mut self, request: Request) -> io::Result<()> {
        match request {
            Request::Follow(pid) => {
                self.read(pid)?;
            }
            Request::Executed(pid) => {
                self.processes.insert(pid, Followed::default());
                self.read(pid)?;
            }
            Request::Missed(pid) => {
                let followed = self.processes.entry(pid).or_default();
                let now = Instant::now();
                if followed.quiet_until.is_some_and(|until| now < until) {
                    return Ok(());
                }
                if self.read(pid)? {
                    return Ok(());
                }
                let followed = self.processes.entry(pid).or_default();
                followed.back_off = (followed.back_off * 2).clamp(BACK_OFF.0, BACK_OFF.1);
                followed.quiet_until = Some(now + followed.back_off);
            }
            Request::Ended(pid) => {
                self.processes.remove(&pid);
                self.tables.maps.set_process(pid, None)?;
            }
            Request::Window => self.check()?,
        }
        Ok(())
    }

    /// Reads the mappings of some processes again.
    fn check(&mut self) -> io::Result<()> {
        let mut pids: Vec<u32> = self.processes.keys().copied().collect();
        pids.sort_unstable();
        let next = pids.partition_point(|pid| *pid <= self.turn);
        pids.rotate_left(next);
        pids.truncate(CHECKED_PER_WINDOW);
        for pid in pids {
            self.turn = pid;
            self.read(pid)?;
        }
        Ok(())
    }

    /// Gives a process the space of its mappings; whether they were new.
    fn read(&mut self, pid: u32) -> io::Result<bool> {
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/maps")) else {
            // It ended, which will be told.
            return Ok(false);
        };
        let hash = hash_of(&text);
        if self.processes.entry(pid).or_default().hash == hash {
            return Ok(false);
        }
        let (ranges, python) = self.ranges(pid, &mappings::parse(&text));
        let Some(space) = self.space(&ranges, python)? else {
            self.counters.spaces_full.fetch_add(1, Relaxed);
            self.tables.maps.set_process(pid, Some(0))?;
            return Ok(true);
        };
        self.tables.maps.set_process(pid, Some(space))?;
        let followed = self.processes.entry(pid).or_default();
        followed.hash = hash;
        followed.back_off = Duration::ZERO;
        followed.quiet_until = None;
        Ok(true)
    }

    /// A space with these ranges: one that has them already, or one that nobody uses.
    fn space(&mut self, ranges: &[Range], python: Python) -> io::Result<Option<u32>> {
        let hash = hash_of(&(ranges, python));
        let now = Instant::now();
        let used: HashSet<u32> = self
            .tables
            .maps
            .processes()?
            .into_iter()
            .map(|(_, space)| space)
            .collect();
        for (number, space) in self.spaces.iter_mut().enumerate() {
            if used.contains(&(number as u32)) {
                space.last_used = Some(now);
            }
        }
        if let Some(same) = self.spaces.iter().position(|space| space.hash == hash) {
            self.spaces[same].last_used = Some(now);
            return Ok(Some(same as u32));
        }
        let rested = |space: &SpaceState| {
            space
                .last_used
                .is_none_or(|last| now.duration_since(last) > REST)
        };
        // Number 0 means that there is none.
        let Some(free) = (1..self.spaces.len()).find(|n| rested(&self.spaces[*n])) else {
            return Ok(None);
        };
        self.tables.maps.write_space(free as u32, ranges, python)?;
        self.spaces[free] = SpaceState {
            hash,
            last_used: Some(now),
        };
        Ok(Some(free as u32))
    }

    /// The mappings with their tables, and the interpreter that is among them.
    fn ranges(&mut self, pid: u32, mappings: &[Mapping]) -> (Vec<Range>, Python) {
        if mappings.len() > MAX_RANGES {
            self.counters
                .ranges_full
                .fetch_add((mappings.len() - MAX_RANGES) as u64, Relaxed);
        }
        let mut python = Python::default();
        let ranges = mappings
            .iter()
            .take(MAX_RANGES)
            .map(|mapping| {
                let mut range = Range {
                    start: mapping.start,
                    origin: 0,
                    pages: ((mapping.end - mapping.start) >> PAGE_SHIFT) as u32,
                    object: 0,
                };
                if let Some(known) = self.known(pid, mapping)
                    && let Some(linked) = linked_address(&known.loads, mapping.offset)
                {
                    let bias = mapping.start.wrapping_sub(linked);
                    range.object = known.object;
                    range.origin = bias.wrapping_add(known.begin);
                    if let Some(interpreter) = &known.python {
                        python = interpreter.at(bias);
                    }
                }
                range
            })
            .collect();
        (ranges, python)
    }

    /// What is mapped, with its table where it has one.
    fn known(&mut self, pid: u32, mapping: &Mapping) -> Option<Rc<Known>> {
        if mapping.name == "[vdso]" {
            if self.vdso.is_none() {
                let bytes = own_vdso()?;
                self.vdso = self.build(bytes.as_slice());
            }
            return self.vdso.clone();
        }
        if mapping.inode == 0 {
            return None;
        }
        let file = match File::open(mapping.link(pid)) {
            Ok(file) => file,
            // Its walks are counted as they ended.
            Err(e) if went_away(&e) => return None,
            Err(e) => {
                tracing::debug!("{}: {e}", mapping.name);
                self.counters.unreadable.fetch_add(1, Relaxed);
                return None;
            }
        };
        let meta = file.metadata().ok()?;
        let key = FileKey {
            device: meta.dev(),
            inode: meta.ino(),
            bytes: meta.len(),
            changed: (meta.mtime(), meta.mtime_nsec()),
        };
        if let Some(known) = self.files.get(&key) {
            return Some(known.clone());
        }
        // A device may be mapped as well: reading it could do anything.
        if !meta.is_file() {
            return None;
        }
        let began = Instant::now();
        let known = self.build(&ReadCache::new(file))?;
        tracing::debug!(
            file = mapping.name,
            object = known.object,
            bytes = self.tables.bytes(),
            "table in {:?}",
            began.elapsed()
        );
        self.files.insert(key, known.clone());
        Some(known)
    }

    /// Builds an object's table, if the same object was not built before.
    fn build<'a, R: ReadRef<'a>>(&mut self, data: R) -> Option<Rc<Known>> {
        // Data mapped executable is no ELF file: nothing is amiss then.
        let image = Image::parse(data).ok()?;
        let build_id = image.build_id();
        if let Some(known) = build_id.as_ref().and_then(|id| self.build_ids.get(id)) {
            return Some(known.clone());
        }
        let (Ok(loads), Ok(frames)) = (image.loads(), image.frames()) else {
            self.counters.unreadable.fetch_add(1, Relaxed);
            return None;
        };
        let bases = match frames.eh_frame.is_empty() && frames.debug_frame.is_empty() {
            true => image.go_stack_bases(),
            false => Vec::new(),
        };
        let mut malformed = 0;
        let added = self.tables.add(|writer| {
            let compiled = compile::compile(&frames, |address, rule| writer.row(address, rule))?;
            malformed = compiled.malformed;
            bases.iter().try_for_each(|base| {
                writer.row(base.address, compile::END)?;
                writer.row(base.address.saturating_add(base.size), Rule::default())
            })
        });
        if malformed > 0 {
            // Distributions ship such (libgcrypt's assembler code): a walk that meets one is counted.
            tracing::debug!(malformed, "functions with malformed unwind information");
        }
        let (object, begin) = match added {
            Ok(added) => added,
            // Code without unwind information: frame pointers.
            Err(Refused::Nothing) => (0, 0),
            Err(refused) => {
                tracing::debug!("no table: {refused:?}");
                self.counters.tables_full.fetch_add(1, Relaxed);
                (0, 0)
            }
        };
        self.counters
            .objects
            .store(self.tables.objects().into(), Relaxed);
        self.counters.bytes.store(self.tables.bytes(), Relaxed);
        let known = Rc::new(Known {
            object,
            begin,
            loads,
            python: Interpreter::of(&image),
        });
        if let Some(id) = build_id {
            self.build_ids.insert(id, known.clone());
        }
        Some(known)
    }
}

/// What compiling took (the sections of the largest object, mostly) is not needed any more: 8 MiB for
/// a Redis server.
fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: touches nothing but the allocator's free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The kernel's own library, as it is mapped into this process: every process has the same.
fn own_vdso() -> Option<Vec<u8>> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let mapping = mappings::parse(&maps)
        .into_iter()
        .find(|mapping| mapping.name == "[vdso]")?;
    let mut memory = File::open("/proc/self/mem").ok()?;
    memory.seek(SeekFrom::Start(mapping.start)).ok()?;
    let mut bytes = vec![0; (mapping.end - mapping.start) as usize];
    memory.read_exact(&mut bytes).ok()?;
    Some(bytes)
}
