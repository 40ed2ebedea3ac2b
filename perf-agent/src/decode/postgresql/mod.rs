//! PostgreSQL's protocol 3: simple and extended queries, pipelines, COPY, function calls.
//!
//! What an exchange is
//! - A simple Query: one for each of its statements, as pg_stat_statements counts them. Those after
//!   a statement that failed are `aborted`; a syntax error is one exchange of the whole text.
//! - The extended protocol: one for each Execute, with the text of the Parse behind its portal. It
//!   begins with the first message that was sent for it alone: Parse, else Bind, else Execute.
//!   A Parse, Bind or Describe that fails is the exchange of its statement, Execute or not.
//! - In a pipeline the server passes over what follows an error up to the next Sync. Those
//!   Executes are exchanges with the error `aborted` and no latency: nothing answered them.
//! - A connection that is refused is an exchange `(connect)`, an error at Sync (a deferred
//!   constraint) one of `(sync)`.
//!
//! Connections joined late: nothing is known of what is in flight. Up to the first ReadyForQuery,
//! which answers one Sync and all before it, answers are held back and then paired from the end of
//! the batch. A statement that was prepared before is named by the columns its Describe tells, else
//! `unseen:NAME` and the command its completion tells.
//!
//! Gaps: after one over a message boundary, answers are searched for the next ReadyForQuery, requests
//! for a piece that begins with a message. What ReadyForQuery can then not tell apart (several
//! Syncs in flight) is given up, and pairing starts again with a request that is sent after the
//! server said it is ready, by a client that was seen to send before that only after a second of
//! silence. A client that always waited and goes on was answered: where the end of that was not
//! captured, the exchange ends with the last piece that passed.
//!
//! Memory of one connection: two message beginnings ([`KEPT_REQUEST`], [`KEPT_ANSWER`]) while a
//! message is open, 24 bytes for each of at most [`MAX_STATEMENTS`] prepared statements, the name of one
//! of them, 48 bytes for each message in flight (at most [`MAX_QUEUE`]). The messages are read by hand: what is needed of
//! each is a name or a code, and crates for the protocol build owned values or read whole messages only.

mod answers;
mod detect;
mod requests;
mod session;
#[cfg(test)]
mod tests;
mod wire;

pub use detect::detect;
use session::Session;
use wire::{request_length, response_length};

use super::framing::Frames;
use super::{Anomaly, Decoder, Direction, Joined, Output};

/// Most bytes of a request that are looked at.
pub const KEPT_REQUEST: usize = 8192;
/// Most bytes of an answer that are looked at.
pub const KEPT_ANSWER: usize = 1024;
/// Prepared statements remembered for one connection; of more, some become `unseen`.
pub const MAX_STATEMENTS: usize = 4096;
/// Messages in flight.
pub const MAX_QUEUE: usize = 65536;
/// End of what was passed over in search of ReadyForQuery, for the CommandComplete before it.
const MAX_TAIL: usize = 64;

pub fn decoder(joined: Joined) -> Box<dyn Decoder + Send> {
    Box::new(Postgresql::new(joined))
}

struct Postgresql {
    requests: Frames,
    answers: Frames,
    /// Something was seen of the answers.
    answers_seen: bool,
    /// Where boundaries of answers are lost: the last bytes that passed.
    tail: Vec<u8>,
    /// Bytes were passed over since boundaries were lost.
    skipped: [bool; 2],
    session: Session,
}

impl Postgresql {
    fn new(joined: Joined) -> Postgresql {
        let mut postgresql = Postgresql {
            requests: Frames::new(KEPT_REQUEST),
            answers: Frames::new(KEPT_ANSWER),
            answers_seen: false,
            tail: Vec::new(),
            skipped: [false; 2],
            session: Session::new(joined),
        };
        if joined == Joined::Late {
            postgresql.requests.lose();
            postgresql.answers.lose();
        }
        postgresql
    }

    fn request_bytes(&mut self, at_ns: u64, mut bytes: &[u8], output: &mut Output) {
        if self.requests.lost() {
            let Some(at) = wire::request_boundary(bytes) else {
                self.skipped[0] = true;
                self.session.requests_unseen();
                return;
            };
            self.found(Direction::Request, at > 0, output);
            self.requests.reset();
            bytes = &bytes[at..];
        }
        let session = &mut self.session;
        let startup = session.starting;
        let taken = self.requests.feed(
            at_ns,
            bytes,
            |b| request_length(b, startup),
            |message| {
                session.request(&message, output);
                output.decoded(Direction::Request, message.captured as usize);
                true
            },
        );
        if taken < bytes.len() {
            output.anomaly(Anomaly::Malformed, 1);
            self.skipped[0] = true;
            self.session.requests_lost(output);
        }
    }

    fn found(&mut self, direction: Direction, skipped: bool, output: &mut Output) {
        if std::mem::take(&mut self.skipped[direction as usize]) || skipped {
            output.anomaly(Anomaly::Resynced, 1);
        }
    }

