//! Plaintext of OpenSSL connections: at the return of a read or write its buffer is sent to user
//! space, under the connection whose socket the same thread used inside such a call.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::generated::bpf_probe_read_user,
    macros::map,
    maps::LruHashMap,
    programs::{ProbeContext, RetProbeContext},
};
use perf_ebpf_common::{
    loss::Loss,
    signals::{
        RecordHeader,
        ledger::ThreadState,
        record,
        sockets::{CAPTURE_MAX, SocketData, TAIL_BYTES, direction},
        tls::{TlsCall, TlsKey, TlsStream, call},
    },
};

use super::{
    payload::DATA,
    sockets::{self, Socket},
};
use crate::{file::NO_WAKEUP, prelude::*, shared_maps::CONTROL};

/// By process and `SSL *`. An LRU: processes end without freeing theirs.
#[map(name = "tls_streams")]
static STREAMS: LruHashMap<TlsKey, TlsStream> = LruHashMap::with_max_entries(16384, 0);

/// Most plaintext of a small record. Records are reserved whole: uprobes may be preempted, so a
/// scratch of the CPU would not be theirs alone.
const SMALL: usize = 1024;
/// More than the beginning of a large one: the last byte of a whole TLS record is in its tail.
const LARGE: usize = CAPTURE_MAX;
const TAIL_ROOM: usize = 2 * TAIL_BYTES;
const LARGE_ROOM: usize = LARGE + TAIL_ROOM;

#[repr(C)]
struct Room<const N: usize> {
    data: SocketData,
    payload: [u8; N],
}

#[inline(always)]
fn key(t: &ThreadState) -> TlsKey {
    TlsKey {
        ssl: t.tls.ssl,
        tgid: t.tgid,
        pad: 0,
    }
}

/// The trace is over.
#[inline(always)]
fn stopped() -> bool {
    CONTROL
        .get(0)
        .is_none_or(|control| control.uprobes_stopped != 0)
}

/// A read or write begins.
#[inline(always)]
pub fn enter(t: &mut ThreadState, ctx: &ProbeContext, what: u8, ex: bool) {
    if stopped() {
        return;
    }
    t.tls = TlsCall {
        ssl: ctx.arg(0).unwrap_or(0),
        buffer: ctx.arg(1).unwrap_or(0),
        length_at: if ex { ctx.arg(3).unwrap_or(0) } else { 0 },
        moved_ns: 0,
        account_ns: 0,
    };
    t.tls_call = what;
}

/// Whether a transfer belongs to a call under way: its bytes are then ciphertext, and its socket is
/// the one the plaintext goes under.
#[inline(always)]
pub fn inside(t: &mut ThreadState, socket: Socket, now: u64) -> bool {
    if t.tls_call == call::NONE {
        return false;
    }
    t.tls.moved_ns = now;
    t.tls.account_ns = t.since_ns;
    let key = key(t);
    if let Some(stream) = STREAMS.get_ptr(&key) {
        // SAFETY: a live map value.
        if unsafe { (*stream).id } == socket.id {
            return true;
        }
    }
    let stream = TlsStream {
        sk: socket.sk,
        id: socket.id,
        tx_bytes: 0,
        rx_bytes: 0,
    };
    let _ = STREAMS.insert(&key, &stream, 0);
    true
}

