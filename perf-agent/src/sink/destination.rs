//! A file, a pipe or a terminal that a sink writes to: whole pieces only.

use std::fs::File;
use std::io::{self, IsTerminal, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// How long to wait before a write is tried again on a descriptor that somebody made non-blocking
/// (the other end of a shared pipe or terminal can do that to us).
const RETRY: Duration = Duration::from_millis(1);

/// Where a sink writes.
pub struct Destination {
    pub file: File,
    /// For messages: the path, or `standard output`.
    pub name: String,
    pub terminal: bool,
}

impl Destination {
    /// Standard output, past the buffer of [`io::stdout`]: that one cuts lines where it likes.
    pub fn stdout() -> io::Result<Self> {
        let stdout = io::stdout();
        Ok(Destination {
            terminal: stdout.is_terminal(),
            file: File::from(stdout.as_fd().try_clone_to_owned()?),
            name: "standard output".to_owned(),
        })
    }

    /// A file, emptied.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = File::create(path)?;
        Ok(Destination {
            terminal: file.is_terminal(),
            file,
            name: path.display().to_string(),
        })
    }

    /// Writes all of `bytes`, or, in a regular file, nothing: where it takes only part of them (the
    /// disk is full), that part is cut off again, so that nobody meets half an object. The error
    /// names the destination and keeps its kind.
    pub fn write_whole(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut written = 0;
        while written < bytes.len() {
            let error = match self.file.write(&bytes[written..]) {
                Ok(0) => io::ErrorKind::WriteZero.into(),
                Ok(n) => {
                    written += n;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    thread::sleep(RETRY);
                    continue;
                }
                Err(error) => error,
            };
            let cut = cut_back(&mut self.file, written as u64);
            let rest = match cut {
                Ok(()) => "",
                Err(_) => "; the last line in it is incomplete",
            };
            let text = format!("cannot write to {}: {error}{rest}", self.name);
            return Err(io::Error::new(error.kind(), text));
        }
        Ok(())
    }
}

/// Takes the last `partial` bytes off a regular file. Elsewhere they are gone already; and where
/// somebody else appended after them, cutting would take theirs.
fn cut_back(file: &mut File, partial: u64) -> io::Result<()> {
    let metadata = file.metadata()?;
    if partial == 0 || !metadata.is_file() {
        return Ok(());
    }
    let end = file.stream_position()?;
    if end != metadata.len() || end < partial {
        return Err(io::ErrorKind::Other.into());
    }
    file.set_len(end - partial)?;
    file.seek(SeekFrom::Start(end - partial))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::FromRawFd;

    #[test]
    fn a_partly_written_line_is_cut_off_again() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"whole\npart").unwrap();
        cut_back(&mut file, 4).unwrap();
        file.write_all(b"next\n").unwrap();
        let mut text = String::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "whole\nnext\n");
    }

    #[test]
    fn bytes_somebody_else_appended_are_not_cut() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"whole\npart").unwrap();
        let mut other = File::options().append(true).open(file.path()).unwrap();
        other.write_all(b"other\n").unwrap();
        assert!(cut_back(file.as_file_mut(), 4).is_err());
        assert_eq!(std::fs::read(file.path()).unwrap(), b"whole\npartother\n");
    }

    #[test]
    fn a_full_non_blocking_pipe_delays_a_line_but_does_not_cut_it() {
        let mut fds = [0i32; 2];
        // SAFETY: the array has room for the two descriptors.
        assert_eq!(
            unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_NONBLOCK) },
            0
        );
        // SAFETY: just made, and owned by nobody else.
        let [mut reader, writer] = fds.map(|fd| unsafe { File::from_raw_fd(fd) });
        let mut out = Destination {
            file: writer,
            name: "the pipe".into(),
            terminal: false,
        };
        let bytes = vec![b'x'; 1 << 20];
        let want = bytes.len();
        let drain = thread::spawn(move || {
            let (mut seen, mut chunk) = (0, [0u8; 4096]);
            while seen < want {
                match reader.read(&mut chunk) {
                    Ok(0) => break,
                    Ok(n) => seen += n,
                    Err(_) => thread::yield_now(),
                }
            }
            seen
        });
        out.write_whole(&bytes).unwrap();
        drop(out);
        assert_eq!(drain.join().unwrap(), want);
    }
}