    fn answer_bytes(&mut self, at_ns: u64, mut bytes: &[u8], output: &mut Output) {
        self.session.answer_passed(at_ns);
        while !bytes.is_empty() && !self.session.encrypted {
            if self.answers.lost() {
                let Some(rest) = self.find_answers(at_ns, bytes, output) else {
                    return;
                };
                bytes = &bytes[bytes.len() - rest..];
            }
            self.answers_seen = true;
            let session = &mut self.session;
            let one_byte = session.encryption_asked;
            let taken = self.answers.feed(
                at_ns,
                bytes,
                |b| response_length(b, one_byte),
                |message| {
                    session.answer(&message, output);
                    output.decoded(Direction::Response, message.captured as usize);
                    // The byte that answers an SSLRequest has no header; what follows it has.
                    !one_byte
                },
            );
            bytes = &bytes[taken..];
            if self.answers.lost() {
                output.anomaly(Anomaly::Malformed, 1);
                self.session.answers_lost(output);
            }
        }
    }

    /// The next boundary of answers: how many of the bytes are behind it.
    fn find_answers(&mut self, at_ns: u64, bytes: &[u8], output: &mut Output) -> Option<usize> {
        let restarted = std::mem::take(&mut self.session.restarted);
        if (restarted || !self.answers_seen) && wire::answers_begin(bytes) {
            self.found(Direction::Response, false, output);
            self.tail = Vec::new();
            self.answers.reset();
            return Some(bytes.len());
        }
        if restarted {
            self.session.answers_lost(output);
        }
        self.answers_seen = true;
        self.skipped[1] = true;
        self.tail.extend_from_slice(bytes);
        let Some(at) = wire::find_ready(&self.tail) else {
            let cut = self.tail.len().saturating_sub(MAX_TAIL);
            self.tail.drain(..cut);
            self.tail.shrink_to(MAX_TAIL);
            return None;
        };
        let rest = self.tail.len() - at - wire::READY_LEN;
        self.found(Direction::Response, false, output);
        let complete = wire::complete_before(&self.tail[..at]);
        let from = complete.as_ref().map_or(at, |c| c.start);
        // Some of it may have come with earlier pieces, which were not counted either.
        output.decoded(Direction::Response, at + wire::READY_LEN - from);
        if let Some(range) = complete {
            self.session.complete(at_ns, &self.tail[range], output);
        }
        let status = self.tail[at + wire::READY_LEN - 1];
        self.session.ready(at_ns, status, output);
        self.tail = Vec::new();
        self.answers.reset();
        Some(rest)
    }

    /// Bytes held for this connection.
    #[cfg(test)]
    fn held_bytes(&self) -> usize {
        self.requests.held_bytes()
            + self.answers.held_bytes()
            + self.tail.capacity()
            + self.session.held_bytes()
    }
}

impl Decoder for Postgresql {
    fn bytes(&mut self, direction: Direction, at_ns: u64, bytes: &[u8], output: &mut Output) {
        if self.session.encrypted {
            return;
        }
        match direction {
            Direction::Request => self.request_bytes(at_ns, bytes, output),
            Direction::Response => self.answer_bytes(at_ns, bytes, output),
        }
    }

    fn gap(&mut self, direction: Direction, at_ns: u64, count: u64, output: &mut Output) {
        if self.session.encrypted || count == 0 {
            return;
        }
        let session = &mut self.session;
        match direction {
            Direction::Request => {
                let lost = self.requests.lost();
                if lost {
                    session.requests_unseen();
                }
                self.requests.gap(at_ns, count, |message| {
                    session.request(&message, output);
                    output.decoded(direction, message.captured as usize);
                    true
                });
                if self.requests.lost() && !lost {
                    self.skipped[0] = true;
                    self.session.requests_lost(output);
                }
            }
            Direction::Response => {
                session.answer_passed(at_ns);
                let lost = self.answers.lost();
                if lost && session.restarted {
                    session.answers_lost(output);
                }
                self.answers.gap(at_ns, count, |message| {
                    session.answer(&message, output);
                    output.decoded(direction, message.captured as usize);
                    true
                });
                self.tail.clear();
                if self.answers.lost() {
                    self.answers_seen = true;
                    self.skipped[1] = true;
                }
                if self.answers.lost() && !lost {
                    self.session.answers_lost(output);
                }
            }
        }
    }

    fn end(&mut self, output: &mut Output) {
        self.session.end(output);
    }

    fn in_flight(&self) -> usize {
        self.session.in_flight()
    }

    fn is_in_flight(&self) -> bool {
        self.session.is_in_flight()
    }

    fn encrypted(&self) -> bool {
        self.session.encrypted
    }

    fn decrypted(&mut self) {
        self.session.encrypted = false;
    }
}
