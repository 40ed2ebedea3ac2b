//! Requests that wait for their answer, in the order they were sent: the pairing of every protocol
//! whose answers come in order.

use std::collections::VecDeque;

use super::{Anomaly, Exchange, Output, TextId};

/// Requests kept in flight for one connection. The deepest pipelines seen are a few thousand; a
/// peer that never answers must not take memory without bound.
const MAX_IN_FLIGHT: usize = 65536;

/// How a request was answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub error: Option<TextId>,
    pub hits: u32,
    pub misses: u32,
}

/// Capacity of an empty queue that is given back: a deep pipeline must not hold its memory for the
/// rest of the connection's life.
const KEPT_CAPACITY: usize = 128;

/// How long a connection must have been silent behind an answer before it is taken for idle, where
/// its client is known to ask without waiting for answers.
const SILENCE_NS: u64 = 1_000_000_000;

/// After requests or answers passed unseen: how many answers are still to come for requests that
/// are not in the queue is unknown.
struct Blind {
    /// The last that passed was a whole answer.
    answered: bool,
    last_ns: u64,
}

struct Waiting<T> {
    text: TextId,
    started_ns: u64,
    first_byte_ns: Option<u64>,
    kind: T,
}

/// A queue of requests, each with what its decoder needs to know to read the answer.
pub struct Outstanding<T> {
    queue: VecDeque<Waiting<T>>,
    /// When the answer before ended.
    free_ns: u64,
    blind: Option<Blind>,
    /// The client was seen to ask while answers were outstanding, in a later piece.
    overlaps: bool,
}

impl<T> Default for Outstanding<T> {
    fn default() -> Self {
        Outstanding {
            queue: VecDeque::new(),
            free_ns: 0,
            blind: None,
            overlaps: false,
        }
    }
}

impl<T> Outstanding<T> {
    /// A request whose first byte passed at `started_ns`. While answers cannot be told apart (see
    /// [`Outstanding::requests_lost`]) it stays unanswered.
    pub fn ask(&mut self, text: TextId, started_ns: u64, kind: T, output: &mut Output) {
        let last = self.queue.back();
        self.overlaps |= last.is_some_and(|last| last.started_ns < started_ns);
        if !self.sees(started_ns) {
            output.anomaly(Anomaly::Unanswered, 1);
            return;
        }
        if self.queue.len() >= MAX_IN_FLIGHT {
            output.anomaly(Anomaly::QueueFull, 1);
            return;
        }
        self.queue.push_back(Waiting {
            text,
            started_ns,
            first_byte_ns: None,
            kind,
        });
    }

    /// Requests passed unseen: answers to them will come behind those to the requests in the queue.
    /// What is asked from now on is not paired until the connection was idle: a request behind a
    /// whole answer, and, if this client asks without waiting, behind a second of silence.
    pub fn requests_lost(&mut self) {
        self.blind = Some(Blind {
            answered: false,
            last_ns: 0,
        });
    }

    /// Answers passed unseen: none of what is outstanding can be told answered or not.
    pub fn answers_lost(&mut self, output: &mut Output) {
        self.give_up(output);
        self.requests_lost();
    }

    /// Whether this client asks only when everything was answered, as far as was seen.
    pub fn waits_for_answers(&self) -> bool {
        !self.overlaps
    }

    /// All answers to what passed before are known to have come: pairing starts anew.
    pub fn idle(&mut self) {
        self.blind = None;
    }

    /// Whether a request of this time can be paired with its answer.
    fn sees(&mut self, at_ns: u64) -> bool {
        let Some(blind) = &mut self.blind else {
            return true;
        };
        let silent = at_ns.saturating_sub(blind.last_ns) >= SILENCE_NS;
        if blind.answered && self.queue.is_empty() && (!self.overlaps || silent) {
            self.blind = None;
            return true;
        }
        blind.answered = false;
        false
    }

    /// The request that is answered next.
    pub fn next(&self) -> Option<&T> {
        self.queue.front().map(|w| &w.kind)
    }

    /// As [`Outstanding::next`], to note how far its answer is.
    pub fn next_mut(&mut self) -> Option<&mut T> {
        self.queue.front_mut().map(|w| &mut w.kind)
    }

