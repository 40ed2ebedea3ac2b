//! TLS libraries that are linked into files of the target whose functions cannot be found. What a program
//! prints when it fails has the names of its source files, stripped or not, and what every TLS library
//! puts into its keys is a constant as well: a file has a library if it has both.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
};

use anyhow::Result;
use memchr::memmem::Finder;
use object::{
    Endianness, ReadCache,
    elf::FileHeader64,
    read::elf::{FileHeader as _, SectionHeader as _},
};

type Header = FileHeader64<Endianness>;
type Names = BTreeSet<&'static str>;

/// Ends of source files' names, and whose they are. OpenSSL's are C, those of its descendants BoringSSL
/// and AWS-LC C++.
const SOURCES: [(&[u8], &str); 3] = [
    (b"ssl/ssl_lib.c\0", "OpenSSL linked in"),
    (b"ssl/ssl_lib.cc\0", "BoringSSL"),
    (b"/rustls-0.", "rustls"),
];
/// Labels of derived secrets: RFC 8446 section 7.1 (TLS 1.3) and RFC 5246 section 6.3 (1.2). In capitals
/// here, or this program had them itself.
const LABELS: [&str; 2] = ["C HS TRAFFIC", "KEY EXPANSION"];
/// Most of a file's constants that is searched. Chromium has 20 MB.
const SEARCHED_MAX: u64 = 64 << 20;
const PIECE: usize = 64 << 10;
/// Files that wait open. The others are opened when it is their turn: a process may have more of them than
/// this one may have open (1,024 often), and may have ended by then.
const OPEN_MAX: usize = 128;

/// A file that waits to be searched.
enum Waiting {
    Open(File),
    At(PathBuf),
}

/// What the searching thread tells.
#[derive(Default)]
struct Found {
    names: Mutex<Names>,
    /// Files that wait open.
    open: AtomicUsize,
    /// Files that were gone when it was their turn.
    gone: AtomicU64,
}

/// Searches files on a thread of its own, which is started for the first: what is not in the page cache
/// is read from a disk, and nobody waits for that but the end of the trace.
#[derive(Default)]
pub struct LinkedIn {
    searcher: Option<(Sender<Waiting>, JoinHandle<()>)>,
    found: Arc<Found>,
}

impl LinkedIn {
    /// Has a file searched, unless it is a device or cannot be opened.
    pub fn search(&mut self, file: &Path) {
        if !fs::metadata(file).is_ok_and(|meta| meta.is_file()) {
            return;
        }
        if self.searcher.is_none() {
            self.searcher = start(self.found.clone());
        }
        let Some((files, _)) = &self.searcher else {
            return;
        };
        let waiting = if self.found.open.load(Ordering::Relaxed) >= OPEN_MAX {
            Waiting::At(file.to_owned())
        } else if let Ok(file) = File::open(file) {
            self.found.open.fetch_add(1, Ordering::Relaxed);
            Waiting::Open(file)
        } else {
            return;
        };
        // Without a receiver, it has panicked.
        _ = files.send(waiting);
    }

    /// Waits for the files that are not searched yet.
    pub fn finish(&mut self) {
        if let Some((files, searcher)) = self.searcher.take() {
            drop(files);
            _ = searcher.join();
        }
        let gone = self.found.gone.swap(0, Ordering::Relaxed);
        if gone > 0 {
            tracing::warn!(
                "{gone} files of the target were gone before they were searched for TLS libraries"
            );
        }
    }

