//! Requests that the target answers as a server, each with a ledger of its own where one thread
//! answered it and did nothing else meanwhile.
//!
//! The kernel side tells the account of a thread in front of the bytes it moves on a server's
//! connection. The account at the last byte of an answer less that at the first byte of its request
//! is where the time went, and sums to the latency. That is the request's own ledger only if the
//! thread served nothing else in between: [`Reason`] has what speaks against it, and nothing is
//! divided or guessed.

mod calls;
mod routes;
#[cfg(test)]
mod tests;

use perf_ebpf_common::{class, signals::requests::ThreadTotals};
use rustc_hash::FxHashMap;

use super::{Exchange, Protocol};
use crate::signals::ledger::Totals;

pub use self::{
    calls::{Calls, Peer},
    routes::{Routes, Served},
};

/// For how long after one thread finished what another had begun, requests of the process are not
/// attributed: a runtime that moves work from thread to thread may have had a thread work for a request
/// whose bytes it never touched.
const HANDED_OVER_NS: u64 = 10_000_000_000;
/// A thread that moved nothing for so long is forgotten.
const FORGET_NS: u64 = 60_000_000_000;
/// A ledger may be off its request's latency by a hundredth and this much.
const OFF_NS: u64 = 50_000;

/// Why a request has no ledger of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Its first byte or the thread's account was not seen.
    NotSeen,
    /// Several requests were outstanding on its connection.
    Pipelined,
    /// Threads of the process pass requests on to each other.
    HandedOver,
    /// The thread moved bytes of other requests, or had read others that were not answered.
    Interleaved,
    /// The account does not sum to the latency.
    Residual,
}

impl Reason {
    pub const ALL: [Reason; 5] = [
        Reason::NotSeen,
        Reason::Pipelined,
        Reason::HandedOver,
        Reason::Interleaved,
        Reason::Residual,
    ];

    /// Name in `requests` and in `coverage.requests`.
    pub const fn name(self) -> &'static str {
        match self {
            Reason::NotSeen => "not_seen",
            Reason::Pipelined => "pipelined",
            Reason::HandedOver => "handed_over",
            Reason::Interleaved => "interleaved",
            Reason::Residual => "residual",
        }
    }
}

/// Bytes of a connection whose server the target is.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub connection: u64,
    pub tid: u32,
    pub tgid: u32,
    pub at_ns: u64,
    /// Which stay on the CPU the thread was in, 0 where that is not known.
    pub account_ns: u64,
    pub sent: bool,
    /// Whether requests are without their whole answer once these bytes have passed; where the protocol is
    /// not known, they are behind what was received and not behind what was sent.
    pub in_flight: bool,
    /// They were received and begin no request: each message in them was whole and is never answered.
    pub asks_nothing: bool,
}

/// An account at an instant, and which life of the thread it is of.
type Account = (u64, Totals);

/// A request that is read or being answered.
struct Begun {
    at_ns: u64,
    tid: u32,
    account: Option<Account>,
    /// The thread had no other request that was not answered.
    alone: bool,
    handed_over: bool,
    pipelined: bool,
}

/// What is known of a server's connection.
#[derive(Default)]
pub struct Serving {
    begun: Option<Begun>,
    /// Something was sent since.
    answered: bool,
    in_flight: bool,
    /// The thread among whose open connections it is.
    open_on: Option<u32>,
}

#[derive(Default)]
struct Thread {
    told: Option<ThreadTotals>,
    /// The connection it moved bytes of last, and since when it moved none of another.
    connection: u64,
    since_ns: u64,
    /// Connections with a request that it read and that is not answered.
    open: u32,
    /// The connection of the request it read last, when, and what it asked others for since.
    serves: Option<(u64, u64)>,
    calls: Calls,
    last_ns: u64,
}

/// Exchanges that a process ended as a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    pub all: u64,
    /// Of them, those of no request: by a thread that served none then, or on a connection that several
    /// threads share.
    pub elsewhere: u64,
}

