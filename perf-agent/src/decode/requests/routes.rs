//! The requests of a window by route or statement.

use std::collections::BTreeMap;

use perf_ebpf_common::CLASS_NAMES;
use rustc_hash::FxHashMap;

use super::{
    super::{Exchange, Output, Protocol, TextId, TraceId, output::OTHER_TEXT},
    Calls, Reason,
};
use crate::{
    drain::RequestFact,
    model::{Latency, RequestLedger, RequestRow, SlowRequest},
    signals::ledger::Totals,
};

/// Routes kept apart in a window; the others of a protocol share one row.
const MAX_ROUTES: usize = 2000;
/// Requests of a route that are told of one by one.
const SLOWEST: usize = 3;

/// Process, protocol, text.
pub type Key = (u32, Protocol, TextId);

/// One of the slowest requests.
struct Slow {
    tid: u32,
    started_ns: u64,
    latency_ns: u64,
    error: Option<TextId>,
    trace: Option<TraceId>,
    ledger: Result<Totals, Reason>,
    calls: Calls,
}

#[derive(Default)]
struct Route {
    attributed: u64,
    /// By the reason's place in [`Reason::ALL`].
    unattributed: [u64; Reason::ALL.len()],
    latency_ns: u64,
    totals: Totals,
    calls: Calls,
    /// Slowest first.
    slowest: Vec<Slow>,
}

/// All requests of a window of one route, as they are counted for `statements`.
pub struct Served {
    pub key: Key,
    pub latency: Latency,
    pub errors: BTreeMap<TextId, u64>,
}

impl Served {
    pub fn of(key: Key) -> Served {
        Served {
            key,
            latency: Latency::default(),
            errors: BTreeMap::new(),
        }
    }
}

/// See the module.
#[derive(Default)]
pub struct Routes {
    rows: FxHashMap<Key, Route>,
}

impl Routes {
    /// Adds a request that `tid` ended the answer of.
    pub fn add(
        &mut self,
        key: Key,
        tid: u32,
        exchange: &Exchange,
        ledger: Result<Totals, Reason>,
        calls: Calls,
    ) {
        let route = self.route(key);
        match &ledger {
            Ok(totals) => {
                route.attributed += 1;
                route.latency_ns += exchange.latency_ns();
                route.totals.add(totals);
                route.calls.merge(&calls);
            }
            Err(reason) => route.unattributed[*reason as usize] += 1,
        }
        if route.is_slow(exchange) {
            route.note(tid, exchange, ledger, calls);
        }
    }

    /// Adds requests of a process that have no ledger of their own.
    pub fn refuse(
        &mut self,
        (tgid, protocol): (u32, Protocol),
        tid: u32,
        exchanges: &[Exchange],
        reason: Reason,
    ) {
        for alike in exchanges.chunk_by(|a, b| a.text == b.text) {
            let route = self.route((tgid, protocol, alike[0].text));
            route.unattributed[reason as usize] += alike.len() as u64;
            for exchange in alike {
                // Of a pipeline nearly none is: not worth the rest of it 16 times in a row.
                if route.is_slow(exchange) {
                    route.note(tid, exchange, Err(reason), Calls::default());
                }
            }
        }
    }

    #[cfg(test)]
    pub fn attributed(&self) -> u64 {
        self.rows.values().map(|route| route.attributed).sum()
    }

    fn route(&mut self, key: Key) -> &mut Route {
        let (tgid, protocol, _) = key;
        let full = self.rows.len() >= MAX_ROUTES && !self.rows.contains_key(&key);
        let key = match full {
            true => (tgid, protocol, OTHER_TEXT),
            false => key,
        };
        self.rows.entry(key).or_default()
    }

