//! `--listen PATH`: the lines on a Unix socket, for any number of readers that come and go.
//!
//! A reader gets `hello` and what is known at the moment (findings that are open, the lines of the
//! newest window), then every line as it comes. Each has a thread and a bounded queue.

use std::{
    collections::BTreeMap,
    fs, io,
    net::Shutdown,
    os::{
        fd::AsRawFd as _,
        unix::{
            fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    Limits,
    queue::{Counts, Next, Queue, Text},
};
use crate::model::{Body, Line, State, StreamCoverage};

/// Readers at one time: together they can hold that many queues of memory.
const MAX_READERS: usize = 16;
/// Whoever may read what the agent saw of a process can see what the process does.
const MODE: u32 = 0o600;
/// How often a reader's thread looks up when nothing comes.
const IDLE: Duration = Duration::from_secs(3600);

/// A connected reader.
struct Reader {
    queue: Queue,
    stream: UnixStream,
}

/// What a reader that joins is told, and who is connected.
#[derive(Default)]
struct Hub {
    hello: Option<Text>,
    /// Findings that are not resolved, by process and id, with the end of their window.
    open: BTreeMap<(u32, String), (u64, Text)>,
    /// Lines of the newest window that is complete, its end, and those of the next so far.
    newest: (u64, Vec<Text>),
    next: Vec<Text>,
    readers: Vec<Arc<Reader>>,
    refused: u64,
    /// Lines of readers that left.
    left: Counts,
    closed: bool,
}

impl Hub {
    /// What there is to know now.
    fn state(&self) -> impl Iterator<Item = &Text> {
        let older = |(end_ns, _): &&(u64, Text)| *end_ns < self.newest.0;
        let older = self.open.values().filter(older).map(|(_, text)| text);
        let lines = self.newest.1.iter().chain(&self.next);
        self.hello.iter().chain(older).chain(lines)
    }

    /// Keeps what later readers need of a line.
    fn note(&mut self, line: &Line, text: &Text) {
        match &line.body {
            Body::Hello(_) => {
                self.hello = Some(text.clone());
                return;
            }
            Body::Finding(f) => {
                let key = (f.who.pid, f.id.clone());
                match f.state {
                    State::Resolved => self.open.remove(&key),
                    _ => self.open.insert(key, (f.window.end_ns, text.clone())),
                };
            }
            _ => {}
        }
        self.next.push(text.clone());
        if let Body::Coverage(coverage) = &line.body {
            self.newest = (coverage.window.end_ns, std::mem::take(&mut self.next));
        }
    }

    fn drop_those_that_left(&mut self) {
        for reader in self.readers.extract_if(.., |r| r.queue.is_gone()) {
            let counts = reader.queue.counts();
            self.left.lines += counts.lines;
            self.left.dropped += counts.dropped;
        }
    }
}

/// The listening end.
pub struct Socket {
    path: PathBuf,
    /// Device and inode of the file, to remove no other.
    identity: (u64, u64),
    listener: Arc<UnixListener>,
    hub: Arc<Mutex<Hub>>,
    accepting: Mutex<Option<JoinHandle<()>>>,
    patience: Duration,
}

fn lock(hub: &Mutex<Hub>) -> MutexGuard<'_, Hub> {
    hub.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Socket {
    /// Listens.
    ///
    /// # Errors
    /// Somebody listens there already, or something is there that is no socket; the file cannot be
    /// made.
    pub fn open(path: &Path, limits: Limits) -> Result<Socket> {
        let name = path.display();
        make_way(path)?;
        let listener = bind(path).with_context(|| format!("cannot listen on {name}"))?;
        let file = fs::metadata(path).with_context(|| format!("cannot listen on {name}"))?;
        let listener = Arc::new(listener);
        let hub = Arc::new(Mutex::new(Hub::default()));
        let (accepting, accepted) = (listener.clone(), hub.clone());
        let accepting = thread::Builder::new()
            .name("listen".into())
            .spawn(move || accept(&accepting, &accepted, limits.queue_bytes))
            .context("starting a thread")?;
        Ok(Socket {
            path: path.to_owned(),
            identity: (file.dev(), file.ino()),
            listener,
            hub,
            accepting: Mutex::new(Some(accepting)),
            patience: limits.patience,
        })
    }

    /// Gives a line to every reader.
    pub fn line(&self, line: &Line, text: &Text) {
        let mut hub = lock(&self.hub);
        hub.drop_those_that_left();
        hub.note(line, text);
        // Not under the lock: somebody may be waited for.
        let readers = hub.readers.clone();
        drop(hub);
        for reader in readers {
            match line.body {
                Body::Bye(_) => reader.queue.push_always(text),
                _ => reader.queue.push(text, line.body.stamp(), self.patience),
            }
        }
    }

    /// Sums since the start.
    pub fn coverage(&self) -> StreamCoverage {
        let mut hub = lock(&self.hub);
        hub.drop_those_that_left();
        let mut sum = hub.left;
        for reader in &hub.readers {
            let counts = reader.queue.counts();
            sum.lines += counts.lines;
            sum.dropped += counts.dropped;
        }
        StreamCoverage {
            stream: "listen".to_owned(),
            name: self.path.display().to_string(),
            readers: hub.readers.len() as u64,
            refused: hub.refused,
            lines: sum.lines,
            dropped: sum.dropped,
            restarts: 0,
        }
    }

    /// Takes no more readers, and nothing more comes for those there are.
    pub fn close(&self) {
        lock(&self.hub).closed = true;
        // SAFETY: the descriptor is open as long as `listener` is.
        // Those that have connected are still accepted, then `accept` fails. Where this fails (it has
        // no reason to) the thread is not waited for.
        let told = unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        let mut accepting = self
            .accepting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let (0, Some(thread)) = (told, accepting.take()) {
            // A panic there has been told of.
            let _ = thread.join();
        }
        for reader in &lock(&self.hub).readers {
            reader.queue.close();
        }
        let here = fs::symlink_metadata(&self.path);
        if here.is_ok_and(|file| (file.dev(), file.ino()) == self.identity) {
            // A file that cannot be removed is stale, and replaced next time.
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Waits until the readers have got all that is theirs; those that have not by then are left.
    pub fn wait(&self, deadline: Instant) {
        let readers = lock(&self.hub).readers.clone();
        for reader in readers {
            let left = deadline.saturating_duration_since(Instant::now());
            if !reader.queue.wait_gone(left) {
                let lines = reader.queue.waiting();
                tracing::warn!(
                    "a reader of {} does not read: {lines} lines and more did not reach it",
                    self.path.display()
                );
                // Wakes its thread.
                let _ = reader.stream.shutdown(Shutdown::Both);
            }
        }
    }
}

/// Removes a socket that nobody listens on.
fn make_way(path: &Path) -> Result<()> {
    let name = path.display();
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).with_context(|| format!("cannot listen on {name}")),
        Ok(file) if !file.file_type().is_socket() => {
            bail!("cannot listen on {name}: there is something that is no socket")
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!("{name}: replacing a socket that nobody listens on");
            fs::remove_file(path).with_context(|| format!("cannot replace {name}"))
        }
        Err(e) => Err(e).with_context(|| format!("cannot listen on {name}")),
        Ok(_) => bail!("cannot listen on {name}: another process does already"),
    }
}

/// Nobody can connect before the mode is set: the file has another name until then.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let listener = UnixListener::bind(&name)?;
    let moved = fs::set_permissions(&name, fs::Permissions::from_mode(MODE))
        .and_then(|()| fs::rename(&name, path));
    if let Err(e) = moved {
        let _ = fs::remove_file(&name);
        return Err(e);
    }
    Ok(listener)
}

fn accept(listener: &UnixListener, hub: &Mutex<Hub>, queue_bytes: usize) {
    for stream in listener.incoming() {
        match stream.and_then(|stream| join(hub, stream, queue_bytes)) {
            Ok(()) => {}
            Err(_) if lock(hub).closed => return,
            Err(e) => {
                tracing::warn!("a reader could not join: {e}");
                // Of too many open files, say: it would come again at once.
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

fn join(hub: &Mutex<Hub>, stream: UnixStream, queue_bytes: usize) -> io::Result<()> {
    let reader = Arc::new(Reader {
        queue: Queue::new(queue_bytes),
        stream,
    });
    let mut hub = lock(hub);
    hub.drop_those_that_left();
    if hub.readers.len() == MAX_READERS {
        hub.refused += 1;
        drop(hub);
        tracing::warn!("a reader was refused: there are {MAX_READERS} already");
        return Ok(());
    }
    hub.state().for_each(|text| reader.queue.push_always(text));
    let serving = reader.clone();
    thread::Builder::new()
        .name("reader".into())
        .spawn(move || serve(&serving))?;
    hub.readers.push(reader);
    Ok(())
}

fn serve(reader: &Reader) {
    use io::Write as _;
    loop {
        let item = match reader.queue.pop(IDLE) {
            Next::Item(item) => item,
            Next::Nothing => continue,
            Next::End => break,
        };
        if (&reader.stream).write_all(&item.text()).is_err() {
            break;
        }
    }
    let _ = reader.stream.shutdown(Shutdown::Both);
    reader.queue.leave();
}
