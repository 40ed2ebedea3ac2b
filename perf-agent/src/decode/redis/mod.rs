//! Redis (and Valkey, KeyDB and others that speak RESP2 or RESP3).
//!
//! - A command is answered by one reply, in order; subscriptions are answered once per channel, and
//!   what the server pushes (published messages, invalidations of client tracking, `MONITOR`'s
//!   lines) answers nothing.
//! - Counts are those of `INFO commandstats`, its `calls` and `rejected_calls` together. A command
//!   queued in a transaction counts when `EXEC` executes it, with the time from its request to its
//!   `+QUEUED` and the outcome `EXEC` gives; in a transaction that is discarded it does not count.
//!   What scripts call is on no wire and not counted. Under `CLIENT REPLY OFF` and `SKIP` nothing is
//!   answered: such an exchange ends with its request.
//! - Hits and misses are those of `keyspace_hits` and `keyspace_misses` for the commands in
//!   `commands::LOOKUPS`, which says where the two may differ.
//! - A blocking command's wait is part of its latency.
//! - A replication link is recognised and not decoded.
//!
//! Memory of a connection: at most 2 × [`lexer::KEEP`] bytes for each direction and what is really
//! outstanding: requests in flight ([`Outstanding`]) and at most [`MAX_QUEUED`] commands of an open
//! transaction.
//!
//! Own code: crates for RESP build values of what they read, and none reads on in a message that
//! comes in pieces without reading it again.

mod commands;
mod meaning;
mod replies;
mod requests;

#[cfg(test)]
mod paths;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use self::{
    commands::{Effect, Lookup},
    meaning::{Asked, CHANNEL_ANSWERS, MESSAGES, Subscriptions, outcome},
    replies::{Facts, Replies},
    requests::{ReplyMode, Request, Requests},
};
#[cfg(any(test, doc))]
use super::lexer;
use super::{
    Anomaly, Decoder, Direction, Entry, Exchange, Joined, Outcome, Output, Outstanding, Protocol,
    Sync, Verdict, sync::Piece,
};

pub const ENTRY: Entry = Entry {
    protocol: Protocol::Redis,
    detect,
    decoder: |joined| Box::new(Redis::new(joined)),
};

/// Commands of an open transaction that wait for their outcome; those past it count as they are
/// queued, without one.
const MAX_QUEUED: usize = 1024;

fn detect(direction: Direction, bytes: &[u8]) -> Verdict {
    match direction {
        Direction::Request => match requests::plausible(bytes) {
            Some(true) => Verdict::Yes,
            Some(false) => inline(bytes),
            None => Verdict::Unsure,
        },
        Direction::Response => match (replies::plausible(bytes), bytes.first()) {
            (Some(true), Some(b'$' | b'*' | b'%' | b'~' | b'>')) => Verdict::Yes,
            // Other protocols of lines have such answers too.
            (Some(true), _) => Verdict::Maybe,
            (Some(false), _) => Verdict::No,
            (None, _) => Verdict::Unsure,
        },
    }
}

/// A command typed by hand: a known one, alone in its line. memcached's `get` looks the same.
fn inline(bytes: &[u8]) -> Verdict {
    let line = bytes.split(|b| *b == b'\n').next().unwrap_or_default();
    let printable = |b: &u8| b.is_ascii_graphic() || matches!(b, b' ' | b'\r');
    let mut words = line.split(u8::is_ascii_whitespace);
    let known = words.next().is_some_and(|w| commands::command(w).is_some());
    let http = words.any(|w| w.starts_with(b"HTTP/"));
    match line.len() < bytes.len() {
        _ if !line.iter().all(printable) || http => Verdict::No,
        true if known => Verdict::Maybe,
        true => Verdict::No,
        false if line.len() < 64 => Verdict::Unsure,
        false => Verdict::No,
    }
}

struct Redis {
    requests: Requests,
    replies: Replies,
    outstanding: Outstanding<Asked>,
    reply_mode: ReplyMode,
    sync: Sync,
    /// Commands of the open transaction.
    queued: VecDeque<(Exchange, Asked)>,
    /// Of those, what was past [`MAX_QUEUED`] and told without an outcome.
    told: u64,
    subscriptions: Subscriptions,
    monitors: bool,
    /// A replication link.
    stopped: bool,
}

