//! NDJSON: one object a line, whole lines only.
//!
//! Each line is serialized first and then handed to the kernel in one piece. Where a regular file
//! takes only part of it (the disk is full), that part is cut off again, so that whoever reads the
//! file never meets half an object.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::thread;
use std::time::Duration;

use super::{Destination, Sink};
use crate::model::Line;

/// How long to wait before a write is tried again on a descriptor that somebody made non-blocking
/// (the other end of a shared pipe or terminal can do that to us).
const RETRY: Duration = Duration::from_millis(1);

/// Writes lines as they come.
pub struct Ndjson {
    out: Destination,
    buffer: Vec<u8>,
}

/// The sink over a destination.
pub fn open(out: Destination) -> Box<dyn Sink> {
    Box::new(Ndjson {
        out,
        buffer: Vec::new(),
    })
}

impl Sink for Ndjson {
    fn line(&mut self, line: &Line) -> io::Result<()> {
        self.buffer.clear();
        serde_json::to_writer(&mut self.buffer, line)?;
        self.buffer.push(b'\n');
        write_whole(&mut self.out, &self.buffer)
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes all of `bytes`, or, in a regular file, nothing. The error names the destination and
/// keeps its kind.
pub fn write_whole(out: &mut Destination, bytes: &[u8]) -> io::Result<()> {
    let mut written = 0;
    while written < bytes.len() {
        let error = match out.file.write(&bytes[written..]) {
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
        let cut = cut_back(&mut out.file, written as u64);
        let rest = match cut {
            Ok(()) => "",
            Err(_) => "; the last line in it is incomplete",
        };
        let text = format!("cannot write to {}: {error}{rest}", out.name);
        return Err(io::Error::new(error.kind(), text));
    }
    Ok(())
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
    use crate::model::{Body, Coverage};
    use crate::sink::reader_gone;
    use std::io::Read;
    use std::os::fd::{FromRawFd, OwnedFd};

    fn line(ts: &str) -> Line {
        let mut coverage = Coverage::default();
        coverage.stamp.ts = ts.to_owned();
        Line::new(Body::Coverage(coverage))
    }

    fn destination(file: File) -> Destination {
        Destination {
            file,
            name: "the file".into(),
            terminal: false,
        }
    }

    #[test]
    fn each_line_is_one_object_and_ends_with_a_newline() {
        let mut file = tempfile::tempfile().unwrap();
        let mut sink = open(destination(file.try_clone().unwrap()));
        sink.line(&line("a")).unwrap();
        sink.line(&line("b\nc")).unwrap();
        sink.finish().unwrap();
        let mut text = String::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_string(&mut text).unwrap();
        let lines: Vec<&str> = text.split_terminator('\n').collect();
        assert_eq!(lines.len(), 2);
        assert!(text.ends_with('\n'));
        for (line, ts) in lines.iter().zip(["a", "b\nc"]) {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(value["v"], 1);
            assert_eq!(value["type"], "coverage");
            assert_eq!(value["ts"], ts);
        }
    }

    #[test]
    fn a_reader_that_left_is_told_apart_from_a_failure() {
        let (reader, writer) = io::pipe().unwrap();
        let mut sink = open(destination(File::from(OwnedFd::from(writer))));
        sink.line(&line("a")).unwrap();
        drop(reader);
        assert!(reader_gone(&sink.line(&line("b")).unwrap_err()));

        let full = File::options().write(true).open("/dev/full").unwrap();
        let error = open(destination(full)).line(&line("a")).unwrap_err();
        assert!(!reader_gone(&error));
        let text = error.to_string();
        assert!(text.starts_with("cannot write to the file: "), "{text}");
        assert!(text.contains("No space left"), "{text}");
    }

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
        let mut out = destination(writer);
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
        write_whole(&mut out, &bytes).unwrap();
        drop(out);
        assert_eq!(drain.join().unwrap(), want);
    }
}
