//! Where lines go: NDJSON for programs, a summary for people.
//!
//! A sink is fed every [`Line`] in order and told once when there are no more. A format is one
//! file here and one line in [`SINKS`].

mod destination;
mod ndjson;
mod rotation;
mod summary;
pub(crate) mod text;
pub mod units;

use std::io;
use std::path::Path;

use anyhow::Context;

use crate::cli::{Format, OutputOptions};
use crate::model::Line;

pub use destination::Destination;
pub use rotation::{Rotation, parse_size};

/// Makes a sink over a destination.
pub type Open = fn(Destination) -> Box<dyn Sink>;

/// Every format, by name: how a sink of it is made.
pub const SINKS: &[(&str, Open)] = &[("ndjson", ndjson::open), ("summary", summary::open)];

/// Takes the lines of a trace.
pub trait Sink: Send {
    /// Takes one line. Where this fails no part of the line is left in a regular file;
    /// [`reader_gone`] tells whether the failure is the reader having left, which is no error.
    fn line(&mut self, line: &Line) -> io::Result<()>;

    /// No more lines will come: writes what is still held back.
    fn finish(&mut self) -> io::Result<()>;
}

/// Whether a write failed only because nobody reads any more. The trace then ends as a success.
pub fn reader_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}

/// Opens what the options ask for. A file gets NDJSON; standard output gets the summary on a
/// terminal (or where asked for), NDJSON in a pipe, and nothing where a file has the lines already.
pub fn open(options: &OutputOptions) -> anyhow::Result<Box<dyn Sink>> {
    let stdout = Destination::stdout().context("standard output is not open")?;
    let (on_stdout, in_file) = plan(options, stdout.terminal);
    let mut sinks = Vec::new();
    if let Some(path) = in_file {
        let cannot = || format!("cannot write to {}", path.display());
        let file = Destination::create(path).with_context(cannot)?;
        sinks.push(match options.rotate {
            Some(rotation) => rotation::open(file, path, rotation).with_context(cannot)?,
            None => make("ndjson", file)?,
        });
    }
    if let Some(name) = on_stdout {
        sinks.push(make(name, stdout)?);
    }
    Ok(match sinks.len() {
        1 => sinks.remove(0),
        _ => Box::new(Tee { sinks }),
    })
}

/// The sink for standard output by name, and the file for NDJSON.
fn plan(options: &OutputOptions, terminal: bool) -> (Option<&'static str>, Option<&Path>) {
    let dash = Path::new("-");
    let to_stdout = options.output.as_deref() == Some(dash);
    let file = options.output.as_deref().filter(|path| *path != dash);
    let on_stdout = match (options.format, file) {
        (Format::Summary, _) => Some("summary"),
        (Format::Ndjson, Some(_)) => None,
        (Format::Ndjson, None) => Some("ndjson"),
        (Format::Auto, _) if terminal && !to_stdout => Some("summary"),
        (Format::Auto, None) => Some("ndjson"),
        (Format::Auto, Some(_)) => None,
    };
    (on_stdout, file)
}

fn make(name: &str, destination: Destination) -> anyhow::Result<Box<dyn Sink>> {
    SINKS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, open)| open(destination))
        .with_context(|| format!("no sink is called {name}"))
}

/// Feeds several sinks. One whose reader left is dropped; the others go on.
struct Tee {
    sinks: Vec<Box<dyn Sink>>,
}

impl Tee {
    fn each(&mut self, mut feed: impl FnMut(&mut dyn Sink) -> io::Result<()>) -> io::Result<()> {
        let mut gone = None;
        let mut failed = None;
        self.sinks.retain_mut(|sink| match feed(sink.as_mut()) {
            Ok(()) => true,
            Err(error) if reader_gone(&error) => {
                gone = Some(error);
                false
            }
            Err(error) => {
                failed.get_or_insert(error);
                true
            }
        });
        match (failed, gone) {
            (Some(error), _) => Err(error),
            (None, Some(error)) if self.sinks.is_empty() => Err(error),
            _ => Ok(()),
        }
    }
}

impl Sink for Tee {
    fn line(&mut self, line: &Line) -> io::Result<()> {
        self.each(|sink| sink.line(line))
    }

    fn finish(&mut self) -> io::Result<()> {
        self.each(|sink| sink.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Body, Bye};
    use std::path::PathBuf;
    use std::sync::{Arc, Mutex};

    #[test]
    fn every_sink_is_registered() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/sink");
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            if ["destination", "mod", "rotation", "text", "units"].contains(&name.as_str()) {
                continue;
            }
            assert!(
                SINKS.iter().any(|(known, _)| *known == name),
                "add to SINKS in sink/mod.rs: (\"{name}\", {name}::open),"
            );
        }
    }

    #[test]
    fn a_file_gets_the_lines_and_standard_output_what_is_left() {
        let file = || Some(PathBuf::from("f.ndjson"));
        let dash = || Some(PathBuf::from("-"));
        for (format, output, terminal, want_stdout, want_file) in [
            (Format::Auto, None, true, Some("summary"), false),
            (Format::Auto, None, false, Some("ndjson"), false),
            (Format::Auto, file(), true, Some("summary"), true),
            (Format::Auto, file(), false, None, true),
            (Format::Auto, dash(), true, Some("ndjson"), false),
            (Format::Auto, dash(), false, Some("ndjson"), false),
            (Format::Ndjson, None, true, Some("ndjson"), false),
            (Format::Ndjson, file(), true, None, true),
            (Format::Summary, None, false, Some("summary"), false),
            (Format::Summary, file(), false, Some("summary"), true),
        ] {
            let options = OutputOptions {
                format,
                output: output.clone(),
                rotate: None,
            };
            let (on_stdout, in_file) = plan(&options, terminal);
            assert_eq!(
                (on_stdout, in_file.is_some()),
                (want_stdout, want_file),
                "{format:?} {output:?} terminal: {terminal}"
            );
        }
    }

    /// Counts lines; fails from the `gone_after`th on as a closed pipe does.
    struct Counter {
        lines: Arc<Mutex<u32>>,
        gone_after: u32,
    }

    impl Sink for Counter {
        fn line(&mut self, _: &Line) -> io::Result<()> {
            let mut lines = self.lines.lock().unwrap();
            if *lines == self.gone_after {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            *lines += 1;
            Ok(())
        }

        fn finish(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_left_does_not_stop_the_other_sink() {
        let (file, pipe) = (Arc::new(Mutex::new(0)), Arc::new(Mutex::new(0)));
        let counter = |lines: &Arc<Mutex<u32>>, gone_after| -> Box<dyn Sink> {
            Box::new(Counter {
                lines: lines.clone(),
                gone_after,
            })
        };
        let mut tee = Tee {
            sinks: vec![counter(&file, 3), counter(&pipe, 1)],
        };
        let line = Line::new(Body::Bye(Bye {
            stamp: Default::default(),
            reason: "duration".into(),
            windows: 0,
            lifetime_ns: 0,
            residual_ns: 0,
            generated: 0,
            received: 0,
            lost: Default::default(),
            streams: Vec::new(),
            exit_code: None,
        }));
        for _ in 0..3 {
            tee.line(&line).unwrap();
        }
        assert_eq!((*file.lock().unwrap(), *pipe.lock().unwrap()), (3, 1));
        assert!(reader_gone(&tee.line(&line).unwrap_err()));
    }
}
