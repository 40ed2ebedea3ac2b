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

/// Plays `file`. A recording cut short (the recorder was killed, the disk was full) is played up to
/// the cut, which is then said on standard error and in `bye`.
///
/// # Errors
/// It is no recording, or of another version; the output fails.
pub fn run(file: &Path, consumer: &mut dyn Consumer) -> Result<()> {
    let name = file.display();
    let input = File::open(file).with_context(|| format!("cannot read {name}"))?;
    let mut reader = Reader::new(BufReader::new(input)).with_context(|| name.to_string())?;
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
            Ok(None) => break cut(consumer, &name, "it has no end"),
            Err(e @ (ReadError::Cut(_) | ReadError::Damaged(_))) => {
                break cut(consumer, &name, &e.to_string());
            }
            Err(e) => return Err(e).with_context(|| name.to_string()),
        }
    };
    match outcome.and_then(|()| consumer.finish()) {
        Err(e) if !reader_gone(&e) => Err(e).context("writing the output"),
        _ => Ok(()),
    }
}

fn cut(
    consumer: &mut dyn Consumer,
    name: &impl std::fmt::Display,
    why: &str,
) -> std::io::Result<()> {
    tracing::warn!("{name}: {why}; what was read up to there is shown");
    let end = EndFact {
        reason: "end_of_recording".to_owned(),
        exit_code: None,
    };
    consumer.frames(vec![Frame::Fact(Fact::End(end))])
}
