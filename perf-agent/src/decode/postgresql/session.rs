//! What is in flight, and what the session remembers.

use std::collections::{BTreeMap, VecDeque};

use super::super::sql::Syntax;
use super::super::{Anomaly, Exchange, Joined, Output, TextId, Transaction};
use super::{MAX_QUEUE, MAX_STATEMENTS};

/// Answers held back at most while it is not known what they answer.
const MAX_HELD: usize = 1024;
/// A client that does not wait for answers is taken to have them all after this time.
const SILENCE_NS: u64 = 1_000_000_000;
/// Named portals remembered.
pub const MAX_PORTALS: usize = 64;

/// A client's message that the server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Connect,
    Parse,
    Bind,
    Describe,
    Close,
    Execute,
    /// A statement of a simple Query.
    Statement,
    /// The last statement of a Query whose text was cut: more may follow it.
    Unending,
    Function,
    /// Answered by ReadyForQuery: Sync, and the end of Query, FunctionCall and startup.
    Sync,
}

impl Kind {
    /// Its answer ends an exchange.
    fn is_exchange(self) -> bool {
        use Kind::{Execute, Function, Statement, Unending};
        matches!(self, Execute | Statement | Unending | Function)
    }
}

#[derive(Clone, Copy)]
pub struct Item {
    pub kind: Kind,
    /// An Unending one was answered.
    pub answered: bool,
    /// The statement was prepared unseen, and is not described yet.
    pub unseen: bool,
    pub text: TextId,
    /// Of a Query with several statements, at the first: the whole.
    pub whole: Option<TextId>,
    pub started_ns: u64,
    pub first_ns: Option<u64>,
    /// Hash of the prepared statement's name.
    pub name: u64,
}

impl Item {
    pub fn new(kind: Kind, text: TextId, started_ns: u64) -> Item {
        Item {
            kind,
            answered: false,
            unseen: false,
            text,
            whole: None,
            started_ns,
            first_ns: None,
            name: 0,
        }
    }
}

/// A prepared statement.
#[derive(Clone, Copy)]
pub struct Statement {
    pub text: TextId,
    /// Prepared unseen, and not described yet.
    pub unseen: bool,
}

/// A message whose time is that of the exchange it was sent for, until it is answered.
#[derive(Clone, Copy)]
pub struct Begun {
    pub name: u64,
    pub sequence: u64,
    pub started_ns: u64,
}

#[derive(Clone, Copy)]
pub struct Portal {
    pub statement: Statement,
    pub name: u64,
    pub begun: Option<Begun>,
}

/// How answers belong to what is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pairing {
    InOrder,
    /// From the end of the batch that the next ReadyForQuery ends: joined late, or answers were lost.
    FromEnd,
    /// Not at all, until a request is sent after the server is ready.
    Unknown,
}

/// The end of an answer that is held back.
#[derive(Clone, Copy)]
struct Held {
    first_ns: u64,
    last_ns: u64,
    error: Option<TextId>,
}

pub struct Session {
    /// Startup packets may come.
    pub starting: bool,
    pub encryption_asked: bool,
    pub encrypted: bool,
    pub syntax: Syntax,
    queue: VecDeque<Item>,
    /// Sequence number of the first item of `queue`.
    sequence: u64,
    /// When the exchange before ended.
    free_ns: u64,
    pairing: Pairing,
    held: Vec<Held>,
    /// First byte of the answer that is held back next.
    held_first_ns: Option<u64>,
    /// The server said it is ready, then, and no request was sent since.
    at_rest: Option<u64>,
    /// How often it said so while pairing was in order.
    rounds: u64,
    /// The client sends before the server is ready: nothing follows from what it sends.
    overlaps: bool,
    /// When the last byte of an answer passed.
    passed_ns: u64,
    /// Boundaries of answers are lost, and the next piece of them begins with one.
    pub restarted: bool,
    /// The server passes over requests up to Sync; the text of the exchange that failed before its
    /// Execute, and whether what follows was never a statement of its own.
    failed: Option<(Option<TextId>, bool)>,
    pub statements: BTreeMap<u64, Statement>,
    /// The last statement's name and its hash, 0 if there was none.
    pub last_name: (Vec<u8>, u64),
    pub parse: Option<Begun>,
    pub unnamed_portal: Option<Portal>,
    pub portals: Vec<(u64, Portal)>,
    /// The server reads COPY data and ignores Sync.
    pub copy_in: bool,
    /// CopyDone was sent before the server asked for data.
    pub copy_ended: bool,
}

