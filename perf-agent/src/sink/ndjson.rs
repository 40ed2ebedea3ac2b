//! NDJSON: one object a line, whole lines only.
//!
//! Each line is serialized first and then handed to the kernel in one piece.

use std::io;

use super::{Destination, Sink};
use crate::model::Line;

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
        self.out.write_whole(&self.buffer)
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Body, Coverage};
    use crate::sink::reader_gone;
    use std::fs::File;
    use std::io::{Read, Seek, SeekFrom};
    use std::os::fd::OwnedFd;

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
}
