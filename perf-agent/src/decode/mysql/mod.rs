//! MySQL's and MariaDB's client protocol: text and prepared statements, several statements and
//! results, LOCAL INFILE.
//!
//! What an exchange is
//! - One for each statement of a COM_QUERY, and for each COM_STMT_EXECUTE (and MariaDB's bulk execute),
//!   as performance_schema counts them. A CALL is one, whatever results it gives. The statements
//!   of a text after one that failed are `aborted`: the server does not read them.
//! - One for each other command that is answered, as they are round trips too: `(prepare) TEXT`,
//!   `(ping)`, `(init db)` and so on; COM_STMT_FETCH has its statement's text. COM_QUIT, COM_STMT_CLOSE and
//!   COM_STMT_SEND_LONG_DATA are not answered.
//! - A login that fails is an exchange `(connect)`.
//!
//! Errors are `ERRNO SQLSTATE`. After a login that agreed on compression nothing more is read
//! ([`Anomaly::Unsupported`]); what TLS carries is a conversation of its own, which begins with the login.
//!
//! Connections joined late: a statement that was prepared before is named by the columns of its
//! result, else `unseen:ID`. Whether results end as CLIENT_DEPRECATE_EOF has it is told by the first one.
//!
//! Gaps: the protocol goes in turns, so a new command says that the one before was answered. Where a
//! result's end was not captured, its exchange ends with the last byte that passed before that, or with
//! the end of a piece that is the end of a result. If several commands were in flight then (which only
//! MariaDB's pipelining of Prepare and Execute does), they are given up.
//!
//! Memory of one connection: two message beginnings ([`KEPT_REQUEST`], [`KEPT_ANSWER`]) while a packet is
//! open, 24 bytes for each of at most [`MAX_STATEMENTS`] prepared statements, 48 for each command in
//! flight. The packets are read by hand: what is needed is their first bytes, also of packets that are
//! cut off, and crates for the protocol read from a stream they own.

mod answers;
mod detect;
mod requests;
mod session;
#[cfg(test)]
mod tests;
mod wire;

pub use detect::detect;
use session::Session;

use super::framing::Frames;
use super::{Anomaly, Decoder, Direction, Joined, Output};

/// Most bytes of a request that are looked at.
pub const KEPT_REQUEST: usize = 8192;
/// Most bytes of an answer's packet that are looked at.
pub const KEPT_ANSWER: usize = 512;
/// Prepared statements remembered for one connection; of more, some become `unseen`.
pub const MAX_STATEMENTS: usize = 4096;

pub fn decoder(joined: Joined) -> Box<dyn Decoder + Send> {
    Box::new(Mysql::new(joined))
}

struct Mysql {
    requests: Frames,
    answers: Frames,
    /// Bytes were passed over since boundaries were lost.
    skipped: [bool; 2],
    session: Session,
}

impl Mysql {
    fn new(joined: Joined) -> Mysql {
        let mut mysql = Mysql {
            requests: Frames::new(KEPT_REQUEST),
            answers: Frames::new(KEPT_ANSWER),
            skipped: [false; 2],
            session: Session::new(joined),
        };
        if joined == Joined::Late {
            mysql.requests.lose();
            mysql.answers.lose();
        }
        mysql
    }

    fn found(&mut self, direction: Direction, output: &mut Output) {
        if std::mem::take(&mut self.skipped[direction as usize]) {
            output.anomaly(Anomaly::Resynced, 1);
        }
    }

    fn request_bytes(&mut self, at_ns: u64, bytes: &[u8], output: &mut Output) {
        if self.requests.lost() {
            // The first bytes of all may be a header's beginning.
            let short = bytes.len() <= wire::HEADER && self.skipped[0];
            if short || !wire::command_begins(bytes) {
                self.skipped[0] = true;
                return;
            }
            self.found(Direction::Request, output);
            self.requests.reset();
        }
        let strict = !self.session.client_may_continue();
        let lost = self.answers.lost();
        let session = &mut self.session;
        let mut fits = true;
        let taken = self.requests.feed(
            at_ns,
            bytes,
            |b| wire::request_length(b, strict),
            |message| {
                fits = session.request(&message, lost, output);
                if fits {
                    output.decoded(Direction::Request, message.captured as usize);
                }
                fits && !session.opaque()
            },
        );
        if self.session.opaque() {
            return;
        }
        if !fits || taken < bytes.len() {
            output.anomaly(Anomaly::Malformed, 1);
            self.requests.lose();
            self.requests_lost(output);
        }
    }

    fn requests_lost(&mut self, output: &mut Output) {
        self.skipped[0] = true;
        if self.session.requests_lost(output) {
            self.lose_answers(output);
        }
    }

    fn lose_answers(&mut self, output: &mut Output) {
        self.answers.lose();
        self.skipped[1] = true;
        self.session.answers_lost(output);
    }

    fn answer_bytes(&mut self, at_ns: u64, bytes: &[u8], output: &mut Output) {
        self.session.answer_passed(at_ns);
        if self.answers.lost() {
            if !self.session.answer_begins(bytes) {
                self.skipped[1] = true;
                let used = self.session.result_ends(at_ns, bytes, output);
                output.decoded(Direction::Response, used);
                return;
            }
            self.found(Direction::Response, output);
            self.answers.reset();
        }
        let session = &mut self.session;
        let mut fits = true;
        self.answers.feed(at_ns, bytes, wire::length, |message| {
            fits = session.answer(&message, output);
            if fits {
                output.decoded(Direction::Response, message.captured as usize);
            }
            fits && !session.opaque()
        });
        if !fits {
            output.anomaly(Anomaly::Malformed, 1);
            self.lose_answers(output);
        }
    }

    /// Bytes held for this connection.
    #[cfg(test)]
    fn held_bytes(&self) -> usize {
        self.requests.held_bytes() + self.answers.held_bytes() + self.session.held_bytes()
    }
}

impl Decoder for Mysql {
    fn bytes(&mut self, direction: Direction, at_ns: u64, bytes: &[u8], output: &mut Output) {
        if self.session.opaque() || bytes.is_empty() {
            return;
        }
        match direction {
            Direction::Request => self.request_bytes(at_ns, bytes, output),
            Direction::Response => self.answer_bytes(at_ns, bytes, output),
        }
    }

    fn gap(&mut self, direction: Direction, at_ns: u64, count: u64, output: &mut Output) {
        if self.session.opaque() || count == 0 {
            return;
        }
        let (requests_lost, answers_lost) = (self.requests.lost(), self.answers.lost());
        let session = &mut self.session;
        let mut fits = true;
        match direction {
            Direction::Request => {
                self.requests.gap(at_ns, count, |message| {
                    fits = session.request(&message, answers_lost, output);
                    output.decoded(direction, message.captured as usize);
                    true
                });
                if !requests_lost && (self.requests.lost() || !fits) {
                    self.requests.lose();
                    self.requests_lost(output);
                }
            }
            Direction::Response => {
                session.answer_passed(at_ns);
                self.answers.gap(at_ns, count, |message| {
                    fits = session.answer(&message, output);
                    output.decoded(direction, message.captured as usize);
                    true
                });
                if !answers_lost && (self.answers.lost() || !fits) {
                    self.lose_answers(output);
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

    /// COM_STMT_CLOSE and COM_STMT_SEND_LONG_DATA are never answered.
    fn is_at_boundary(&self) -> bool {
        !self.is_in_flight() && self.requests.is_at_boundary()
    }

    fn encrypted(&self) -> bool {
        self.session.encrypted
    }

    fn decrypted(&mut self) {
        self.session.encrypted = false;
    }
}
