//! Exchanges of a window by statement: count, errors, and histograms of what they took.

use std::collections::{BTreeMap, HashMap};

use hdrhistogram::Histogram;

use super::{
    Exchange, Output, Protocol, TextId,
    conversation::{Conversation, Run},
    requests::Served,
};
use crate::{drain::StatementFact, model::Latency};

/// Statements kept apart in a window; the others of a connection share one row.
const MAX_STATEMENTS: usize = 2000;
/// Texts whose place a connection remembers.
const MAX_KNOWN: usize = 32;
/// Exchanges of one text, one after the other, that count as a run.
const MIN_RUN: u64 = 5;
/// A pause that ends a run: what comes after it belongs to another piece of work.
const RUN_PAUSE_NS: u64 = 50_000_000;

/// What statements are kept apart by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub tgid: u32,
    pub protocol: Protocol,
    pub client: bool,
    /// Of [`super::connections::Connections::peers`].
    pub peer: u32,
    pub text: TextId,
}

/// A histogram of nanoseconds with two significant digits: 1 %.
struct Times {
    histogram: Histogram<u32>,
    /// What was added last, so many times: not in the histogram yet. Most often nothing was queued,
    /// and in a pipeline all took the same time; an entry costs some 15 ns.
    last: (u64, u32),
    sum_ns: u64,
    max_ns: u64,
}

impl Times {
    fn new() -> Option<Times> {
        let mut histogram = Histogram::new(2).ok()?;
        histogram.auto(true);
        Some(Times {
            histogram,
            last: (0, 0),
            sum_ns: 0,
            max_ns: 0,
        })
    }

    fn add(&mut self, ns: u64, times: u32) {
        self.sum_ns += ns * u64::from(times);
        match self.last.1.checked_add(times) {
            Some(sum) if self.last.0 == ns => self.last.1 = sum,
            _ => {
                self.enter();
                self.last = (ns, times);
            }
        }
    }

    fn enter(&mut self) {
        let (ns, times) = std::mem::take(&mut self.last);
        if times > 0 {
            // Grows as needed, and has room for every u64: it cannot refuse.
            let _ = self.histogram.record_n(ns, times);
            self.max_ns = self.max_ns.max(ns);
        }
    }

    fn merge(&mut self, other: &mut Times) {
        other.enter();
        // As in `enter`.
        let _ = self.histogram.add(&other.histogram);
        self.sum_ns += other.sum_ns;
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    fn summary(&mut self) -> Latency {
        self.enter();
        let at = |q| self.histogram.value_at_quantile(q).min(self.max_ns);
        Latency {
            count: self.histogram.len(),
            sum_ns: self.sum_ns,
            p50_ns: at(0.50),
            p90_ns: at(0.90),
            p95_ns: at(0.95),
            p99_ns: at(0.99),
            max_ns: self.max_ns,
        }
    }
}

struct Statement {
    key: Key,
    exchanges: u64,
    latency: Times,
    first_byte: Times,
    queued: Times,
    errors: BTreeMap<TextId, u64>,
    hits: u64,
    misses: u64,
    runs: u64,
    run_exchanges: u64,
    longest_run: u64,
    led_by: Option<TextId>,
}

/// Whether two exchanges differ in nothing but what they found. Where clocks say that they ended before
/// they began, a run might end between them.
fn are_alike(a: &Exchange, b: &Exchange) -> bool {
    a.text == b.text
        && a.started_ns == b.started_ns
        && a.first_byte_ns == b.first_byte_ns
        && a.last_byte_ns == b.last_byte_ns
        && a.queued_ns == b.queued_ns
        && a.error == b.error
        && a.started_ns <= a.last_byte_ns
}

/// The statements of a window.
#[derive(Default)]
pub struct Statements {
    rows: Vec<Statement>,
    places: HashMap<Key, usize>,
    /// Raised with each window: places that connections remember are then void.
    generation: u64,
    /// Exchanges that could not be kept.
    pub dropped: u64,
}

impl Statements {
    /// Adds what a connection just gave.
    pub fn add(
        &mut self,
        conversation: &mut Conversation,
        key_of: impl Fn(TextId) -> Key,
        exchanges: &[Exchange],
    ) {
        // Answers to a pipeline come in one piece and take the same time, all but the first: one
        // entry for all of them, where sixteen took a third of the time of their decoding.
        for alike in exchanges.chunk_by(are_alike) {
            let (exchange, times) = (&alike[0], alike.len() as u32);
            conversation.exchanges += u64::from(times);
            let Some(place) = self.place(conversation, &key_of, exchange.text) else {
                self.dropped += u64::from(times);
                continue;
            };
            let row = &mut self.rows[place];
            row.exchanges += u64::from(times);
            row.latency.add(exchange.latency_ns(), times);
            let first_byte_ns = exchange.first_byte_ns.saturating_sub(exchange.started_ns);
            row.first_byte.add(first_byte_ns, times);
            row.queued.add(exchange.queued_ns, times);
            if let Some(error) = exchange.error {
                *row.errors.entry(error).or_default() += u64::from(times);
            }
            for exchange in alike {
                row.hits += u64::from(exchange.hits);
                row.misses += u64::from(exchange.misses);
            }
            self.run(conversation, &key_of, exchange, times);
        }
    }