    /// Ends a window, of which these requests were served; the longest in all first.
    pub fn window(
        &mut self,
        served: Vec<Served>,
        output: &Output,
        peer: impl Fn(u32) -> String,
    ) -> Vec<RequestFact> {
        let mut rows = std::mem::take(&mut self.rows);
        let text = |id| output.text_of(id).to_owned();
        let told = |calls: &Calls| calls.told(&peer, text);
        let mut facts: Vec<RequestFact> = served
            .into_iter()
            .map(|served| {
                let route = rows.remove(&served.key).unwrap_or_default();
                let (pid, protocol, shape) = served.key;
                let mut row = route.row(text, told);
                let shape = text(shape);
                row.fingerprint =
                    format!("{:016x}", crate::hash::fnv1a(&[protocol.name(), &shape]));
                row.protocol = protocol.name().to_owned();
                row.text = shape;
                row.count = served.latency.count;
                row.errors = served.errors.values().sum();
                row.errors_by_code = served
                    .errors
                    .iter()
                    .map(|(id, n)| (text(*id), *n))
                    .collect();
                row.latency = served.latency;
                RequestFact { pid, row }
            })
            .collect();
        facts.sort_by(|a, b| {
            let key = |f: &RequestFact| (f.pid, f.row.protocol.clone(), f.row.text.clone());
            let longest = b.row.latency.sum_ns.cmp(&a.row.latency.sum_ns);
            longest.then_with(|| key(a).cmp(&key(b)))
        });
        facts
    }
}

impl Route {
    /// Whether a request is among the slowest so far.
    fn is_slow(&self, exchange: &Exchange) -> bool {
        let least = self.slowest.get(SLOWEST - 1);
        least.is_none_or(|least| least.latency_ns < exchange.latency_ns())
    }

    /// Keeps a request that is among the slowest.
    fn note(
        &mut self,
        tid: u32,
        exchange: &Exchange,
        ledger: Result<Totals, Reason>,
        calls: Calls,
    ) {
        let latency_ns = exchange.latency_ns();
        let place = self
            .slowest
            .iter()
            .position(|slow| slow.latency_ns < latency_ns)
            .unwrap_or(self.slowest.len());
        self.slowest.truncate(SLOWEST - 1);
        let slow = Slow {
            tid,
            started_ns: exchange.started_ns,
            latency_ns,
            error: exchange.error,
            trace: exchange.trace,
            ledger,
            calls,
        };
        self.slowest.insert(place, slow);
    }

    /// Its row, but for what all requests of it have in common.
    fn row(
        &self,
        text: impl Fn(TextId) -> String,
        told: impl Fn(&Calls) -> Vec<crate::model::Downstream>,
    ) -> RequestRow {
        let slowest = self.slowest.iter().map(|slow| SlowRequest {
            started_ns: slow.started_ns,
            latency_ns: slow.latency_ns,
            tid: slow.tid,
            error: slow.error.map(&text),
            trace_id: slow.trace.map(|trace| trace.to_string()),
            unattributed: slow.ledger.err().map(|reason| reason.name().to_owned()),
            ledger: slow.ledger.ok().map(|l| ledger(&l, slow.latency_ns)),
            downstream: told(&slow.calls),
        });
        let reasons = Reason::ALL.iter().zip(self.unattributed);
        RequestRow {
            attributed: self.attributed,
            unattributed: reasons
                .filter(|(_, n)| *n > 0)
                .map(|(reason, n)| (reason.name().to_owned(), n))
                .collect(),
            ledger: ledger(&self.totals, self.latency_ns),
            downstream: told(&self.calls),
            slowest: slowest.collect(),
            ..RequestRow::default()
        }
    }
}

fn ledger(totals: &Totals, latency_ns: u64) -> RequestLedger {
    let classes = CLASS_NAMES.iter().zip(totals.spent_ns);
    RequestLedger {
        latency_ns,
        classes: classes
            .filter(|(_, ns)| *ns > 0)
            .map(|(name, ns)| ((*name).to_owned(), ns))
            .collect(),
        residual_ns: totals.unaccounted_ns,
    }
}
