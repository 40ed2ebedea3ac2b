//! Payload of a transfer, read from the target's buffers: where a system call has them, their beginning up
//! to a limit and the end of what is cut.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::generated::{bpf_get_smp_processor_id, bpf_probe_read_user, bpf_ringbuf_output},
    macros::map,
    maps::{Array, RingBuf},
};
use perf_ebpf_common::{
    loss::Loss,
    signals::{
        record,
        sockets::{CAPTURE_MAX, IOVECS_MAX, SocketData, TAIL_BYTES, buffer},
    },
    sys,
};

use super::sockets::count;
use crate::{file::NO_WAKEUP, prelude::*, registers::Registers};

/// Payload. Apart from `events`, so that a burst of data does not push out what the ledger needs.
#[map(name = "data")]
pub static DATA: RingBuf = RingBuf::with_byte_size(8 << 20, 0);

/// Where the data is ([`buffer`]), by system call number.
#[map(name = "buffer_kinds")]
static BUFFER_KINDS: Array<u8> = Array::with_max_entries(sys::TABLE_LEN as u32, 0);

/// Buffers looked at where kernels lack `sock_send_length`: 5.10 refuses [`socket_buffer`] in the program that
/// stands in for it.
const FEW_IOVECS: usize = 16;
/// Of more, in one call of a function.
const SOME_IOVECS: usize = 16;

/// VERIFIER: lengths and offsets are masked by twice what they can be, so the area has room for an
/// offset and a length of that.
const AREA: usize = 4 * CAPTURE_MAX;
const MASK: u64 = 2 * CAPTURE_MAX as u64 - 1;

#[repr(C)]
struct Scratch {
    data: SocketData,
    payload: [u8; AREA],
    /// Where [`socket_buffer`] finds its buffers, and how much of them is wanted.
    iov: u64,
    wanted: u64,
}

/// An element a CPU (user space sets how many): a per-CPU map's values end at 32 KiB. Only the socket
/// hooks use it, and they do not nest: they run with preemption off.
#[map(name = "data_scratch")]
static SCRATCH: Array<Scratch> = Array::with_max_entries(1, 0);

/// This CPU's scratch.
#[inline(always)]
fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: no arguments.
    let scratch = SCRATCH.get_ptr_mut(unsafe { bpf_get_smp_processor_id() })?;
    // SAFETY: this CPU's element, see `SCRATCH`.
    Some(unsafe { &mut *scratch })
}

/// Sends a transfer with its payload; with `FEW`, of no more than [`FEW_IOVECS`] buffers.
#[inline(always)]
pub fn tell<const FEW: bool>(data: SocketData, bytes: u64, regs: &Registers) {
    if let Some(scratch) = scratch() {
        scratch.data = data;
        capture::<FEW>(scratch, bytes, regs);
        send(scratch);
    }
}

/// Only `recvfrom` among the plain ones has flags; user space marks it in the table.
#[inline(always)]
pub fn is_recvfrom(nr: u16) -> bool {
    BUFFER_KINDS.get(nr as u32).copied().unwrap_or(0) & buffer::FLAGS_IN_ARG3 != 0
}

#[inline(always)]
pub fn buffer_kind(nr: u16) -> u8 {
    BUFFER_KINDS.get(nr as u32).copied().unwrap_or(0) & !buffer::FLAGS_IN_ARG3
}

/// Reads payload from user memory into the scratch, as far as the limit goes.
#[inline(always)]
fn capture<const FEW: bool>(scratch: &mut Scratch, bytes: u64, regs: &Registers) {
    match buffer_kind(regs.nr()) {
        buffer::PLAIN => plain(scratch, regs.arg1(), bytes),
        buffer::IOVEC => scattered::<FEW>(scratch, regs.arg1(), regs.arg2(), bytes),
        buffer::MSGHDR => {
            // struct user_msghdr: msg_iov at 16, msg_iovlen at 24 (include/linux/socket.h, 64 bit).
            let message = regs.arg1();
            match (user::<u64>(message + 16), user::<u64>(message + 24)) {
                (Some(iov), Some(n)) => scattered::<FEW>(scratch, iov, n, bytes),
                _ => lose(Loss::PayloadUnreadable),
            }
        }
        _ => {}
    }
}

