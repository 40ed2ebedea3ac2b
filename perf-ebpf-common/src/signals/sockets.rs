//! Stream sockets of the target (TCP, Unix): one [`Connection`] each, and the bytes that pass.
//!
//! A connection is identified by its socket: the inode number of its file, as `/proc/PID/fd` and
//! `/proc/net/tcp` show it. The kernel address of the `struct sock` is only the key of the map, and
//! is reused.

use super::RecordHeader;
use crate::wire;

/// Most payload bytes of one send or receive that are captured from its beginning. Redis reads
/// 16 KiB at a time, PostgreSQL 8, MySQL 16: what they move in one call is seen whole.
pub const CAPTURE_MAX: usize = 16384;
/// Bytes captured from the end of a longer one: the end of an answer tells how it ended.
pub const TAIL_BYTES: usize = 512;
/// Buffers of a scattered send or receive that are looked at. gRPC sends up to 260 in one call, with a
/// frame's head and its payload in buffers of their own; other libraries 64 and less.
pub const IOVECS_MAX: usize = 256;

/// Which way bytes went, as the traced process sees it.
pub mod direction {
    pub const SENT: u8 = 0;
    pub const RECEIVED: u8 = 1;
}

/// Where the buffer of a system call's data is.
pub mod buffer {
    /// Not in user memory that is known from the registers (`sendfile`, `splice`, io_uring, several
    /// messages in one call): bytes are counted and not captured.
    pub const UNKNOWN: u8 = 0;
    /// Address in argument 1.
    pub const PLAIN: u8 = 1;
    /// `struct iovec` array in argument 1, its length in argument 2.
    pub const IOVEC: u8 = 2;
    /// `struct user_msghdr` in argument 1, flags in argument 2.
    pub const MSGHDR: u8 = 3;
    /// Added to [`PLAIN`] where argument 3 has `MSG_*` flags.
    pub const FLAGS_IN_ARG3: u8 = 0x80;
}

/// Value of the map `connections`, keyed by the address of the `struct sock`. Cumulative.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// Inode number of the socket.
    pub id: u64,
    /// First and last byte seen.
    pub first_ns: u64,
    pub last_ns: u64,
    pub tx_bytes: u64,
    pub rx_bytes: u64,
    /// When this end last sent and got nothing back since, 0 where it waits for nothing.
    pub asked_ns: u64,
    /// When this end, a client's, last sent.
    pub requested_ns: u64,
    /// From the first SYN to the established state; 0 where that was not seen.
    pub connect_ns: u64,
    /// Smoothed round-trip times (`tcp_sock.srtt_us`), read at a receive, once a
    /// millisecond at most.
    pub rtt_sum_us: u64,
    /// Blocked because the send buffer was full.
    pub send_stall_ns: u64,
    pub local: [u64; 2],
    /// See [`super::ledger::detail`], by `peer_kind`. A Unix connection has its name here on both ends.
    pub peer: [u64; 2],
    pub rtt_count: u32,
    pub rtt_min_us: u32,
    pub rtt_max_us: u32,
    pub retransmits: u32,
    pub resets: u32,
    pub send_stalls: u32,
    /// Process that moved the first byte.
    pub tgid: u32,
    pub local_port: u16,
    pub peer_port: u16,
    /// See [`crate::fd`].
    pub kind: u8,
    /// See [`super::ledger::detail`].
    pub peer_kind: u8,
    /// Ledger class of waiting for it, once user space knows its protocol; 0 before.
    pub class: u8,
    pub pad: u8,
    /// When the round-trip time was read last, in units of 2^20 ns.
    pub rtt_at_ms: u32,
}
wire!(Connection => 10 * 8 + 32 + 7 * 4 + 4 + 8);

/// Ring record: a connection of the target was met for the first time.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionMet {
    pub header: RecordHeader,
    pub connection: Connection,
}
wire!(ConnectionMet => 16 + core::mem::size_of::<Connection>());

/// Ring record: a TCP connection's socket is gone; its account is final.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionClosed {
    pub header: RecordHeader,
    pub connection: Connection,
}
wire!(ConnectionClosed => 16 + core::mem::size_of::<Connection>());

/// Ring record: bytes of a connection, followed by `captured` bytes from their beginning and `tail`
/// bytes from their end.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketData {
    pub header: RecordHeader,
    /// [`Connection::id`].
    pub id: u64,
    /// Bytes of this direction before these: a lost record shows as a jump.
    pub position: u64,
    /// Bytes of the other direction before these.
    pub other_position: u64,
    /// [`super::ledger::ThreadState::since_ns`] of the thread when it moved them, 0 where that is not
    /// known.
    pub account_ns: u64,
    /// Bytes moved.
    pub bytes: u32,
    pub captured: u16,
    pub tail: u16,
    pub tid: u32,
    pub tgid: u32,
    /// See [`direction`].
    pub direction: u8,
    /// 1 where the bytes are what TLS carried, and positions count those only.
    pub plaintext: u8,
    pub pad: [u8; 6],
}
wire!(SocketData => 16 + 32 + 4 + 4 + 8 + 8);

/// Value of `protocols`, keyed by [`Connection::id`]: what user space found out of a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Time of the piece after which `in_flight` was so. Where this end sent since, it says nothing.
    pub at_ns: u64,
    /// Ledger class of the protocol.
    pub class: u8,
    /// 1 where a request had no answer yet, or not all of it.
    pub in_flight: u8,
    pub pad: [u8; 6],
}
wire!(Told => 16);

/// Value of `connecting`, keyed by socket: a connect under way or done, until its first byte.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connecting {
    pub started_ns: u64,
    /// 0 while it is under way.
    pub took_ns: u64,
}
wire!(Connecting => 16);
