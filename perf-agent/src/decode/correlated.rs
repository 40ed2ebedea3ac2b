//! Requests that wait for their answer by an id both carry: the pairing of protocols whose answers
//! may come out of order.

use std::collections::HashMap;

use super::{Anomaly, Exchange, Outcome, Output, TextId};

/// Requests kept in flight for one connection.
const MAX_IN_FLIGHT: usize = 16384;
/// An emptied table larger than this is given back.
const KEEP_CAPACITY: usize = 16;

/// A request in flight.
pub struct Waiting<T> {
    pub text: TextId,
    pub started_ns: u64,
    pub first_byte_ns: Option<u64>,
    pub kind: T,
    /// Place in the order of requests.
    sequence: u64,
}

/// Requests by id, each with what its decoder needs to know to read the answer.
pub struct Correlated<T> {
    waiting: HashMap<u32, Waiting<T>>,
    sequence: u64,
    /// When the answer before ended.
    free_ns: u64,
    /// Answers may have passed unseen.
    answers_lost: bool,
}

impl<T> Default for Correlated<T> {
    fn default() -> Self {
        Correlated {
            waiting: HashMap::new(),
            sequence: 0,
            free_ns: 0,
            answers_lost: false,
        }
    }
}

impl<T> Correlated<T> {
    /// A request whose first byte passed at `started_ns`. One that waits under the same id is
    /// given up: its answer was missed, or could not be told from this one's.
    pub fn ask(&mut self, id: u32, text: TextId, started_ns: u64, kind: T, output: &mut Output) {
        if self.waiting.len() >= MAX_IN_FLIGHT && !self.waiting.contains_key(&id) {
            output.anomaly(Anomaly::QueueFull, 1);
            return;
        }
        self.sequence += 1;
        let waiting = Waiting {
            text,
            started_ns,
            first_byte_ns: None,
            kind,
            sequence: self.sequence,
        };
        if self.waiting.insert(id, waiting).is_some() {
            output.anomaly(Anomaly::Unanswered, 1);
        }
    }

    pub fn get(&self, id: u32) -> Option<&Waiting<T>> {
        self.waiting.get(&id)
    }

    pub fn get_mut(&mut self, id: u32) -> Option<&mut Waiting<T>> {
        self.waiting.get_mut(&id)
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes a request out without an exchange.
    pub fn remove(&mut self, id: u32) -> Option<Waiting<T>> {
        let waiting = self.waiting.remove(&id);
        if self.waiting.is_empty() && self.waiting.capacity() > KEEP_CAPACITY {
            self.waiting = HashMap::new();
        }
        waiting
    }

    /// The answer to `id` passed from `first_ns` to `last_ns`. An answer to nothing is an orphan.
    /// `in_order` says that answers come in the order of the requests: what waited is then the time
    /// behind the one before, and after a loss, requests older than this one are given up.
    pub fn answer(
        &mut self,
        id: u32,
        first_ns: u64,
        last_ns: u64,
        outcome: Outcome,
        in_order: bool,
        output: &mut Output,
    ) {
        let Some(waiting) = self.remove(id) else {
            output.anomaly(Anomaly::Orphan, 1);
            return;
        };
        let free_ns = if in_order { self.free_ns } else { 0 };
        output.exchanges.push(Exchange {
            text: waiting.text,
            started_ns: waiting.started_ns,
            first_byte_ns: waiting.first_byte_ns.unwrap_or(first_ns),
            last_byte_ns: last_ns,
            queued_ns: free_ns.saturating_sub(waiting.started_ns),
            error: outcome.error,
            hits: outcome.hits,
            misses: outcome.misses,
            trace: None,
        });
        self.free_ns = last_ns;
        if in_order && std::mem::take(&mut self.answers_lost) {
            let before = self.waiting.len();
            self.waiting.retain(|_, w| w.sequence > waiting.sequence);
            output.anomaly(Anomaly::Unanswered, (before - self.waiting.len()) as u64);
        }
    }

    /// Answers may have passed unseen: with the next one that is seen, older requests are given up.
    pub fn answers_lost(&mut self) {
        self.answers_lost = true;
    }

    /// Notes something of every request in flight.
    pub fn each(&mut self, note: impl FnMut(&mut Waiting<T>)) {
        self.waiting.values_mut().for_each(note);
    }

    /// Whether there is one such request in flight.
    pub fn any(&self, is: impl Fn(&Waiting<T>) -> bool) -> bool {
        self.waiting.values().any(is)
    }

    /// Lets go of the requests for which `keep` is false, as unanswered.
    pub fn retain(&mut self, keep: impl Fn(u32, &Waiting<T>) -> bool, output: &mut Output) {
        let before = self.waiting.len();
        self.waiting.retain(|id, waiting| keep(*id, waiting));
        output.anomaly(Anomaly::Unanswered, (before - self.waiting.len()) as u64);
    }

    /// Lets go of everything.
    pub fn give_up(&mut self, output: &mut Output) {
        output.anomaly(Anomaly::Unanswered, self.waiting.len() as u64);
        self.waiting = HashMap::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::Options;

    fn ask_three() -> (Correlated<()>, Output) {
        let mut output = Output::new(Options::default());
        let text = output.text("find");
        let mut waiting = Correlated::default();
        for id in [7, 8, 9] {
            waiting.ask(id, text, u64::from(id), (), &mut output);
        }
        (waiting, output)
    }

    #[test]
    fn answers_find_their_request_in_any_order() {
        let (mut waiting, mut output) = ask_three();
        waiting.answer(9, 20, 21, Outcome::default(), false, &mut output);
        waiting.answer(7, 30, 31, Outcome::default(), false, &mut output);
        waiting.answer(1, 40, 41, Outcome::default(), false, &mut output);
        let times = output.exchanges.iter();
        let times: Vec<_> = times
            .map(|e| (e.started_ns, e.first_byte_ns, e.last_byte_ns))
            .collect();
        assert_eq!(times, [(9, 20, 21), (7, 30, 31)]);
        assert_eq!(
            (waiting.len(), &output.anomalies[..]),
            (1, &[(Anomaly::Orphan, 1)][..])
        );
    }

    #[test]
    fn after_lost_answers_an_ordered_one_gives_up_what_is_older_and_nothing_newer() {
        let (mut waiting, mut output) = ask_three();
        waiting.answers_lost();
        waiting.answer(8, 20, 21, Outcome::default(), true, &mut output);
        assert_eq!(output.anomalies, [(Anomaly::Unanswered, 1)]);
        waiting.answer(9, 30, 31, Outcome::default(), true, &mut output);
        assert_eq!(output.exchanges[1].queued_ns, 12);
        assert!(waiting.is_empty());
    }

    #[test]
    fn an_id_used_again_gives_up_the_request_before() {
        let (mut waiting, mut output) = ask_three();
        let text = output.text("find");
        waiting.ask(8, text, 50, (), &mut output);
        assert_eq!(output.anomalies, [(Anomaly::Unanswered, 1)]);
        waiting.answer(8, 60, 61, Outcome::default(), false, &mut output);
        assert_eq!(output.exchanges[0].started_ns, 50);
    }
}