    fn place(
        &mut self,
        conversation: &mut Conversation,
        key_of: &impl Fn(TextId) -> Key,
        text: TextId,
    ) -> Option<usize> {
        if conversation.known_in != self.generation {
            conversation.known.clear();
            conversation.known_in = self.generation;
        }
        if let Some((_, place)) = conversation.known.iter().find(|(t, _)| *t == text) {
            return Some(*place);
        }
        let place = self.row(key_of(text))?;
        if conversation.known.len() >= MAX_KNOWN {
            conversation.known.clear();
        }
        conversation.known.push((text, place));
        Some(place)
    }

    fn row(&mut self, key: Key) -> Option<usize> {
        if let Some(place) = self.places.get(&key) {
            return Some(*place);
        }
        let key = if self.rows.len() >= MAX_STATEMENTS {
            Key {
                text: super::output::OTHER_TEXT,
                ..key
            }
        } else {
            key
        };
        if let Some(place) = self.places.get(&key) {
            return Some(*place);
        }
        let place = self.rows.len();
        self.rows.push(Statement {
            key: key.clone(),
            exchanges: 0,
            latency: Times::new()?,
            first_byte: Times::new()?,
            queued: Times::new()?,
            errors: BTreeMap::new(),
            hits: 0,
            misses: 0,
            runs: 0,
            run_exchanges: 0,
            longest_run: 0,
            led_by: None,
        });
        self.places.insert(key, place);
        Some(place)
    }

    /// Follows runs of one text, here of so many exchanges that are alike: many small statements
    /// where one would do.
    fn run(
        &mut self,
        conversation: &mut Conversation,
        key_of: &impl Fn(TextId) -> Key,
        exchange: &Exchange,
        times: u32,
    ) {
        let run = conversation.run;
        let goes_on = run.text == Some(exchange.text)
            && exchange.started_ns.saturating_sub(run.last_ns) < RUN_PAUSE_NS;
        if goes_on {
            conversation.run.length += u64::from(times);
        } else {
            self.end_run(conversation, key_of);
            let pause = exchange.started_ns.saturating_sub(run.last_ns) >= RUN_PAUSE_NS;
            conversation.run = Run {
                text: Some(exchange.text),
                length: times.into(),
                // What came before a pause was other work.
                led_by: if pause { None } else { run.text },
                last_ns: 0,
            };
        }
        conversation.run.last_ns = exchange.last_byte_ns;
    }

    /// Notes a run that ended. One that nothing led to, such as a loop of one statement, is the
    /// program's work and no sign of a missing join.
    fn end_run(&mut self, conversation: &mut Conversation, key_of: &impl Fn(TextId) -> Key) {
        let run = conversation.run;
        let (Some(text), Some(led_by)) = (run.text, run.led_by) else {
            return;
        };
        if run.length < MIN_RUN {
            return;
        }
        if let Some(place) = self.place(conversation, key_of, text) {
            let row = &mut self.rows[place];
            row.runs += 1;
            row.run_exchanges += run.length;
            row.longest_run = row.longest_run.max(run.length);
            row.led_by = Some(led_by);
        }
    }

    /// What was asked of the target as a server, whoever asked.
    pub fn served(&mut self) -> Vec<Served> {
        let mut places: HashMap<(u32, Protocol, TextId), usize> = HashMap::new();
        let mut sums: Vec<(Times, Served)> = Vec::new();
        let rows = self.rows.iter_mut();
        for row in rows.filter(|row| !row.key.client && row.exchanges > 0) {
            let key = (row.key.tgid, row.key.protocol, row.key.text);
            let place = *places.entry(key).or_insert(sums.len());
            if place == sums.len() {
                let Some(times) = Times::new() else { continue };
                sums.push((times, Served::of(key)));
            }
            let (times, served) = &mut sums[place];
            times.merge(&mut row.latency);
            for (error, n) in &row.errors {
                *served.errors.entry(*error).or_default() += n;
            }
        }
        let told = sums.into_iter().map(|(mut times, served)| Served {
            latency: times.summary(),
            ..served
        });
        told.collect()
    }