impl Redis {
    fn new(joined: Joined) -> Redis {
        Redis {
            requests: Requests::default(),
            replies: Replies::default(),
            outstanding: Outstanding::default(),
            reply_mode: ReplyMode::On,
            sync: Sync::new(joined),
            queued: VecDeque::new(),
            told: 0,
            subscriptions: Subscriptions::default(),
            monitors: false,
            stopped: false,
        }
    }

    /// Bytes held for messages that are open.
    #[cfg(test)]
    fn held(&self) -> usize {
        self.requests.held() + self.replies.held()
    }

    fn malformed(&mut self, direction: Direction, at_ns: u64, output: &mut Output) {
        self.sync
            .malformed(direction, at_ns, &mut self.outstanding, output);
        self.give_up_queued(output);
    }

    fn give_up_queued(&mut self, output: &mut Output) {
        output.anomaly(Anomaly::Unanswered, self.queued.len() as u64);
        self.forget_queued();
    }

    fn request_bytes(&mut self, at_ns: u64, mut rest: &[u8], output: &mut Output) {
        while !self.stopped {
            self.asked_again(at_ns, &mut rest, output);
            let before = rest.len();
            let step = self.requests.next(at_ns, &mut rest, output);
            self.sync.read(Direction::Request, before - rest.len());
            match step {
                None => return,
                Some(requests::Step::Malformed) => {
                    return self.malformed(Direction::Request, at_ns, output);
                }
                Some(requests::Step::Nothing) => {}
                Some(requests::Step::Request(request)) => self.asked(request, at_ns, output),
            }
            self.sync.message(Direction::Request, output);
        }
    }

    /// Takes commands like the one before off the front of `rest`, as many as there are.
    fn asked_again(&mut self, at_ns: u64, rest: &mut &[u8], output: &mut Output) {
        let Some((lookup, arguments)) = self.requests.again() else {
            return;
        };
        if self.reply_mode != ReplyMode::On {
            return;
        }
        let asked = Asked {
            lookup,
            effect: Effect::None,
            arguments,
            answers: 0,
        };
        let before = rest.len();
        while let Some(text) = self.requests.text_again(rest, output) {
            self.outstanding.ask(text, at_ns, asked, output);
        }
        if rest.len() < before {
            self.sync.read(Direction::Request, before - rest.len());
            self.sync.message(Direction::Request, output);
        }
    }

    /// Takes replies that only end the exchanges they answer off the front of `rest`, as many as there are.
    fn replied_plainly(&mut self, at_ns: u64, rest: &mut &[u8], output: &mut Output) {
        if !self.replies.between() {
            return;
        }
        let before = rest.len();
        while let Some(asked) = self.outstanding.next().copied()
            && asked.effect == Effect::None
            && asked.lookup != Lookup::Type
            && let Some(facts) = Replies::plain(rest)
        {
            self.outstanding.first_byte(at_ns);
            let outcome = outcome(&asked, &facts);
            self.outstanding.answer(at_ns, outcome, output);
        }
        if rest.len() < before {
            self.sync.read(Direction::Response, before - rest.len());
            self.sync.message(Direction::Response, output);
        }
    }

    fn asked(&mut self, request: Request, at_ns: u64, output: &mut Output) {
        if request.effect == Effect::Replicate || request.acknowledges {
            self.stopped = true;
            output.anomaly(Anomaly::Unsupported, 1);
            self.outstanding.give_up(output);
            return;
        }
        let answered = match (self.reply_mode, request.reply) {
            _ if request.effect == Effect::Reset => {
                self.reply_mode = ReplyMode::On;
                true
            }
            (_, Some(mode @ (ReplyMode::On | ReplyMode::Off))) => {
                self.reply_mode = mode;
                mode == ReplyMode::On
            }
            (ReplyMode::On, Some(ReplyMode::Skip)) => {
                self.reply_mode = ReplyMode::Skip;
                false
            }
            (ReplyMode::On, None) => true,
            (ReplyMode::Skip, _) => {
                self.reply_mode = ReplyMode::On;
                false
            }
            (ReplyMode::Off, _) => false,
        };
        if !answered {
            output.exchanges.push(Exchange {
                text: request.text,
                started_ns: request.started_ns,
                first_byte_ns: at_ns,
                last_byte_ns: at_ns,
                queued_ns: 0,
                error: None,
                hits: 0,
                misses: 0,
                trace: None,
            });
            return;
        }
        let asked = Asked {
            lookup: request.lookup,
            effect: request.effect,
            arguments: request.arguments,
            answers: 0,
        };
        self.outstanding
            .ask(request.text, request.started_ns, asked, output);
    }