impl Session {
    pub fn new(joined: Joined) -> Session {
        let late = joined == Joined::Late;
        Session {
            starting: !late,
            encryption_asked: false,
            encrypted: false,
            syntax: Syntax::POSTGRESQL,
            queue: VecDeque::new(),
            sequence: 0,
            free_ns: 0,
            pairing: if late {
                Pairing::FromEnd
            } else {
                Pairing::InOrder
            },
            held: Vec::new(),
            held_first_ns: None,
            at_rest: None,
            rounds: 0,
            overlaps: false,
            passed_ns: 0,
            restarted: false,
            failed: None,
            statements: BTreeMap::new(),
            last_name: (Vec::new(), 0),
            parse: None,
            unnamed_portal: None,
            portals: Vec::new(),
            copy_in: false,
            copy_ended: false,
        }
    }

    /// Puts a request in flight; returns its sequence number.
    pub fn push(&mut self, item: Item, output: &mut Output) -> u64 {
        if self.queue.len() >= MAX_QUEUE {
            output.anomaly(Anomaly::QueueFull, 1);
            self.give_up(output);
            self.pairing = Pairing::Unknown;
        }
        self.queue.push_back(item);
        self.sequence + self.queue.len() as u64 - 1
    }

    /// A request is sent.
    pub fn sent(&mut self, at_ns: u64, output: &mut Output) {
        let ready_ns = self.at_rest.take();
        if self.pairing == Pairing::InOrder {
            self.overlaps |= self.queue.back().is_some_and(|i| i.kind == Kind::Sync);
            return;
        }
        match ready_ns {
            Some(ready_ns) if !self.overlaps || at_ns.saturating_sub(ready_ns) >= SILENCE_NS => {
                self.give_up(output);
                self.pairing = Pairing::InOrder;
            }
            Some(_) => {}
            None => self.answered_unseen(output),
        }
    }

    /// A client that always waits for the answer goes on: the end of the answer was not captured.
    pub fn answered_unseen(&mut self, output: &mut Output) {
        let whole = self.queue.back().is_some_and(|i| i.kind == Kind::Sync);
        let waits = self.rounds > 0 && !self.overlaps;
        if self.pairing != Pairing::FromEnd || !whole || !waits {
            return;
        }
        // Last, as it looks at all that is in flight, with each piece of a peer that is never answered.
        let syncs = self.queue.iter().filter(|i| i.kind == Kind::Sync);
        if syncs.take(2).count() != 1 {
            return;
        }
        let mut exchanges = self.queue.iter().filter(|i| i.kind.is_exchange());
        if let (Some(item), None) = (exchanges.next().copied(), exchanges.next())
            && !item.answered
        {
            self.finish(item, self.passed_ns, None, output);
            self.sequence += self.queue.len() as u64;
            self.queue.clear();
        }
        self.give_up(output);
        self.pairing = Pairing::InOrder;
        self.restarted = true;
    }

    /// A piece of the answers passed.
    pub fn answer_passed(&mut self, at_ns: u64) {
        self.passed_ns = at_ns;
    }

    /// Whether the message with this number still waits for its answer.
    pub fn waits(&self, sequence: u64) -> bool {
        sequence >= self.sequence
    }

    pub fn in_order(&self) -> bool {
        self.pairing == Pairing::InOrder
    }

    pub fn front(&mut self) -> Option<&mut Item> {
        self.queue.front_mut()
    }

    pub fn pop(&mut self) -> Option<Item> {
        let item = self.queue.pop_front();
        self.sequence += u64::from(item.is_some());
        item
    }

    pub fn in_flight(&self) -> usize {
        let exchanges = self
            .queue
            .iter()
            .filter(|i| i.kind.is_exchange() && !i.answered);
        exchanges.count()
    }

    /// Whether [`Session::in_flight`] is more than none: most often the first message in flight tells, and there
    /// may be 65,536.
    pub fn is_in_flight(&self) -> bool {
        self.queue
            .iter()
            .any(|i| i.kind.is_exchange() && !i.answered)
    }

    /// COPY begins: drops Syncs sent behind its Execute, which the server reads and ignores.
    pub fn drop_syncs_behind_front(&mut self) {
        while self.queue.get(1).is_some_and(|i| i.kind == Kind::Sync) {
            self.queue.remove(1);
        }
    }

