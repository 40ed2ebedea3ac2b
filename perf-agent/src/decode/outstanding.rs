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
}

impl<T> Default for Outstanding<T> {
    fn default() -> Self {
        Outstanding {
            queue: VecDeque::new(),
            free_ns: 0,
        }
    }
}

impl<T> Outstanding<T> {
    /// A request whose first byte passed at `started_ns`.
    pub fn ask(&mut self, text: TextId, started_ns: u64, kind: T, output: &mut Output) {
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

    /// The request that is answered next.
    pub fn next(&self) -> Option<&T> {
        self.queue.front().map(|w| &w.kind)
    }

    /// As [`Outstanding::next`], to note how far its answer is.
    pub fn next_mut(&mut self) -> Option<&mut T> {
        self.queue.front_mut().map(|w| &mut w.kind)
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
        if let Some(waiting) = self.queue.front_mut() {
            waiting.first_byte_ns.get_or_insert(at_ns);
        }
    }

    /// The next request's answer ended at `at_ns`. An answer to nothing is an orphan.
    pub fn answer(&mut self, at_ns: u64, outcome: Outcome, output: &mut Output) {
        let Some(waiting) = self.queue.pop_front() else {
            output.anomaly(Anomaly::Orphan, 1);
            return;
        };
        output.exchanges.push(Exchange {
            text: waiting.text,
            started_ns: waiting.started_ns,
            first_byte_ns: waiting.first_byte_ns.unwrap_or(at_ns),
            last_byte_ns: at_ns,
            queued_ns: self.free_ns.saturating_sub(waiting.started_ns),
            error: outcome.error,
            hits: outcome.hits,
            misses: outcome.misses,
        });
        self.free_ns = at_ns;
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
