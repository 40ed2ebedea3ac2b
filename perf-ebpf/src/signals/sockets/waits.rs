//! What a client waits for: on which connections a thread asked, whether more of an answer is to come, and
//! the ledger's class of that.
//!
//! A wait for one socket names it. A wait for anything at all (poll, epoll) is put down to a connection on which
//! the thread asked and was not answered; and where none is, to the one whose bytes end it, if they turn out to
//! be what is left of an answer and not sent unasked.

use aya_ebpf::{macros::map, maps::HashMap};
use perf_ebpf_common::{
    class, fd,
    signals::{
        ledger::{ASKED, ThreadState},
        sockets::{Connection, Told},
    },
};

use super::{CONNECTIONS, is_client};
use crate::{prelude::*, signals::ledger};

/// What is known of a connection's protocol, by [`Connection::id`]: user space fills it.
#[map(name = "protocols")]
static PROTOCOLS: HashMap<u64, Told> = HashMap::with_max_entries(16384, 0);

/// This end sent: as a client it now waits for an answer.
#[inline(always)]
pub fn sent(t: &mut ThreadState, c: &mut Connection, sk: u64, now: u64) {
    if !is_client(c.kind) {
        return;
    }
    c.requested_ns = now;
    if c.asked_ns != 0 {
        return;
    }
    c.asked_ns = now;
    if c.class == 0 {
        told(c);
    }
    // By the connection, so that one used again and again stays in its own slot; inode numbers of
    // sockets opened one after another differ in their low bits. One that still waits is passed over
    // while there is room beside it, so that a slow answer is not forgotten for many fast ones.
    let own = c.id as usize;
    for step in 0..ASKED {
        let slot = opaque(own + step) & (ASKED - 1);
        let other = t.asked[slot];
        if other == 0 || other == sk || waiting(other).is_none() {
            t.asked[slot] = sk;
            return;
        }
    }
    t.asked[own & (ASKED - 1)] = sk;
}

/// This end received as a client. A wait for anything that ended just before was one for this.
#[inline(always)]
pub fn answered(t: &mut ThreadState, c: &mut Connection, sk: u64) {
    let asked_ns = c.asked_ns;
    c.asked_ns = 0;
    t.answered_sk = sk;
    if t.idle_ns == 0 {
        return;
    }
    // Another thread may have asked while this one waited: from then on it was a wait for this.
    let since_ns = if asked_ns != 0 {
        asked_ns
    } else if goes_on(c) {
        c.requested_ns
    } else {
        return;
    };
    ledger::was_for(t, c, since_ns);
}

/// How soon user space tells of a connection: it looks ten times a second, and says something when the
/// connection's last request is from before the look before.
const TOLD_WITHIN_NS: u64 = 250_000_000;

/// Whether what comes on a connection goes on with an answer, and is not sent unasked: as user space knows, if it
/// was told after the last request. Until it could be, an answer is the likelier.
#[inline(always)]
fn goes_on(c: &mut Connection) -> bool {
    match told(c) {
        Some(told) => told.in_flight != 0 || told.at_ns < c.requested_ns,
        None => c.requested_ns != 0 && c.last_ns - c.first_ns < TOLD_WITHIN_NS,
    }
}

/// What user space found out of a connection.
#[inline(always)]
fn told(c: &mut Connection) -> Option<&'static Told> {
    // SAFETY: a torn one is wrong for one wait.
    let told = unsafe { PROTOCOLS.get(&c.id) }?;
    c.class = told.class;
    Some(told)
}

/// A connection is gone.
#[inline(always)]
pub fn forget(id: &u64) {
    let _ = PROTOCOLS.remove(id);
}

/// The connection on which thread `t` received last, if more of an answer was to come all the time it waited.
#[inline(always)]
pub fn unfinished(t: &ThreadState) -> Option<&'static Connection> {
    if t.answered_sk == 0 {
        return None;
    }
    let c = CONNECTIONS.get_ptr_mut(&t.answered_sk)?;
    // SAFETY: a live map value.
    let c = unsafe { &mut *c };
    let told = told(c)?;
    let waits = told.in_flight != 0 && told.at_ns >= c.last_ns && c.requested_ns <= t.since_ns;
    waits.then_some(c)
}

/// The connection of a socket on which a request is without an answer.
#[inline(always)]
fn waiting(sk: u64) -> Option<&'static Connection> {
    let c = CONNECTIONS.get_ptr(&sk)?;
    // SAFETY: a live map value.
    let c = unsafe { &*c };
    (c.asked_ns != 0).then_some(c)
}

/// A connection on which thread `t` waits for an answer: what a wait for several things at once is
/// then put down to.
#[inline(always)]
pub fn awaited(t: &mut ThreadState) -> Option<&'static Connection> {
    for slot in 0..ASKED {
        let sk = t.asked[slot];
        if sk == 0 {
            continue;
        }
        if let Some(c) = waiting(sk) {
            return Some(c);
        }
        t.asked[slot] = 0;
    }
    None
}

/// Ledger class of waiting for the peer of a socket: its protocol's, where that is known.
#[inline(always)]
pub fn class_of(sk: u64, otherwise: u8) -> u8 {
    if sk == 0 {
        return otherwise;
    }
    match CONNECTIONS.get_ptr(&sk) {
        // SAFETY: a live map value.
        Some(c) => class_or(unsafe { (*c).class }, otherwise),
        None => otherwise,
    }
}

#[inline(always)]
fn class_or(known: u8, otherwise: u8) -> u8 {
    if known == 0 || known as usize >= class::COUNT {
        otherwise
    } else {
        known
    }
}

/// Class of waiting for a connection's peer.
#[inline(always)]
pub fn class_for(c: &Connection) -> u8 {
    let otherwise = if c.kind == fd::UNIX_CLIENT {
        class::NET_UNIX
    } else {
        class::NET_TCP
    };
    class_or(c.class, otherwise)
}
