//! Where time goes by call stack, over a whole trace: what `perf-agent profile` prints.
//!
//! A consumer of frames like the lines are, so a recording gives the same bytes as the trace it was
//! made from. [`stacks`] sums what each window's report says, and makes it sum to the ledger; a
//! format turns the sums into bytes. A format is one file here and one line in [`FORMATS`].

mod coverage;
mod flamegraph;
mod folded;
mod pprof;
mod speedscope;
mod stacks;
mod tree;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod recordings;

use std::{
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    aggregate::Pipeline,
    cli::{ProfileOutputs, Shown},
    drain::{Fact, Frame},
    sink::{Destination, reader_gone},
    trace::Consumer,
};

use stacks::Stacks;

/// Writes a profile in some format.
struct Format {
    /// Its option.
    name: &'static str,
    path: fn(&ProfileOutputs) -> Option<&PathBuf>,
    write: fn(&Stacks) -> io::Result<Vec<u8>>,
}

/// Every format that goes to a file. Text is what there is without one.
const FORMATS: &[Format] = &[
    Format {
        name: "flamegraph",
        path: |o| o.flamegraph.as_ref(),
        write: flamegraph::write,
    },
    Format {
        name: "folded",
        path: |o| o.folded.as_ref(),
        write: folded::write,
    },
    Format {
        name: "pprof",
        path: |o| o.pprof.as_ref(),
        write: pprof::write,
    },
    Format {
        name: "speedscope",
        path: |o| o.speedscope.as_ref(),
        write: speedscope::write,
    },
];

impl ProfileOutputs {
    /// Everything that was named.
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        FORMATS.iter().filter_map(|f| (f.path)(self))
    }
}

/// Sums a trace, and writes it out at its end.
pub struct Profiler {
    pipeline: Pipeline,
    stacks: Stacks,
    outputs: Vec<(&'static Format, Destination)>,
    /// Where the text goes, if nothing else is asked for.
    text: Option<Destination>,
}

impl Profiler {
    /// Opens the outputs.
    ///
    /// # Errors
    /// One cannot be written to, or two are the same.
    pub fn new(shown: Shown, outputs: &ProfileOutputs) -> Result<Profiler> {
        let stdout = || Destination::stdout().context("standard output is not open");
        let mut paths: Vec<&PathBuf> = outputs.paths().collect();
        paths.sort();
        if let Some(twice) = paths.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!("two outputs go to {}", twice[0].display());
        }
        let mut open = Vec::new();
        for format in FORMATS {
            let Some(path) = (format.path)(outputs) else {
                continue;
            };
            let destination = match path == Path::new("-") {
                true => stdout()?,
                false => Destination::create(path)
                    .with_context(|| format!("cannot write to {}", path.display()))?,
            };
            open.push((format, destination));
        }
        Ok(Profiler {
            pipeline: Pipeline::of_every_site(),
            stacks: Stacks::new(shown),
            text: match open.is_empty() {
                true => Some(stdout()?),
                false => None,
            },
            outputs: open,
        })
    }
}

impl Consumer for Profiler {
    fn frames(&mut self, frames: Vec<Frame>) -> io::Result<()> {
        for frame in &frames {
            if let Frame::Fact(Fact::Start(start)) = frame {
                self.stacks.start(start);
            }
            if let Some(report) = self.pipeline.report_of(frame) {
                self.stacks.window(report);
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        if let Some(text) = &mut self.text {
            let colour = text.terminal && std::env::var_os("NO_COLOR").is_none();
            return text.write_whole(tree::text(&self.stacks).print(colour).as_bytes());
        }
        for (format, destination) in &mut self.outputs {
            let bytes = (format.write)(&self.stacks)
                .map_err(|e| io::Error::other(format!("making {}: {e}", format.name)))?;
            match destination.write_whole(&bytes) {
                // The other outputs are still wanted.
                Err(e) if reader_gone(&e) => {}
                outcome => outcome?,
            }
        }
        // Text has it as its last lines; here it is a diagnostic.
        eprintln!("{}", coverage::text(&self.stacks));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_is_registered() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/profile");
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            if path.is_dir()
                || [
                    "coverage",
                    "fixtures",
                    "mod",
                    "recordings",
                    "stacks",
                    "tree",
                ]
                .contains(&name.as_str())
            {
                continue;
            }
            assert!(
                FORMATS.iter().any(|f| f.name == name),
                "add to FORMATS in profile/mod.rs: Format {{ name: \"{name}\", path: |o| \
                 o.{name}.as_ref(), write: {name}::write }},"
            );
        }
    }

    #[test]
    fn one_file_cannot_be_two_outputs() {
        let shown = fixtures::shown(crate::cli::Mode::Wall, false);
        let outputs = ProfileOutputs {
            folded: Some("-".into()),
            pprof: Some("-".into()),
            ..ProfileOutputs::default()
        };
        let error = Profiler::new(shown, &outputs).err().unwrap();
        assert_eq!(error.to_string(), "two outputs go to -");
    }
}