    /// Gives what is in flight for the statement `name` another text.
    pub fn rename(&mut self, name: u64, text: TextId) {
        if let Some(statement) = self.statements.get_mut(&name) {
            (statement.text, statement.unseen) = (text, false);
        }
        let portals = self.portals.iter_mut().map(|(_, p)| p);
        for portal in portals.chain(&mut self.unnamed_portal) {
            if portal.name == name && portal.statement.unseen {
                portal.statement = Statement {
                    text,
                    unseen: false,
                };
            }
        }
        for item in self.queue.iter_mut().filter(|i| i.unseen && i.name == name) {
            (item.text, item.unseen) = (text, false);
        }
    }

    pub fn remember(&mut self, name: u64, statement: Statement) {
        if self.statements.len() >= MAX_STATEMENTS && !self.statements.contains_key(&name) {
            self.statements.pop_first();
        }
        self.statements.insert(name, statement);
    }

    /// A byte of the next exchange's answer.
    pub fn first_byte(&mut self, at_ns: u64) {
        if self.pairing != Pairing::InOrder {
            self.held_first_ns.get_or_insert(at_ns);
        } else if let Some(item) = self.queue.front_mut() {
            item.first_ns.get_or_insert(at_ns);
        }
    }

    /// Ends an exchange.
    pub fn finish(&mut self, item: Item, last_ns: u64, error: Option<TextId>, output: &mut Output) {
        output.exchanges.push(Exchange {
            text: item.text,
            started_ns: item.started_ns,
            first_byte_ns: item.first_ns.unwrap_or(last_ns),
            last_byte_ns: last_ns,
            queued_ns: self.free_ns.saturating_sub(item.started_ns),
            error,
            hits: 0,
            misses: 0,
            trace: None,
        });
        self.free_ns = last_ns;
    }

    /// The server answered the next exchange.
    pub fn answered(&mut self, at_ns: u64, error: Option<TextId>, output: &mut Output) {
        match self.queue.front_mut() {
            Some(item) if item.kind == Kind::Unending && error.is_none() => {
                item.answered = true;
                let done = *item;
                item.first_ns = None;
                self.finish(done, at_ns, None, output);
            }
            Some(item) if item.kind.is_exchange() => {
                let item = *item;
                self.pop();
                self.finish(item, at_ns, error, output);
            }
            _ => self.unexpected(output),
        }
    }

    /// Holds back the end of an answer until it is known what it answers.
    pub fn hold(&mut self, at_ns: u64, error: Option<TextId>, output: &mut Output) {
        let first_ns = self.held_first_ns.take().unwrap_or(at_ns);
        if self.pairing == Pairing::Unknown {
            output.anomaly(Anomaly::Orphan, 1);
            return;
        }
        if self.held.len() >= MAX_HELD {
            self.held.remove(0);
            output.anomaly(Anomaly::Orphan, 1);
        }
        self.held.push(Held {
            first_ns,
            last_ns: at_ns,
            error,
        });
    }

    /// What follows up to Sync is passed over by the server.
    pub fn fail(&mut self, instead_of: Option<TextId>, all: bool) {
        self.failed = Some((instead_of, all));
    }

    pub fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// An answer that fits nothing in flight: what is there does not belong to what comes.
    pub fn unexpected(&mut self, output: &mut Output) {
        output.anomaly(Anomaly::Orphan, 1);
        self.give_up(output);
        self.pairing = Pairing::Unknown;
    }

    pub fn ready(&mut self, at_ns: u64, status: u8, output: &mut Output) {
        let transaction = match status {
            b'T' => Transaction::Open,
            b'E' => Transaction::Failed,
            _ => Transaction::Idle,
        };
        output.transactions.push((at_ns, transaction));
        self.at_rest = Some(at_ns);
        self.rounds += u64::from(self.pairing == Pairing::InOrder);
        self.copy_in = false;
        match self.pairing {
            Pairing::InOrder => self.sync_in_order(output),
            Pairing::FromEnd => self.sync_from_end(output),
            Pairing::Unknown => {}
        }
        self.failed = None;
        if self.queue.is_empty() {
            if transaction == Transaction::Idle {
                self.portals = Vec::new();
            }
            if self.queue.capacity() > 16 {
                self.queue.shrink_to(16);
            }
        }
    }

