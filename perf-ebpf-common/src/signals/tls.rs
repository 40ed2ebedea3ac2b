//! Plaintext of OpenSSL connections, taken at the return of its read and write functions.

use crate::wire;

/// What a call of thread `t` is doing; part of [`super::ledger::ThreadState`].
pub mod call {
    pub const NONE: u8 = 0;
    pub const WRITE: u8 = 1;
    pub const READ: u8 = 2;
}

/// A read or write under way in a thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TlsCall {
    /// The `SSL *`.
    pub ssl: u64,
    pub buffer: u64,
    /// Where an `_ex` function puts how many bytes it moved; 0 for those that return it.
    pub length_at: u64,
    /// The last socket transfer inside the call; 0 where there was none.
    pub moved_ns: u64,
    /// [`super::ledger::ThreadState::since_ns`] at that transfer.
    pub account_ns: u64,
}
wire!(TlsCall => 40);

/// Key of the map `tls_streams`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsKey {
    pub ssl: u64,
    pub tgid: u32,
    pub pad: u32,
}
wire!(TlsKey => 16);

/// Value of the map `tls_streams`: the socket an `SSL *` was last seen to use, and the plaintext
/// bytes it carried.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TlsStream {
    pub sk: u64,
    /// [`super::sockets::Connection::id`].
    pub id: u64,
    pub tx_bytes: u64,
    pub rx_bytes: u64,
}
wire!(TlsStream => 32);
