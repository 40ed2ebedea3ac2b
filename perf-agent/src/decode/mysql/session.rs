//! What is in flight, and what the session remembers.

use std::collections::BTreeMap;

use super::super::sql::Syntax;
use super::super::{Anomaly, Joined, Outcome, Output, Outstanding, TextId, Transaction};
use super::MAX_STATEMENTS;
use super::wire::{self, HEADER, number, status};

/// Commands in flight.
const MAX_COMMANDS: usize = 16384;

/// How a command is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// By more questions, then OK or an error.
    Login,
    ChangeUser,
    /// By results.
    Query,
    Execute,
    Prepare,
    /// By rows.
    Fetch,
    /// By column definitions and their end.
    FieldList,
    /// By a single packet.
    Single,
    /// By events without end.
    Binlog,
}

#[derive(Clone, Copy, Debug)]
pub struct Command {
    pub kind: Kind,
    /// A further statement of the same text.
    pub follows: bool,
    /// A procedure: its results are followed by an OK of its own.
    pub call: bool,
    /// The last statement of a text that was cut: more may follow it.
    pub unending: bool,
    /// Sequence number of the answer's first packet, if that is known.
    pub answer: Option<u8>,
    /// Of a prepared statement; of one prepared unseen until its columns are known.
    pub statement: u32,
    pub unseen: bool,
    /// What COM_STMT_PREPARE prepares.
    pub prepares: Option<Statement>,
}

