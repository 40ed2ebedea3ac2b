//! Names of code that a process made at run time, from the map its JIT writes: `/tmp/perf-PID.map`,
//! a line `START SIZE NAME` a function (`tools/perf/Documentation/jit-interface.txt` in Linux).
//!
//! Read here and not by blazesym, which gives up on the whole map at one line that is not finished
//! (a JIT writes while we read), and does not look there for mappings that have a name, as those of
//! V8 (`[anon:v8]`) and .NET (`memfd:doublemapper`) do.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::fs::MetadataExt as _,
};

use crate::drain::procfs::inner_tid;

/// Most bytes read of one map, 600,000 functions or so. What is past it has no name.
const MAX_BYTES: u64 = 64 << 20;
/// Longest line taken; a name is as long as its writer likes.
const MAX_LINE: usize = 4096;

/// The maps of all processes.
#[derive(Default)]
pub struct PerfMaps {
    by_process: HashMap<u32, PerfMap>,
}

/// The map of one process, as far as it was read.
#[derive(Default)]
struct PerfMap {
    /// Device and inode: a map that was replaced is read from its begin.
    file: (u64, u64),
    read: u64,
    /// A line whose end was not there yet.
    rest: Vec<u8>,
    /// End and name by start.
    functions: BTreeMap<u64, (u64, Box<str>)>,
}

impl PerfMaps {
    /// The function at an address, by the map as it is now.
    pub fn name(&mut self, pid: u32, address: u64) -> Option<String> {
        let map = self.by_process.entry(pid).or_default();
        // One that is gone, with its process or before it, still has what was read.
        if let Some(file) = open(pid) {
            map.update(file);
        }
        let (_, (end, name)) = map.functions.range(..=address).next_back()?;
        (address < *end).then(|| name.to_string())
    }

    /// The process runs another program now, or ended.
    pub fn forget(&mut self, pid: u32) {
        self.by_process.remove(&pid);
    }
}

/// The map in the process's own mount namespace, under the id it has in its own PID namespace.
fn open(pid: u32) -> Option<File> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let inner = inner_tid(&status).unwrap_or(pid);
    let file = File::open(format!("/proc/{pid}/root/tmp/perf-{inner}.map")).ok()?;
    // Anybody may have put a pipe there, to keep us waiting.
    file.metadata().ok()?.is_file().then_some(file)
}

impl PerfMap {
    /// Reads what was appended since the last time.
    fn update(&mut self, mut file: File) {
        let Ok(metadata) = file.metadata() else {
            return;
        };
        let id = (metadata.dev(), metadata.ino());
        if id != self.file || metadata.len() < self.read {
            *self = PerfMap {
                file: id,
                ..PerfMap::default()
            };
        }
        if metadata.len() == self.read || self.read >= MAX_BYTES {
            return;
        }
        let mut bytes = Vec::new();
        let more = file
            .seek(SeekFrom::Start(self.read))
            .and_then(|_| file.take(MAX_BYTES - self.read).read_to_end(&mut bytes));
        match more {
            Ok(more) => self.read += more as u64,
            Err(e) => return tracing::debug!("reading a perf map: {e}"),
        }
        if self.read >= MAX_BYTES {
            tracing::warn!("a perf map has more than {MAX_BYTES} bytes; the rest has no names");
        }
        self.append(&bytes);
    }

    fn append(&mut self, bytes: &[u8]) {
        let mut lines = bytes.split(|b| *b == b'\n').peekable();
        while let Some(line) = lines.next() {
            let room = MAX_LINE.saturating_sub(self.rest.len());
            self.rest.extend(&line[..line.len().min(room)]);
            if lines.peek().is_some() {
                let line = std::mem::take(&mut self.rest);
                self.line(&line);
            }
        }
    }

    /// Takes one line; one that is not well-formed names nothing.
    fn line(&mut self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let mut parts = text.splitn(3, ' ');
        let mut hex = || u64::from_str_radix(parts.next()?.trim_start_matches("0x"), 16).ok();
        let (Some(start), Some(size)) = (hex(), hex()) else {
            return;
        };
        let name = parts.next().unwrap_or_default().trim();
        let Some(end) = start.checked_add(size).filter(|end| *end > start) else {
            return;
        };
        if name.is_empty() {
            return;
        }
        // Code put where other code was: the later line is true.
        let over: Vec<u64> = self.functions.range(start..end).map(|(s, _)| *s).collect();
        for start in over {
            self.functions.remove(&start);
        }
        if let Some((_, (before, _))) = self.functions.range_mut(..start).next_back() {
            *before = (*before).min(start);
        }
        self.functions.insert(start, (end, name.into()));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(map: &PerfMap, address: u64) -> Option<&str> {
        let (_, (end, name)) = map.functions.range(..=address).next_back()?;
        (address < *end).then_some(&**name)
    }

    #[test]
    fn a_map_is_read_in_pieces_and_a_line_counts_when_it_is_whole() {
        let mut map = PerfMap::default();
        map.append(b"1000 10 one\n0x2000 20 LazyCompile:*two /app/");
        assert_eq!(name(&map, 0x100f), Some("one"));
        assert_eq!(name(&map, 0x1010), None);
        assert_eq!(name(&map, 0x2000), None);
        map.append(b"x.js:3\nnonsense\n3000 zz bad\nffffffffffffffff 2 wraps\n4000 0 empty\n");
        assert_eq!(name(&map, 0x201f), Some("LazyCompile:*two /app/x.js:3"));
        assert_eq!(map.functions.len(), 2);
    }

    #[test]
    fn later_code_at_the_same_place_has_the_later_name() {
        let mut map = PerfMap::default();
        map.append(b"1000 100 old\n1080 100 other\n1040 80 new\n");
        for (address, want) in [
            (0x1000, Some("old")),
            (0x103f, Some("old")),
            (0x1040, Some("new")),
            (0x10bf, Some("new")),
            (0x10c0, None),
        ] {
            assert_eq!(name(&map, address), want, "{address:#x}");
        }
    }

    #[test]
    fn what_is_appended_is_found_and_a_replaced_map_starts_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("perf-1.map");
        let mut map = PerfMap::default();
        fs::write(&path, "1000 10 one\n").unwrap();
        map.update(File::open(&path).unwrap());
        fs::write(&path, "1000 10 one\n2000 10 two\n").unwrap();
        map.update(File::open(&path).unwrap());
        assert_eq!((map.functions.len(), map.read), (2, 24));
        fs::write(&path, "3000 10 three\n").unwrap();
        map.update(File::open(&path).unwrap());
        assert_eq!(
            (name(&map, 0x1000), name(&map, 0x3000)),
            (None, Some("three"))
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..500), cut: usize) {
            let mut map = PerfMap::default();
            let (a, b) = bytes.split_at(cut % (bytes.len() + 1));
            map.append(a);
            map.append(b);
        }
    }
}