/// See the module.
#[derive(Default)]
pub struct Requests {
    threads: FxHashMap<u32, Thread>,
    /// When threads of a process last passed on a request.
    handed_over: FxHashMap<u32, u64>,
    /// What processes asked others for in the window.
    asked: FxHashMap<u32, Asked>,
    pub routes: Routes,
}

impl Thread {
    /// Its account when it moved a piece.
    fn at(&self, piece: &Piece) -> Option<Account> {
        let told = self.told.as_ref()?;
        if told.since_ns != piece.account_ns || piece.at_ns < told.since_ns {
            return None;
        }
        let mut totals = Totals {
            spent_ns: told.spent_ns,
            unaccounted_ns: told.unaccounted_ns,
        };
        // It runs: it makes the call that moves the bytes.
        totals.spent_ns[class::CPU as usize] += piece.at_ns - told.since_ns;
        Some((told.start_ns, totals))
    }
}

impl Requests {
    /// The account of a thread.
    pub fn told(&mut self, totals: &ThreadTotals) {
        let thread = self.threads.entry(totals.tid).or_default();
        thread.last_ns = totals.header.at_ns;
        thread.told = Some(*totals);
    }

    /// Bytes of a server's connection, with the exchanges that they ended.
    pub fn served(
        &mut self,
        serving: &mut Serving,
        piece: &Piece,
        protocol: Option<Protocol>,
        exchanges: &[Exchange],
    ) {
        self.passed(serving, piece);
        let Some(protocol) = protocol.filter(|_| !exchanges.is_empty()) else {
            return;
        };
        if let [exchange] = exchanges {
            let ledger = self.ledger(serving, piece, exchange);
            let calls = self.calls_of(piece, ledger.is_ok());
            let route = (piece.tgid, protocol, exchange.text);
            self.routes.add(route, piece.tid, exchange, ledger, calls);
        } else {
            let of = (piece.tgid, protocol);
            self.routes
                .refuse(of, piece.tid, exchanges, Reason::Pipelined);
        }
        match &mut serving.begun {
            Some(begun) if piece.in_flight => begun.pipelined = true,
            begun => *begun = None,
        }
    }

    /// Exchanges that ended otherwise than by bytes: with their connection.
    pub fn ended(&mut self, tgid: u32, protocol: Protocol, exchanges: &[Exchange]) {
        let of = (tgid, protocol);
        self.routes.refuse(of, 0, exchanges, Reason::NotSeen);
    }

    /// Follows which requests a thread has begun and not answered.
    fn passed(&mut self, serving: &mut Serving, piece: &Piece) {
        let thread = self.threads.entry(piece.tid).or_default();
        thread.last_ns = piece.at_ns;
        if thread.connection != piece.connection {
            (thread.connection, thread.since_ns) = (piece.connection, piece.at_ns);
        }
        let at_rest = !serving.in_flight && (serving.begun.is_none() || serving.answered);
        if piece.asks_nothing && !serving.in_flight {
            serving.begun = None;
        } else if at_rest && !piece.sent {
            serving.begun = Some(Begun {
                at_ns: piece.at_ns,
                tid: piece.tid,
                account: thread.at(piece),
                alone: thread.open == 0,
                handed_over: false,
                pipelined: false,
            });
            serving.answered = false;
            thread.serves = Some((piece.connection, piece.at_ns));
            thread.calls.clear();
        } else if !at_rest
            && let Some(begun) = &mut serving.begun
            && begun.tid != piece.tid
        {
            begun.handed_over = true;
            self.handed_over.insert(piece.tgid, piece.at_ns);
        }
        serving.answered |= piece.sent;
        serving.in_flight = piece.in_flight;
        if !piece.in_flight {
            self.answered(serving);
        } else if serving.open_on.is_none()
            && let Some(thread) = self.threads.get_mut(&piece.tid)
        {
            thread.open += 1;
            serving.open_on = Some(piece.tid);
        }
    }