impl Command {
    pub fn new(kind: Kind) -> Command {
        Command {
            kind,
            follows: false,
            call: false,
            unending: false,
            answer: Some(1),
            statement: 0,
            unseen: false,
            prepares: None,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Statement {
    pub text: TextId,
    pub call: bool,
    pub unseen: bool,
}

/// How far the answer to the next command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    First,
    /// Column definitions of a result, then the end of them.
    Columns {
        left: u64,
    },
    Rows,
    /// Definitions of a statement's parameters and columns.
    Prepared {
        parameters: u64,
        columns: u64,
        end: bool,
    },
}

pub struct Session {
    /// The server speaks first.
    pub greeting: bool,
    /// The login packet comes next.
    pub login: bool,
    pub encrypted: bool,
    pub compressed: bool,
    /// What the server offers.
    pub offered: u32,
    /// What was agreed on; nothing is known of it on a connection joined late.
    pub agreed: Option<u32>,
    pub deprecate_eof: Option<bool>,
    pub syntax: Syntax,
    pub queue: Outstanding<Command>,
    pub phase: Phase,
    /// Sequence number of the answer's next packet.
    pub sequence: Option<u8>,
    /// An EOF packet with this number may still belong to the answer before.
    pub late_eof: Option<u8>,
    /// The last packet of each direction is continued by the next.
    pub continued: [bool; 2],
    /// The server asked for a file; the client sends it up to an empty packet.
    pub infile: bool,
    pub statements: BTreeMap<u32, Statement>,
    /// The statement that was prepared last, for MariaDB's Execute of "the last one".
    pub prepared: Option<Statement>,
    /// Columns that name a statement prepared unseen.
    pub columns: String,
    /// When the last byte of an answer passed.
    passed_ns: u64,
}

impl Session {
    pub fn new(joined: Joined) -> Session {
        let start = joined == Joined::AtStart;
        Session {
            greeting: start,
            login: start,
            encrypted: false,
            compressed: false,
            offered: u32::MAX,
            agreed: None,
            deprecate_eof: None,
            syntax: Syntax::MYSQL,
            queue: Outstanding::default(),
            phase: Phase::First,
            sequence: None,
            late_eof: None,
            continued: [false; 2],
            infile: false,
            statements: BTreeMap::new(),
            prepared: None,
            columns: String::new(),
            passed_ns: 0,
        }
    }

    /// Nothing more can be read.
    pub fn opaque(&self) -> bool {
        self.encrypted || self.compressed
    }

    /// A packet of the client may be something else than a command.
    pub fn client_may_continue(&self) -> bool {
        self.login || self.infile || self.continued[0] || self.authenticating()
    }

    pub fn authenticating(&self) -> bool {
        let next = self.queue.next().map(|c| c.kind);
        matches!(next, Some(Kind::Login | Kind::ChangeUser))
    }

    pub fn in_flight(&self) -> usize {
        let login = self.queue.next().is_some_and(|c| c.kind == Kind::Login);
        self.queue.len() - usize::from(login)
    }

    pub fn ask(&mut self, text: TextId, started_ns: u64, command: Command, output: &mut Output) {
        if self.queue.len() >= MAX_COMMANDS {
            output.anomaly(Anomaly::QueueFull, 1);
            self.give_up(output);
        }
        self.queue.ask(text, started_ns, command, output);
    }

    pub fn remember(&mut self, id: u32, statement: Statement) {
        if self.statements.len() >= MAX_STATEMENTS && !self.statements.contains_key(&id) {
            self.statements.pop_first();
        }
        self.statements.insert(id, statement);
    }

    pub fn answer_passed(&mut self, at_ns: u64) {
        self.passed_ns = at_ns;
    }

    /// A command comes while boundaries of answers are lost: the one before was answered, unseen.
    pub fn answered_unseen(&mut self, output: &mut Output) {
        if self.queue.len() == 1 && self.queue.has_begun() {
            self.answer_exchange(self.passed_ns, None, output);
        } else {
            self.give_up(output);
        }
        self.phase = Phase::First;
    }

    /// The next command's exchange ends; a login that went well is none.
    pub fn answer_exchange(&mut self, at_ns: u64, error: Option<TextId>, output: &mut Output) {
        let login = self.queue.next().is_some_and(|c| c.kind == Kind::Login);
        if login && error.is_none() {
            self.queue.drop_next();
        } else {
            let outcome = Outcome {
                error,
                ..Outcome::default()
            };
            self.queue.answer(at_ns, outcome, output);
        }
    }

    /// A result or a command's only answer ended.
    pub fn ended(
        &mut self,
        at_ns: u64,
        flags: u16,
        error: Option<TextId>,
        rows: bool,
        output: &mut Output,
    ) {
        self.phase = Phase::First;
        self.columns = String::new();
        if error.is_none() {
            self.syntax.backslashes = flags & status::NO_BACKSLASHES == 0;
            let transaction = if flags & status::IN_TRANSACTION != 0 {
                Transaction::Open
            } else {
                Transaction::Idle
            };
            output.transactions.push((at_ns, transaction));
        }
        let more = flags & status::MORE_RESULTS != 0 && error.is_none();
        let Some(command) = self.queue.next().copied() else {
            return;
        };
        if !more {
            self.sequence = None;
            self.answer_exchange(at_ns, error, output);
            return self.drop_followers(error.is_some(), output);
        }
        let followed = self.queue.second().is_some_and(|c| c.follows);
        if command.call && rows || !followed && !command.unending {
            return;
        }
        if command.unending {
            self.queue.answer_in_part(at_ns, output);
        } else {
            self.answer_exchange(at_ns, None, output);
        }
    }

    /// Statements of the text that the server did not come to.
    fn drop_followers(&mut self, failed: bool, output: &mut Output) {
        while self.queue.next().is_some_and(|c| c.follows) {
            if failed {
                let aborted = output.text("aborted");
                self.queue.abort_next(aborted, output);
            } else {
                self.queue.drop_next();
            }
        }
    }

    /// Whether a piece begins with the answer to the next command: boundaries of answers are lost.
    pub fn answer_begins(&mut self, bytes: &[u8]) -> bool {
        let Some(command) = self.queue.next() else {
            return false;
        };
        if self.phase != Phase::First || command.answer.is_none() || self.queue.has_begun() {
            return false;
        }
        if bytes.len() <= HEADER {
            // A header alone.
            return bytes.get(3).is_none_or(|b| Some(*b) == command.answer);
        }
        let (body, n) = (
            &bytes[HEADER..],
            wire::body_length(bytes).unwrap_or(0) as usize,
        );
        let whole = &body[..n.min(body.len())];
        let fits = match whole.first() {
            Some(0) => n >= 7,
            Some(0xff) => n >= 3 && whole.get(3).is_none_or(|b| *b == b'#'),
            Some(0xfe | 0xfb) => n < 1024,
            Some(_) => n <= 10 || command.kind != Kind::Query,
            None => false,
        };
        fits && Some(bytes[3]) == command.answer
    }

    /// Boundaries of answers are lost: if this piece ends as a result does, the next command was
    /// answered. Returns how many bytes that was told by.
    pub fn result_ends(&mut self, at_ns: u64, bytes: &[u8], output: &mut Output) -> usize {
        let results = self.queue.next().is_some_and(|c| {
            matches!(c.kind, Kind::Query | Kind::Execute | Kind::Fetch) && self.queue.len() == 1
        });
        if !results || !self.queue.has_begun() {
            return 0;
        }
        for (size, at) in [(5, 3), (7, 3)] {
            let Some(start) = bytes.len().checked_sub(HEADER + size) else {
                continue;
            };
            let packet = &bytes[start..];
            let ends = number(packet, 0, 3) == Some(size as u64)
                && packet[HEADER] == 0xfe
                && (size == 5 || packet[HEADER + 1..HEADER + 3] == [0, 0]);
            let flags = number(packet, HEADER + at, 2).unwrap_or(0) as u16;
            if ends && flags & status::MORE_RESULTS == 0 {
                self.ended(at_ns, flags, None, true, output);
                return packet.len();
            }
        }
        0
    }

    pub fn answers_lost(&mut self, _output: &mut Output) {
        // An answer that had begun is told from the next by this.
        self.phase = Phase::First;
        self.queue.first_byte(self.passed_ns);
        (self.sequence, self.late_eof, self.continued[1]) = (None, None, false);
        self.columns = String::new();
    }

    /// Requests passed unseen. Whether answers can no longer be told apart either.
    pub fn requests_lost(&mut self, output: &mut Output) -> bool {
        self.login = false;
        if std::mem::take(&mut self.continued[0]) || self.infile {
            // Only data was lost.
            self.infile = false;
            if let Some(command) = self.queue.next_mut() {
                command.answer = None;
            }
            self.sequence = None;
            return false;
        }
        self.give_up(output);
        true
    }

    fn give_up(&mut self, output: &mut Output) {
        let waiting = self.in_flight();
        while !self.queue.is_empty() {
            self.queue.drop_next();
        }
        output.anomaly(Anomaly::Unanswered, waiting as u64);
        self.phase = Phase::First;
        (self.sequence, self.infile) = (None, false);
    }

    pub fn end(&mut self, output: &mut Output) {
        self.give_up(output);
    }

    #[cfg(test)]
    pub fn held_bytes(&self) -> usize {
        self.queue.held_bytes()
            + self.statements.len() * size_of::<(u32, Statement)>()
            + self.columns.capacity()
    }
}