    /// Libraries found so far.
    pub fn names(&self) -> Names {
        let names = self.found.names.lock();
        names.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn start(found: Arc<Found>) -> Option<(Sender<Waiting>, JoinHandle<()>)> {
    let (sender, receiver): (_, Receiver<Waiting>) = channel();
    let run = move || {
        for waiting in receiver {
            found.take(waiting);
        }
    };
    let thread = thread::Builder::new().name("tls-names".into()).spawn(run);
    thread.ok().map(|thread| (sender, thread))
}

impl Found {
    fn take(&self, waiting: Waiting) {
        let file = match waiting {
            Waiting::Open(file) => {
                self.open.fetch_sub(1, Ordering::Relaxed);
                file
            }
            Waiting::At(path) => match File::open(path) {
                Ok(file) => file,
                Err(_) => {
                    self.gone.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            },
        };
        match linked_in(&file) {
            Ok(found) => self
                .names
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend(found),
            Err(e) => tracing::debug!("searching a file for TLS libraries: {e:#}"),
        }
    }
}

/// TLS libraries in a file.
///
/// # Errors
/// It cannot be read, or is no 64-bit ELF file.
fn linked_in(file: &File) -> Result<Names> {
    let cache = ReadCache::new(file);
    let data = &cache;
    let header = Header::parse(data)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, data)?;
    let Some((_, constants)) = sections.section_by_name(endian, b".rodata") else {
        return Ok(Names::new());
    };
    let begin = constants.sh_offset(endian);
    let length = constants.sh_size(endian).min(SEARCHED_MAX);
    Ok(search(file, begin, begin.saturating_add(length))?)
}

/// Searches a range of a file, piece by piece.
fn search(file: &File, mut at: u64, end: u64) -> io::Result<Names> {
    let labels = LABELS.map(str::to_ascii_lowercase);
    let sources = SOURCES.iter().map(|(source, _)| source.len());
    // Pieces overlap, so that nothing is cut by both.
    let overlap = sources.chain(labels.iter().map(String::len)).max();
    let step = (PIECE - overlap.unwrap_or(0)) as u64;
    let labels = labels.each_ref().map(Finder::new);
    let sources = SOURCES.map(|(source, name)| (Finder::new(source), name));
    let mut piece = vec![0; PIECE];
    let (mut names, mut has_label) = (Names::new(), false);
    while at < end {
        let wanted = (end - at).min(PIECE as u64) as usize;
        let read = file.read_at(&mut piece[..wanted], at)?;
        if read == 0 {
            break;
        }
        let has = |finder: &Finder<'_>| finder.find(&piece[..read]).is_some();
        has_label = has_label || labels.iter().any(has);
        let found = sources.iter().filter(|(source, _)| has(source));
        names.extend(found.map(|(_, name)| name));
        at += step;
    }
    Ok(if has_label { names } else { Names::new() })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const RUSTLS: &[u8] = b"/home/me/.cargo/rustls-0.23.5/src/conn.rs";

    fn names(parts: &[&[u8]]) -> Vec<&'static str> {
        let mut file = tempfile::tempfile().unwrap();
        parts.iter().for_each(|part| file.write_all(part).unwrap());
        let end = file.metadata().unwrap().len();
        search(&file, 0, end).unwrap().into_iter().collect()
    }

    #[test]
    fn a_library_is_known_by_its_source_files_and_its_labels_wherever_they_lie() {
        for label in LABELS.map(str::to_ascii_lowercase) {
            for before in [0, PIECE - 20, PIECE - 10, PIECE - 1, 3 * PIECE] {
                let filler = vec![b'x'; before];
                let label = label.as_bytes();
                assert_eq!(names(&[label, &filler, RUSTLS]), ["rustls"], "{before}");
                assert_eq!(names(&[RUSTLS, &filler, label]), ["rustls"], "{before}");
                let boring = [label, &filler, b"src/ssl/ssl_lib.cc\0"];
                assert_eq!(names(&boring), ["BoringSSL"], "{before}");
                let openssl = [label, &filler, b"../ssl/ssl_lib.c\0"];
                assert_eq!(names(&openssl), ["OpenSSL linked in"], "{before}");
            }
        }
    }

    #[test]
    fn a_file_that_speaks_of_a_library_does_not_have_it() {
        let label = LABELS[0].to_ascii_lowercase();
        assert!(names(&[RUSTLS, b"../ssl/ssl_lib.c\0"]).is_empty());
        assert!(names(&[label.as_bytes()]).is_empty());
        assert!(names(&[label.as_bytes(), b"ssl/ssl_lib.c is a file"]).is_empty());
        // This program has all the names.
        let own = File::open("/proc/self/exe").unwrap();
        assert!(linked_in(&own).unwrap().is_empty());
    }

    #[test]
    fn no_more_than_the_range_is_searched() {
        let label = LABELS[0].to_ascii_lowercase();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[label.as_bytes(), RUSTLS].concat())
            .unwrap();
        let end = file.metadata().unwrap().len();
        let cut = (label.len() + b"/home/me/.cargo/rustls-0".len()) as u64;
        assert!(search(&file, 0, cut).unwrap().is_empty());
        assert!(search(&file, 1, end).unwrap().is_empty());
        // Where the section is said to be longer than the file.
        assert_eq!(search(&file, 0, u64::MAX).unwrap().len(), 1);
    }

    #[test]
    fn however_many_files_wait_nobody_waits_for_the_search() {
        let mut linked_in = LinkedIn::default();
        let found = linked_in.found.clone();
        // The searcher stops here at its first file.
        let busy = found.names.lock().unwrap();
        for _ in 0..3 * OPEN_MAX {
            linked_in.search(Path::new("/bin/sh"));
        }
        linked_in.search(Path::new("/nonexistent"));
        let open = found.open.load(Ordering::Relaxed);
        assert!((OPEN_MAX - 1..=OPEN_MAX).contains(&open), "{open}");
        drop(busy);
        linked_in.finish();
        assert_eq!(linked_in.names(), Names::new());
        assert_eq!(found.open.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_file_that_is_gone_when_its_turn_comes_is_counted() {
        let found = Found::default();
        found.take(Waiting::At("/nonexistent".into()));
        assert_eq!(found.gone.load(Ordering::Relaxed), 1);
        assert!(found.names.lock().unwrap().is_empty());
    }
}