    fn sync_in_order(&mut self, output: &mut Output) {
        loop {
            match self.pop() {
                None => return output.anomaly(Anomaly::Orphan, 1),
                Some(item) if item.kind == Kind::Sync => return,
                Some(item) if !item.kind.is_exchange() || item.answered => {}
                Some(item) => self.passed_over(item, output),
            }
        }
    }

    /// An exchange that the server came to the end of the batch without answering.
    fn passed_over(&mut self, mut item: Item, output: &mut Output) {
        match self.failed {
            None => output.anomaly(Anomaly::Unanswered, 1),
            Some((_, true)) => {}
            Some((Some(text), _)) if text == item.text => self.failed = Some((None, false)),
            Some(_) => {
                let free_ns = self.free_ns;
                let aborted = output.text("aborted");
                item.first_ns = None;
                self.free_ns = 0;
                self.finish(item, item.started_ns, Some(aborted), output);
                self.free_ns = free_ns;
            }
        }
    }

    fn sync_from_end(&mut self, output: &mut Output) {
        let held = std::mem::take(&mut self.held);
        self.held_first_ns = None;
        let mut syncs = (0..self.queue.len()).filter(|i| self.queue[*i].kind == Kind::Sync);
        let (sync, more) = (syncs.next(), syncs.next().is_some());
        let Some(sync) = sync else {
            return output.anomaly(Anomaly::Orphan, held.len() as u64);
        };
        if more {
            // Which of them was answered cannot be told.
            output.anomaly(Anomaly::Orphan, held.len() as u64);
            self.give_up(output);
            self.pairing = Pairing::Unknown;
            return;
        }
        self.pairing = Pairing::InOrder;
        let batch: Vec<Item> = (0..=sync).filter_map(|_| self.pop()).collect();
        let batch: Vec<Item> = batch.into_iter().filter(|i| i.kind.is_exchange()).collect();
        let errors = held.iter().any(|h| h.error.is_some());
        let several = batch.len() > 1 || held.len() > 1;
        let paired = if errors && several {
            // How many were passed over behind the error cannot be told.
            0
        } else {
            held.len().min(batch.len())
        };
        output.anomaly(Anomaly::Orphan, (held.len() - paired) as u64);
        output.anomaly(Anomaly::Unanswered, (batch.len() - paired) as u64);
        let pairs = batch[batch.len() - paired..].iter();
        for (item, held) in pairs.zip(&held[held.len() - paired..]) {
            let mut item = *item;
            item.first_ns = item.first_ns.or(Some(held.first_ns));
            self.finish(item, held.last_ns, held.error, output);
        }
    }

    /// Boundaries of answers were lost.
    pub fn answers_lost(&mut self, output: &mut Output) {
        output.anomaly(Anomaly::Orphan, self.held.len() as u64);
        self.held.clear();
        self.held_first_ns = None;
        self.restarted = false;
        self.at_rest = None;
        if self.pairing == Pairing::InOrder {
            self.pairing = Pairing::FromEnd;
        }
    }

    /// More requests passed unseen, after boundaries were lost.
    pub fn requests_unseen(&mut self) {
        self.at_rest = None;
    }

    /// Requests passed unseen.
    pub fn requests_lost(&mut self, output: &mut Output) {
        self.parse = None;
        self.unnamed_portal = None;
        self.at_rest = None;
        // While the server reads COPY data, that is all the client sends.
        if !self.copy_in {
            self.give_up(output);
            self.pairing = Pairing::Unknown;
        }
    }

    fn give_up(&mut self, output: &mut Output) {
        output.anomaly(Anomaly::Unanswered, self.in_flight() as u64);
        output.anomaly(Anomaly::Orphan, self.held.len() as u64);
        self.sequence += self.queue.len() as u64;
        self.queue = VecDeque::new();
        self.held = Vec::new();
        self.held_first_ns = None;
        self.failed = None;
    }

    pub fn end(&mut self, output: &mut Output) {
        self.give_up(output);
    }

    #[cfg(test)]
    pub fn held_bytes(&self) -> usize {
        self.queue.capacity() * size_of::<Item>()
            + self.held.capacity() * size_of::<Held>()
            + self.statements.len() * size_of::<(u64, Statement)>()
            + self.portals.capacity() * size_of::<(u64, Portal)>()
            + self.last_name.0.capacity()
    }
}
