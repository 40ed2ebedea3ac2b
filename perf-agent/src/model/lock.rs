//! Contended locks: who ended waits for them, and who held them meanwhile.

use serde::Serialize;

use super::{Classes, Frame};

/// A contended futex.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lock {
    /// User address of the futex word, hexadecimal.
    pub address: String,
    pub waits: u64,
    pub sum_ns: u64,
    pub max_ns: u64,
    /// Threads whose waits ended.
    pub waiters: u64,
    /// Holds while others waited, of all owners, see [`LockOwner`].
    pub holds: u64,
    pub hold_ns: u64,
    pub max_hold_ns: u64,
    /// Who ended the waits, largest first; no more than five.
    pub wakers: Vec<Waker>,
    /// The others that ended waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waker_rest: Option<WakerRest>,
    /// Who held it while others waited, longest first.
    pub owners: Vec<LockOwner>,
}

/// Who woke whom out of a lock wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Waker {
    /// 0 where a timeout, a signal or an interrupt ended the wait.
    pub waker_tid: u32,
    pub waker_comm: String,
    pub waiter_tid: u32,
    pub waiter_comm: String,
    pub count: u64,
    pub sum_ns: u64,
}

/// Those who woke others out of waits for a lock and have no row of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WakerRest {
    /// Of a thread that woke and one that waited.
    pub pairs: u64,
    pub count: u64,
    pub sum_ns: u64,
}

/// A thread that held a lock while others waited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LockOwner {
    pub owner_tid: u32,
    pub owner_comm: String,
    /// `mutex_word`, `pi_word`, `rwlock_word`: the lock's memory said so while it was held; `waker`: it
    /// let go.
    pub owner_source: String,
    /// Holds that ended with the wake-up of one who waited.
    pub holds: u64,
    /// Their time: from the owner's own wake-up out of the wait for it, or from when the first of the
    /// others began to wait, to that wake-up.
    pub hold_ns: u64,
    /// Longest since the attach.
    pub max_hold_ns: u64,
    /// What the owner did in that time: ledger classes, all of `net.*` as `net`; sums to `hold_ns`.
    /// `unknown` where who had the lock was known only when it let go.
    pub meanwhile: Classes,
    /// Where it let go, innermost first; of the places with most time.
    pub release_stack: Vec<Frame>,
    /// Class of the block at `blocked_stack`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked_class: Option<String>,
    /// Where it was blocked meanwhile, if it was for a good part of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blocked_stack: Vec<Frame>,
}
