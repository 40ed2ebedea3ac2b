//! Plays a recording through the same pipeline as a live trace. Needs no privilege.

use std::{fs::File, io::BufReader, path::Path};

use anyhow::{Context as _, Result};

use crate::{
    drain::{
        EndFact, Fact, Frame,
        codec::{ReadError, Reader},
    },
    sink::reader_gone,
    trace::Consumer,
};

/// A recording whose header has been read.
pub struct Recording {
    name: String,
    reader: Reader<BufReader<File>>,
}

/// Opens a recording.
///
/// # Errors
/// It cannot be read; it is no recording, or of another version.
pub fn open(file: &Path) -> Result<Recording> {
    let name = file.display().to_string();
    let input = File::open(file).with_context(|| format!("cannot read {name}"))?;
    let reader = Reader::new(BufReader::new(input)).with_context(|| name.clone())?;
    Ok(Recording { name, reader })
}

impl Recording {
    /// Plays it. One cut short (the recorder was killed, the disk was full) is played up to the cut,
    /// which is then said on standard error and in `bye`.
    ///
    /// # Errors
    /// The output fails.
    pub fn play(self, consumer: &mut dyn Consumer) -> Result<()> {
        play(self.reader, &self.name, consumer)
    }
}

fn play(
    mut reader: Reader<BufReader<File>>,
    name: &str,
    consumer: &mut dyn Consumer,
) -> Result<()> {
    let mut ended = false;
    let outcome = loop {
        match reader.frame() {
            Ok(Some(frame)) => {
                ended = matches!(frame, Frame::Fact(Fact::End(_)));
                if let Err(e) = consumer.frames(vec![frame]) {
                    break Err(e);
                }
            }
            Ok(None) if ended => break Ok(()),
            Ok(None) => break cut(consumer, name, "it has no end"),
            Err(e @ (ReadError::Cut(_) | ReadError::Damaged(_))) => {
                break cut(consumer, name, &e.to_string());
            }
            Err(e) => return Err(e).context(name.to_owned()),
        }
    };
    match outcome.and_then(|()| consumer.finish()) {
        Err(e) if !reader_gone(&e) => Err(e).context("writing the output"),
        _ => Ok(()),
    }
}

fn cut(consumer: &mut dyn Consumer, name: &str, why: &str) -> std::io::Result<()> {
    tracing::warn!("{name}: {why}; what was read up to there is shown");
    let end = EndFact {
        reason: "end_of_recording".to_owned(),
        exit_code: None,
    };
    consumer.frames(vec![Frame::Fact(Fact::End(end))])
}
