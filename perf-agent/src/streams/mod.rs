//! Readers beside standard output and the file: a socket for anybody who asks (`--listen`), and
//! processes that are given the findings of one delegate (`--exec`).
//!
//! Each reader has a bounded [`queue`] and a thread, so that none of them holds up the trace. What was
//! dropped is counted in `coverage` and told to the reader at the place where it is missing.

mod exec;
mod queue;
mod socket;

use std::{
    borrow::Cow,
    io,
    time::{Duration, Instant},
};

use anyhow::Result;

use self::{exec::Exec, socket::Socket};
use crate::{
    cli::StreamOptions,
    model::{Body, Line, StreamCoverage},
    sink::{Sink, reader_gone},
};

/// Bytes of lines a reader may be behind: a minute of a process with many threads.
const QUEUE_BYTES: usize = 4 << 20;
/// How long a replay, which nothing waits for, waits for a reader that is behind.
const REPLAY_PATIENCE: Duration = Duration::from_secs(2);
/// How long readers have at the end to take what is left, and commands to finish.
const AT_THE_END: Duration = Duration::from_secs(5);

/// What a reader is granted.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    queue_bytes: usize,
    /// How long a line waits for room.
    patience: Duration,
}

/// All readers; the sink of standard output and the file is one of them.
pub struct Streams {
    /// Gone where its reader left.
    inner: Option<Box<dyn Sink>>,
    socket: Option<Socket>,
    execs: Vec<Exec>,
    /// Sums at the coverage before.
    before: Vec<StreamCoverage>,
    closed: bool,
}

/// Opens the readers that are asked for beside `inner`, or gives that back where there are none.
///
/// # Errors
/// A socket or a thread cannot be made.
pub fn open(inner: Box<dyn Sink>, options: &StreamOptions, live: bool) -> Result<Box<dyn Sink>> {
    if options.listen.is_none() && options.execs.is_empty() {
        return Ok(inner);
    }
    let limits = Limits {
        queue_bytes: options.queue_bytes.unwrap_or(QUEUE_BYTES),
        patience: if live {
            Duration::ZERO
        } else {
            REPLAY_PATIENCE
        },
    };
    let mut streams = Streams {
        inner: Some(inner),
        socket: None,
        execs: Vec::new(),
        before: Vec::new(),
        closed: false,
    };
    if let Some(path) = &options.listen {
        streams.socket = Some(Socket::open(path, limits)?);
    }
    for (delegate, command) in &options.execs {
        let exec = Exec::open(delegate, command, limits)?;
        streams.execs.push(exec);
    }
    Ok(Box::new(streams))
}

impl Streams {
    /// Sums since the start.
    fn sums(&self) -> Vec<StreamCoverage> {
        let sockets = self.socket.iter().map(Socket::coverage);
        sockets
            .chain(self.execs.iter().map(Exec::coverage))
            .collect()
    }

    /// What came since the last time.
    fn since(&mut self) -> Vec<StreamCoverage> {
        let now = self.sums();
        let mut rows = now.clone();
        for (row, before) in rows.iter_mut().zip(&self.before) {
            row.refused = row.refused.saturating_sub(before.refused);
            row.lines = row.lines.saturating_sub(before.lines);
            row.dropped = row.dropped.saturating_sub(before.dropped);
            row.restarts = row.restarts.saturating_sub(before.restarts);
        }
        self.before = now;
        rows
    }

    /// A line with what is known of the streams in it.
    fn complete<'a>(&mut self, line: &'a Line) -> Cow<'a, Line> {
        match &line.body {
            Body::Coverage(_) | Body::Bye(_) => {}
            _ => return Cow::Borrowed(line),
        }
        let mut line = line.clone();
        match &mut line.body {
            Body::Coverage(coverage) => coverage.streams = self.since(),
            Body::Bye(bye) => bye.streams = self.sums(),
            _ => {}
        }
        Cow::Owned(line)
    }

    /// The end of every stream.
    fn close(&mut self) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        self.socket.iter().for_each(Socket::close);
        self.execs.iter().for_each(Exec::close);
        let deadline = Instant::now() + AT_THE_END;
        if let Some(socket) = &self.socket {
            socket.wait(deadline);
        }
        for exec in &self.execs {
            exec.wait(deadline);
        }
    }

    /// Standard output that nobody reads any more does not end the other streams.
    fn inner(&mut self, feed: impl Fn(&mut dyn Sink) -> io::Result<()>) -> io::Result<()> {
        let Some(inner) = &mut self.inner else {
            return Ok(());
        };
        match feed(inner.as_mut()) {
            Err(e) if reader_gone(&e) => self.inner = None,
            other => return other,
        }
        Ok(())
    }
}

impl Sink for Streams {
    fn line(&mut self, line: &Line) -> io::Result<()> {
        let line = self.complete(line);
        let text = queue::text(&line)?;
        if let Some(socket) = &self.socket {
            socket.line(&line, &text);
        }
        for exec in &self.execs {
            exec.line(&line, &text);
        }
        self.inner(|inner| inner.line(&line))
    }

    fn finish(&mut self) -> io::Result<()> {
        let result = self.inner(|inner| inner.finish());
        self.close();
        result
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests;