    /// Nothing is outstanding on a connection any more, or it is gone.
    pub fn answered(&mut self, serving: &mut Serving) {
        if let Some(tid) = serving.open_on.take()
            && let Some(thread) = self.threads.get_mut(&tid)
        {
            thread.open = thread.open.saturating_sub(1);
        }
    }

    /// The ledger of a request whose answer ended with a piece.
    fn ledger(
        &self,
        serving: &Serving,
        piece: &Piece,
        exchange: &Exchange,
    ) -> Result<Totals, Reason> {
        let begun = serving.begun.as_ref().ok_or(Reason::NotSeen)?;
        if begun.pipelined || piece.in_flight || exchange.queued_ns > 0 {
            return Err(Reason::Pipelined);
        }
        if begun.at_ns != exchange.started_ns || piece.at_ns != exchange.last_byte_ns {
            return Err(Reason::NotSeen);
        }
        let handed_over = self.handed_over.get(&piece.tgid);
        if begun.handed_over || handed_over.is_some_and(|at| at + HANDED_OVER_NS > begun.at_ns) {
            return Err(Reason::HandedOver);
        }
        let thread = self.threads.get(&piece.tid).ok_or(Reason::NotSeen)?;
        if !begun.alone || thread.since_ns > begun.at_ns {
            return Err(Reason::Interleaved);
        }
        match (&begun.account, thread.at(piece)) {
            (Some((life, before)), Some((same, now))) if *life == same => {
                let ledger = now.since(before);
                let off = ledger.classed_ns().abs_diff(exchange.latency_ns());
                match off > exchange.latency_ns() / 100 + OFF_NS {
                    true => Err(Reason::Residual),
                    false => Ok(ledger),
                }
            }
            _ => Err(Reason::NotSeen),
        }
    }

    /// What the thread asked others for since it read the request that a piece ended the answer of.
    fn calls_of(&mut self, piece: &Piece, attributed: bool) -> Calls {
        match self.threads.get_mut(&piece.tid) {
            Some(thread) if attributed => {
                thread.serves = None;
                std::mem::take(&mut thread.calls)
            }
            _ => Calls::default(),
        }
    }

    /// Exchanges that a thread of a process ended as a client; `alone`: it moved all bytes of the connection
    /// itself.
    pub fn called(
        &mut self,
        (tid, tgid): (u32, u32),
        alone: bool,
        peer: Peer,
        exchanges: &[Exchange],
    ) {
        let asked = self.asked.entry(tgid).or_default();
        asked.all += exchanges.len() as u64;
        let thread = self.threads.get_mut(&tid).filter(|_| alone);
        let serving = thread.and_then(|thread| Some((thread.serves?.1, &mut thread.calls)));
        let Some((since_ns, calls)) = serving else {
            asked.elsewhere += exchanges.len() as u64;
            return;
        };
        for exchange in exchanges {
            match exchange.started_ns >= since_ns {
                true => calls.add(peer, exchange),
                false => asked.elsewhere += 1,
            }
        }
    }

    /// What processes that answered requests in the window asked others for, together.
    pub fn asked_by(&mut self, served: &[Served]) -> Asked {
        let mut sum = Asked::default();
        for (tgid, asked) in self.asked.drain() {
            if served.iter().any(|served| served.key.0 == tgid) {
                sum.all += asked.all;
                sum.elsewhere += asked.elsewhere;
            }
        }
        sum
    }

    /// Forgets threads that have done nothing for long.
    pub fn forget(&mut self, now_ns: u64) {
        self.threads
            .retain(|_, t| t.open > 0 || now_ns.saturating_sub(t.last_ns) < FORGET_NS);
        self.handed_over
            .retain(|_, at| now_ns.saturating_sub(*at) < FORGET_NS);
    }
}