/// A read or write returned.
#[inline(always)]
pub fn leave(t: &mut ThreadState, ctx: &RetProbeContext) {
    let what = t.tls_call;
    if what == call::NONE {
        return;
    }
    t.tls_call = call::NONE;
    let returned = ctx.ret::<i32>();
    if returned <= 0 || stopped() {
        return;
    }
    let bytes = if t.tls.length_at == 0 {
        returned as u64
    } else {
        match user::<u64>(t.tls.length_at) {
            Some(bytes) => bytes,
            None => return lose(Loss::PayloadUnreadable),
        }
    };
    if bytes == 0 {
        return;
    }
    let Some(stream) = STREAMS.get_ptr_mut(&key(t)) else {
        return lose(Loss::TlsUnattributed);
    };
    // SAFETY: a live map value; OpenSSL does not allow two threads on one `SSL *`.
    let stream = unsafe { &mut *stream };
    if !sockets::is_connection(stream.sk, stream.id) {
        return lose(Loss::TlsUnattributed);
    }
    let (to, position, other_position) = if what == call::WRITE {
        stream.tx_bytes += bytes;
        (direction::SENT, stream.tx_bytes - bytes, stream.rx_bytes)
    } else {
        stream.rx_bytes += bytes;
        (
            direction::RECEIVED,
            stream.rx_bytes - bytes,
            stream.tx_bytes,
        )
    };
    let data = SocketData {
        header: RecordHeader {
            kind: record::SOCKET_DATA,
            pad: 0,
            at_ns: if t.tls.moved_ns != 0 {
                t.tls.moved_ns
            } else {
                now_ns()
            },
        },
        id: stream.id,
        position,
        other_position,
        account_ns: t.tls.account_ns,
        bytes: bytes as u32,
        captured: 0,
        tail: 0,
        tid: t.tid,
        tgid: t.tgid,
        direction: to,
        plaintext: 1,
        pad: [0; 6],
    };
    let limit = setting!(capture_bytes) as u64;
    let limit = if limit < LARGE as u64 {
        limit
    } else {
        LARGE as u64 - 1
    };
    let head = if bytes < limit { bytes } else { limit };
    sockets::count(record::SOCKET_DATA);
    if bytes < SMALL as u64 && head == bytes {
        emit::<SMALL, SMALL>(&data, t.tls.buffer, head, bytes);
    } else {
        emit::<LARGE, LARGE_ROOM>(&data, t.tls.buffer, head, bytes);
    }
}

/// Sends less than `HEAD` bytes from the beginning of a buffer and, where that is not all, its end.
///
/// VERIFIER: lengths are masked, not compared: 5.10 follows paths whose comparisons contradict each
/// other, and refuses what is added to a pointer there.
#[inline(always)]
fn emit<const HEAD: usize, const ROOM: usize>(
    data: &SocketData,
    buffer: u64,
    head: u64,
    bytes: u64,
) {
    let Some(mut slot) = DATA.reserve::<Room<ROOM>>(0) else {
        return lose(Loss::DataRingFull);
    };
    let room = slot.as_mut_ptr();
    // SAFETY: the slot is ours until submitted; of the payload only what was written is named.
    unsafe { (&raw mut (*room).data).write(*data) };
    let length = opaque(head as usize) & (HEAD - 1);
    // SAFETY: less than the payload.
    if unsafe { read((&raw mut (*room).payload).cast(), length, buffer) } {
        // SAFETY: as above.
        unsafe { (*room).data.captured = head as u16 };
        let rest = bytes - head;
        if ROOM > HEAD && rest > 0 {
            let tail = if rest < TAIL_BYTES as u64 {
                rest
            } else {
                TAIL_BYTES as u64
            };
            let from = buffer + bytes - tail;
            let at = opaque(head as usize) & (HEAD - 1);
            let length = opaque(tail as usize) & (TAIL_ROOM - 1);
            // SAFETY: less than `HEAD` and `TAIL_ROOM` fit the payload.
            unsafe {
                let at = (&raw mut (*room).payload).cast::<u8>().add(at);
                if read(at, length, from) {
                    (*room).data.tail = tail as u16;
                }
            }
        }
    }
    slot.submit(NO_WAKEUP);
}

/// # Safety
/// `to` has room for `length` bytes.
#[inline(always)]
unsafe fn read(to: *mut u8, length: usize, from: u64) -> bool {
    // SAFETY: by the caller's contract.
    let result = unsafe { bpf_probe_read_user(to.cast(), length as u32, from as *const c_void) };
    if result != 0 {
        lose(Loss::PayloadUnreadable);
    }
    result == 0
}