    fn reply_bytes(&mut self, at_ns: u64, mut rest: &[u8], output: &mut Output) {
        while !self.stopped {
            self.replied_plainly(at_ns, &mut rest, output);
            let before = rest.len();
            if let Some(facts) = self.replies.simple(&mut rest) {
                self.sync.read(Direction::Response, before - rest.len());
                self.replied(at_ns, at_ns, &facts, output);
                self.sync.message(Direction::Response, output);
                continue;
            }
            let next = self.outstanding.next();
            let elements = next.is_some_and(|asked| asked.effect == Effect::Exec);
            let step = self.replies.next(at_ns, &mut rest, elements, output);
            self.sync.read(Direction::Response, before - rest.len());
            match step {
                None => return,
                Some(replies::Step::Malformed) => {
                    return self.malformed(Direction::Response, at_ns, output);
                }
                Some(replies::Step::Element { index, of, facts }) => {
                    self.executed(index, of, &facts, output);
                    continue;
                }
                Some(replies::Step::Reply {
                    first_ns,
                    facts,
                    of: Some(of),
                }) => {
                    self.executed(of - 1, of, &facts, output);
                    self.give_up_queued(output);
                    self.outstanding.first_byte(first_ns);
                    self.outstanding.answer(at_ns, Outcome::default(), output);
                }
                Some(replies::Step::Reply {
                    first_ns, facts, ..
                }) => self.replied(first_ns, at_ns, &facts, output),
            }
            self.sync.message(Direction::Response, output);
        }
    }

    /// One of the answers in `EXEC`'s. Commands queued before the trace are not known: those that
    /// are known are the last.
    fn executed(&mut self, index: u64, of: u64, facts: &Facts, output: &mut Output) {
        let (known, left) = (self.queued.len() as u64 + self.told, of - index);
        if known > left {
            // Not the transaction that was seen: which is which cannot be told.
            self.give_up_queued(output);
        }
        if known != left {
            output.anomaly(Anomaly::Orphan, 1);
        } else if let Some((exchange, asked)) = self.queued.pop_front() {
            output
                .exchanges
                .push(with(exchange, outcome(&asked, facts)));
        } else {
            self.told -= 1;
        }
    }

    fn replied(&mut self, first_ns: u64, at_ns: u64, facts: &Facts, output: &mut Output) {
        if self.pushed(facts) {
            return;
        }
        self.outstanding.first_byte(first_ns);
        let Some(asked) = self.outstanding.next_mut() else {
            return self.outstanding.answer(at_ns, Outcome::default(), output);
        };
        if facts.kind == b'+' && facts.word() == b"QUEUED" {
            let asked = *asked;
            return self.queue(asked, at_ns, output);
        }
        let failed = facts.error.is_some();
        match asked.effect {
            Effect::Subscribe | Effect::Unsubscribe if !failed => {
                asked.answers += 1;
                let due = match asked.arguments {
                    0 => self.subscriptions.others(facts.word()),
                    n => n.saturating_sub(asked.answers),
                };
                self.subscriptions.note(facts);
                if due > 0 {
                    return;
                }
            }
            // Whatever it answers but what came through `executed`, nothing was executed.
            Effect::Exec | Effect::Discard => self.forget_queued(),
            Effect::Multi if !failed => self.forget_queued(),
            Effect::Reset if !failed => {
                self.forget_queued();
                self.subscriptions = Subscriptions::default();
                self.monitors = false;
            }
            Effect::Monitor if !failed => self.monitors = true,
            _ => {}
        }
        let next = self.outstanding.next();
        let outcome = next.map_or_else(Outcome::default, |asked| outcome(asked, facts));
        self.outstanding.answer(at_ns, outcome, output);
    }

    /// The next command's answer is that it waits for `EXEC`.
    fn queue(&mut self, asked: Asked, at_ns: u64, output: &mut Output) {
        let ended = self.outstanding.ended(at_ns, Outcome::default(), output);
        let Some(exchange) = ended else { return };
        if self.queued.len() < MAX_QUEUED {
            self.queued.push_back((exchange, asked));
        } else {
            self.told += 1;
            output.exchanges.push(exchange);
        }
    }