/// One buffer: its beginning and, where that is not all, its end.
#[inline(always)]
fn plain(scratch: &mut Scratch, address: u64, bytes: u64) {
    let limit = setting!(capture_bytes) as u64;
    let head = if bytes < limit { bytes } else { limit };
    if !read(scratch, 0, address, head) {
        return;
    }
    scratch.data.captured = head as u16;
    let rest = bytes - head;
    if rest == 0 {
        return;
    }
    let tail = if rest < TAIL_BYTES as u64 {
        rest
    } else {
        TAIL_BYTES as u64
    };
    if read(scratch, head, address + bytes - tail, tail) {
        scratch.data.tail = tail as u16;
    }
}

/// Several buffers, in their order.
#[inline(always)]
fn scattered<const FEW: bool>(scratch: &mut Scratch, iov: u64, buffers: u64, bytes: u64) {
    let limit = setting!(capture_bytes) as u64;
    scratch.iov = iov;
    scratch.wanted = if bytes < limit { bytes } else { limit };
    if !FEW {
        socket_buffers(buffers);
        return;
    }
    for i in 0..FEW_IOVECS as u64 {
        if i >= buffers || !take_buffer(scratch, i) {
            break;
        }
    }
}

/// Takes the buffers in their order, as many as are wanted.
///
/// VERIFIER: this, [`some_socket_buffers`] and [`socket_buffer`] are global functions, which are looked at once:
/// inlined, each round was followed with every way through those before it (1,270 instructions a buffer in
/// each program), and the loop with every way to it. And two loops of 16 are as many instructions as one of 32.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn socket_buffers(buffers: u64) -> u64 {
    for i in 0..(IOVECS_MAX / SOME_IOVECS) as u64 {
        if some_socket_buffers(i * SOME_IOVECS as u64, buffers) == 0 {
            break;
        }
    }
    0
}

/// Takes some of several buffers; 0 where no other is wanted.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn some_socket_buffers(first: u64, buffers: u64) -> u64 {
    for i in 0..SOME_IOVECS as u64 {
        if first + i >= buffers || socket_buffer(first + i) == 0 {
            return 0;
        }
    }
    1
}

/// Takes one of several buffers; 0 where no other is wanted.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn socket_buffer(i: u64) -> u64 {
    match scratch() {
        Some(scratch) => take_buffer(scratch, i) as u64,
        None => 0,
    }
}

/// Takes one of several buffers; false where no other is wanted.
#[inline(always)]
fn take_buffer(scratch: &mut Scratch, i: u64) -> bool {
    // VERIFIER: how far it is is read back from the record each time, so that one round looks
    // like the next and is not followed for every length of those before it.
    let at = forgotten(&scratch.data.captured) as u64;
    let wanted = forgotten(&scratch.wanted);
    if at >= wanted {
        return false;
    }
    let Some([base, length]) = user::<[u64; 2]>(scratch.iov + i * 16) else {
        lose(Loss::PayloadUnreadable);
        return false;
    };
    let left = wanted - at;
    let take = if length < left { length } else { left };
    if take != 0 && !read(scratch, at, base, take) {
        return false;
    }
    scratch.data.captured = (at + take) as u16;
    at + take < wanted
}

/// Copies `length` bytes of user memory to `at` in the payload.
#[inline(always)]
fn read(scratch: &mut Scratch, at: u64, address: u64, length: u64) -> bool {
    let (at, length) = (
        opaque(at as usize) as u64 & MASK,
        opaque(length as usize) as u64 & MASK,
    );
    // SAFETY: at most 2 * MASK bytes from the beginning of the area.
    let result = unsafe {
        bpf_probe_read_user(
            scratch.payload.as_mut_ptr().add(at as usize).cast(),
            length as u32,
            address as *const c_void,
        )
    };
    if result != 0 {
        lose(Loss::PayloadUnreadable);
    }
    result == 0
}

fn send(scratch: &mut Scratch) {
    count(record::SOCKET_DATA);
    let payload = scratch.data.captured as u64 + scratch.data.tail as u64;
    // VERIFIER: masked, not compared, see `stacks::send_stack`.
    let length = size_of::<SocketData>() as u64 + (payload & MASK);
    // SAFETY: at most the whole scratch.
    let result = unsafe {
        bpf_ringbuf_output(
            (&raw const DATA).cast_mut().cast(),
            (&raw mut *scratch).cast(),
            length,
            NO_WAKEUP,
        )
    };
    if result != 0 {
        lose(Loss::DataRingFull);
    }
}