    /// Ends a window; the rows in an order that depends on nothing but their content.
    pub fn window(&mut self, output: &Output, peer: impl Fn(u32) -> String) -> Vec<StatementFact> {
        self.generation += 1;
        self.places.clear();
        let text = |id| output.text_of(id).to_owned();
        let mut facts: Vec<StatementFact> = std::mem::take(&mut self.rows)
            .into_iter()
            .filter(|row| row.exchanges > 0)
            .map(|mut row| StatementFact {
                pid: row.key.tgid,
                protocol: row.key.protocol.name().to_owned(),
                client: row.key.client,
                peer: peer(row.key.peer),
                text: text(row.key.text),
                latency: row.latency.summary(),
                first_byte: row.first_byte.summary(),
                queued: row.queued.summary(),
                errors: row.errors.iter().map(|(id, n)| (text(*id), *n)).collect(),
                hits: row.hits,
                misses: row.misses,
                runs: row.runs,
                run_exchanges: row.run_exchanges,
                longest_run: row.longest_run,
                led_by: row.led_by.map(text),
            })
            .collect();
        facts.sort_by(|a, b| {
            (b.latency.sum_ns, a.pid, &a.protocol, &a.peer, &a.text).cmp(&(
                a.latency.sum_ns,
                b.pid,
                &b.protocol,
                &b.peer,
                &b.text,
            ))
        });
        facts
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::decode::{Joined, Options};

    fn exchange(
        (text, started_ns, took, first, queued, error): (u32, u64, i64, u64, u64, bool),
    ) -> Exchange {
        let last_byte_ns = started_ns.saturating_add_signed(took);
        Exchange {
            text: TextId(text),
            started_ns,
            first_byte_ns: last_byte_ns.saturating_sub(first),
            last_byte_ns,
            queued_ns: queued,
            error: error.then_some(TextId(3)),
            hits: queued as u32,
            misses: 1,
            trace: None,
        }
    }

    /// What a window tells of exchanges that come in parts of these lengths.
    fn window(exchanges: &[Exchange], part: usize) -> String {
        let (mut statements, output) = (Statements::default(), Output::new(Options::default()));
        let mut conversation = Conversation::new(true, Joined::AtStart);
        let key = |text| Key {
            tgid: 1,
            protocol: Protocol::Redis,
            client: true,
            peer: 0,
            text,
        };
        for part in exchanges.chunks(part) {
            statements.add(&mut conversation, key, part);
        }
        assert_eq!(conversation.exchanges, exchanges.len() as u64);
        let facts = statements.window(&output, |_| String::new());
        // One text has one row; the test's own sum is the truth of its count.
        let count: u64 = facts.iter().map(|f| f.latency.count).sum();
        assert_eq!(count, exchanges.len() as u64);
        format!("{facts:?}")
    }

    proptest! {
        #[test]
        fn exchanges_that_are_alike_count_as_if_they_came_one_by_one(
            exchanges in proptest::collection::vec(
                (0u32..3, prop_oneof![Just(5u64), Just(7_000_000_000u64)], prop_oneof![
                    Just(1000i64), Just(-6_000_000_000i64),
                ], 0u64..2, 0u64..2, any::<bool>()),
                1..60,
            ),
        ) {
            let exchanges: Vec<Exchange> = exchanges.into_iter().map(exchange).collect();
            let one_by_one = window(&exchanges, 1);
            prop_assert_eq!(window(&exchanges, exchanges.len()), one_by_one.clone());
            prop_assert_eq!(window(&exchanges, 7), one_by_one);
        }

        #[test]
        fn times_are_those_of_a_histogram_that_takes_each(
            values in proptest::collection::vec((0u64..4, prop_oneof![0u64..3, any::<u32>().prop_map(u64::from)]), 1..60),
        ) {
            let mut times = Times::new().unwrap();
            let mut histogram = Histogram::<u32>::new(2).unwrap();
            histogram.auto(true);
            for (n, ns) in &values {
                times.add(*ns, *n as u32);
                (0..*n).for_each(|_| histogram.record(*ns).unwrap());
            }
            let added = values.iter().filter(|(n, _)| *n > 0);
            let max_ns = added.map(|(_, ns)| *ns).max().unwrap_or(0);
            let summary = times.summary();
            prop_assert_eq!(summary.count, histogram.len());
            prop_assert_eq!(summary.sum_ns, values.iter().map(|(n, ns)| n * ns).sum::<u64>());
            prop_assert_eq!(summary.max_ns, max_ns);
            for (q, told) in [(0.5, summary.p50_ns), (0.9, summary.p90_ns), (0.95, summary.p95_ns), (0.99, summary.p99_ns)] {
                prop_assert_eq!(told, histogram.value_at_quantile(q).min(max_ns));
            }
        }
    }
}