    fn forget_queued(&mut self) {
        (self.queued, self.told) = (VecDeque::new(), 0);
    }

    /// Whether it answers nothing.
    fn pushed(&self, facts: &Facts) -> bool {
        let (word, next) = (facts.word(), self.outstanding.next());
        let channel = CHANNEL_ANSWERS.contains(&word);
        let expected = next
            .is_some_and(|asked| matches!(asked.effect, Effect::Subscribe | Effect::Unsubscribe));
        match facts.kind {
            b'>' => !(channel && expected),
            // Without RESP3, a push can be told only where it is expected.
            b'*' if self.subscriptions.any() || next.is_none() => {
                MESSAGES.contains(&word) || channel && !expected
            }
            b'+' if self.monitors || next.is_none() => {
                word.first().is_some_and(u8::is_ascii_digit) && word.contains(&b'.')
            }
            _ => false,
        }
    }
}

fn with(exchange: Exchange, outcome: Outcome) -> Exchange {
    Exchange {
        error: outcome.error,
        hits: outcome.hits,
        misses: outcome.misses,
        ..exchange
    }
}

/// Where in a piece the next command begins.
fn next_request(bytes: &[u8]) -> Option<usize> {
    let fits = |at: &usize| requests::plausible(&bytes[*at..]) == Some(true);
    let ends = memchr::memmem::find_iter(bytes, b"\r\n*").map(|at| at + 2);
    std::iter::once(0).chain(ends).find(fits)
}

impl Decoder for Redis {
    fn bytes(&mut self, direction: Direction, at_ns: u64, bytes: &[u8], output: &mut Output) {
        if self.stopped || bytes.is_empty() {
            return;
        }
        let fits = || match direction {
            Direction::Request => {
                requests::plausible(bytes) != Some(false) || inline(bytes) > Verdict::No
            }
            Direction::Response => replies::plausible(bytes) != Some(false),
        };
        let boundary = || match direction {
            Direction::Request => next_request(bytes),
            Direction::Response => (replies::plausible(bytes) == Some(true)).then_some(0),
        };
        let (outstanding, at) = (&mut self.outstanding, (direction, at_ns));
        let at = match self.sync.piece(at, outstanding, output, fits, boundary) {
            Piece::On => 0,
            Piece::Skip => return,
            Piece::Anew(at) => {
                match direction {
                    Direction::Request => self.requests.reset(),
                    Direction::Response => self.replies.reset(),
                }
                at
            }
        };
        match direction {
            Direction::Request => self.request_bytes(at_ns, &bytes[at..], output),
            Direction::Response => self.reply_bytes(at_ns, &bytes[at..], output),
        }
    }

    fn gap(&mut self, direction: Direction, at_ns: u64, count: u64, output: &mut Output) {
        let outstanding = &mut self.outstanding;
        if self.stopped || count == 0 || !self.sync.gap(direction, at_ns, outstanding, output) {
            return;
        }
        match direction {
            // What ends with the gap is closed by the call without bytes.
            Direction::Request if self.requests.gap(count) => {
                return self.request_bytes(at_ns, &[], output);
            }
            Direction::Request => {
                if let Some(request) = self.requests.cut(output) {
                    self.sync.message(direction, output);
                    self.asked(request, at_ns, output);
                }
            }
            Direction::Response if self.replies.gap(count) => {
                return self.reply_bytes(at_ns, &[], output);
            }
            Direction::Response => {}
        }
        let begun = !self.replies.between() && self.queued.is_empty();
        self.sync
            .lose(direction, at_ns, begun, &mut self.outstanding, output);
        self.give_up_queued(output);
    }

    fn end(&mut self, output: &mut Output) {
        // One that was begun has no answer either.
        let open = !self.stopped && !self.sync.lost(Direction::Request);
        if open && self.requests.cut(output).is_some() {
            output.anomaly(Anomaly::Unanswered, 1);
            self.requests.reset();
        }
        self.outstanding.give_up(output);
        self.give_up_queued(output);
    }

    fn in_flight(&self) -> usize {
        self.outstanding.len()
    }
}