    /// The place in the queue of the first request that is `it`.
    pub fn position(&self, mut it: impl FnMut(&T) -> bool) -> Option<usize> {
        self.queue.iter().position(|waiting| it(&waiting.kind))
    }

    /// The request that was sent last.
    pub fn last_mut(&mut self) -> Option<&mut T> {
        self.queue.back_mut().map(|w| &mut w.kind)
    }

    /// The request behind the one that is answered next.
    pub fn second(&self) -> Option<&T> {
        self.queue.get(1).map(|w| &w.kind)
    }

    /// Whether a byte of the next request's answer passed.
    pub fn has_begun(&self) -> bool {
        let next = self.queue.front();
        next.is_some_and(|w| w.first_byte_ns.is_some())
    }

    /// Gives the next request another text.
    pub fn rename_next(&mut self, text: TextId) {
        if let Some(waiting) = self.queue.front_mut() {
            waiting.text = text;
        }
    }

    pub fn len(&self) -> usize {
        self.queue.len()
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// A byte of the next request's answer passed at `at_ns`; only the first one counts.
    pub fn first_byte(&mut self, at_ns: u64) {
        if let Some(blind) = &mut self.blind {
            blind.answered = false;
        }
        if let Some(waiting) = self.queue.front_mut() {
            waiting.first_byte_ns.get_or_insert(at_ns);
        }
    }

    /// The next request's answer ended at `at_ns`. An answer to nothing is an orphan.
    pub fn answer(&mut self, at_ns: u64, outcome: Outcome, output: &mut Output) {
        if let Some(exchange) = self.ended(at_ns, outcome, output) {
            output.exchanges.push(exchange);
        }
    }

    /// As [`Outstanding::answer`], for an exchange whose outcome is told later.
    pub fn ended(&mut self, at_ns: u64, outcome: Outcome, output: &mut Output) -> Option<Exchange> {
        let Some(waiting) = self.queue.pop_front() else {
            self.orphan(at_ns, output);
            return None;
        };
        self.passed(at_ns);
        if self.queue.is_empty() && self.queue.capacity() > KEPT_CAPACITY {
            self.queue.shrink_to(KEPT_CAPACITY / 4);
        }
        let exchange = Exchange {
            text: waiting.text,
            started_ns: waiting.started_ns,
            first_byte_ns: waiting.first_byte_ns.unwrap_or(at_ns),
            last_byte_ns: at_ns,
            queued_ns: self.free_ns.saturating_sub(waiting.started_ns),
            error: outcome.error,
            hits: outcome.hits,
            misses: outcome.misses,
            trace: None,
        };
        self.free_ns = at_ns;
        Some(exchange)
    }

    /// An answer that ended at `at_ns` is to no request in the queue.
    pub fn orphan(&mut self, at_ns: u64, output: &mut Output) {
        output.anomaly(Anomaly::Orphan, 1);
        self.passed(at_ns);
    }

    fn passed(&mut self, at_ns: u64) {
        if let Some(blind) = &mut self.blind {
            (blind.answered, blind.last_ns) = (true, at_ns);
        }
    }

    /// A part of the next request's answer is an exchange of its own, and more comes.
    pub fn answer_in_part(&mut self, at_ns: u64, output: &mut Output)
    where
        T: Copy,
    {
        let rest = self.queue.front().map(|waiting| Waiting {
            first_byte_ns: None,
            ..*waiting
        });
        if let Some(rest) = rest {
            self.answer(at_ns, Outcome::default(), output);
            self.queue.push_front(rest);
        }
    }

    /// The next request will not be done, for that one before it failed: an exchange without
    /// latency, as nothing answers it.
    pub fn abort_next(&mut self, error: TextId, output: &mut Output) {
        if let Some(waiting) = self.queue.pop_front() {
            output.exchanges.push(Exchange {
                text: waiting.text,
                started_ns: waiting.started_ns,
                first_byte_ns: waiting.started_ns,
                last_byte_ns: waiting.started_ns,
                queued_ns: 0,
                error: Some(error),
                hits: 0,
                misses: 0,
                trace: None,
            });
        }
    }

    /// Forgets the next request: it is no exchange.
    pub fn drop_next(&mut self) {
        self.queue.pop_front();
    }

    /// Memory held, for the bound a decoder states.
    #[cfg(test)]
    pub fn held_bytes(&self) -> usize {
        self.queue.capacity() * size_of::<Waiting<T>>()
    }

    /// Lets the next request go without an answer to it.
    pub fn give_up_next(&mut self, output: &mut Output) {
        if self.queue.pop_front().is_some() {
            output.anomaly(Anomaly::Unanswered, 1);
        }
    }

    /// Lets go of everything: answers can no longer be told apart, or none will come.
    pub fn give_up(&mut self, output: &mut Output) {
        output.anomaly(Anomaly::Unanswered, self.queue.len() as u64);
        self.queue.clear();
        self.queue.shrink_to(KEPT_CAPACITY / 4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::Options;

    #[test]
    fn answers_come_in_the_order_of_requests_and_say_how_long_each_waited_behind_others() {
        let mut output = Output::new(Options::default());
        let text = output.text("GET");
        let mut queue = Outstanding::default();
        queue.ask(text, 10, (), &mut output);
        queue.ask(text, 20, (), &mut output);
        queue.first_byte(50);
        queue.first_byte(60);
        queue.answer(100, Outcome::default(), &mut output);
        queue.answer(130, Outcome::default(), &mut output);
        queue.answer(140, Outcome::default(), &mut output);
        let [first, second] = &output.exchanges[..] else {
            panic!("{:?}", output.exchanges);
        };
        assert_eq!(
            (first.first_byte_ns, first.latency_ns(), first.queued_ns),
            (50, 90, 0)
        );
        assert_eq!(
            (second.first_byte_ns, second.latency_ns(), second.queued_ns),
            (130, 110, 80)
        );
        assert_eq!(output.anomalies, [(Anomaly::Orphan, 1)]);
    }

    #[test]
    fn behind_a_loss_nothing_is_paired_until_the_connection_was_idle() {
        let mut output = Output::new(Options::default());
        let (old, new) = (output.text("OLD"), output.text("NEW"));
        let mut queue = Outstanding::default();
        queue.ask(old, 10, (), &mut output);
        queue.requests_lost();
        queue.ask(new, 10, (), &mut output);
        // The answer to the first comes first, then those to what was lost and to what followed.
        queue.answer(30, Outcome::default(), &mut output);
        queue.answer(31, Outcome::default(), &mut output);
        queue.first_byte(32);
        queue.ask(new, 33, (), &mut output);
        queue.answer(34, Outcome::default(), &mut output);
        queue.ask(new, 40, (), &mut output);
        queue.answer(50, Outcome::default(), &mut output);
        let texts: Vec<TextId> = output.exchanges.iter().map(|e| e.text).collect();
        assert_eq!(texts, [old, new]);
        assert_eq!(output.exchanges[1].started_ns, 40);
        let unanswered = output
            .anomalies
            .iter()
            .filter(|a| a.0 == Anomaly::Unanswered);
        assert_eq!(unanswered.count(), 2);
    }

    #[test]
    fn a_client_that_does_not_wait_for_answers_is_paired_again_behind_a_silence_only() {
        let mut output = Output::new(Options::default());
        let text = output.text("GET");
        let mut queue = Outstanding::default();
        queue.ask(text, 10, (), &mut output);
        queue.ask(text, 11, (), &mut output);
        queue.answers_lost(&mut output);
        queue.answer(20, Outcome::default(), &mut output);
        queue.ask(text, 21, (), &mut output);
        queue.answer(30, Outcome::default(), &mut output);
        assert_eq!(output.exchanges, []);
        queue.ask(text, 30 + SILENCE_NS, (), &mut output);
        queue.answer(40 + SILENCE_NS, Outcome::default(), &mut output);
        assert_eq!(output.exchanges.len(), 1);
    }

    #[test]
    fn what_nobody_answers_is_counted_and_the_queue_is_bounded() {
        let mut output = Output::new(Options::default());
        let text = output.text("GET");
        let mut queue = Outstanding::default();
        for at in 0..MAX_IN_FLIGHT as u64 + 3 {
            queue.ask(text, at, (), &mut output);
        }
        assert_eq!(output.anomalies, [(Anomaly::QueueFull, 1); 3]);
        output.anomalies.clear();
        queue.give_up(&mut output);
        assert_eq!(
            output.anomalies,
            [(Anomaly::Unanswered, MAX_IN_FLIGHT as u64)]
        );
    }
}
