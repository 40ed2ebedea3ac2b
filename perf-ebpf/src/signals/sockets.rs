//! Bytes of the target's stream sockets: counted per connection, and sent to user space up to a
//! limit, in stream order.
//!
//! Where the kernel has `sock_send_length` and `sock_recv_length` (6.3) nobody else on the host
//! pays: they fire for socket traffic alone and hand over the socket and the byte count, while the
//! system call's registers still say where the user buffer is. Older kernels: `sys_exit`.

pub mod tcp;
pub mod waits;

use aya_ebpf::{
    helpers::generated::{bpf_get_current_task, bpf_get_current_task_btf},
    macros::map,
    maps::{HashMap, PerCpuArray},
};
use perf_ebpf_common::{
    fd,
    loss::Loss,
    signals::{
        RecordHeader,
        ledger::ThreadState,
        record,
        sockets::{Connection, ConnectionMet, SocketData, buffer, direction},
    },
    sys,
};

use super::payload::{self, buffer_kind, is_recvfrom};
use crate::{
    file::{self, NO_WAKEUP},
    prelude::*,
    registers::Registers,
    shared_maps::{EVENTS, GENERATED},
};

/// Connections of the target by the address of their `struct sock` (a hash: addresses are sparse).
#[map(name = "connections")]
static CONNECTIONS: HashMap<u64, Connection> = HashMap::with_max_entries(16384, 0);

/// New connections are built here: larger than what is left of the stack.
#[map(name = "met_scratch")]
static MET: PerCpuArray<ConnectionMet> = PerCpuArray::with_max_entries(1, 0);

const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const IPPROTO_TCP: u16 = 6;
const SOCK_STREAM: u16 = 1;
const SOCK_SEQPACKET: u16 = 5;
const MSG_PEEK: u64 = 2;

/// A stream socket that moved bytes.
#[derive(Clone, Copy)]
pub struct Socket {
    pub sk: u64,
    pub id: u64,
    pub tcp: bool,
}

/// Inode number of a typed `struct sock`.
#[inline(always)]
fn inode_of(sk: Typed) -> u64 {
    let socket: Typed = field(sk, offset!(sock_socket));
    let file: Typed = field(socket, offset!(socket_file));
    let inode: Typed = field(file, offset!(file_inode));
    field(inode, offset!(inode_ino))
}

#[inline(always)]
fn is_tcp(family: u16, protocol: u16) -> bool {
    (family == AF_INET || family == AF_INET6) && protocol == IPPROTO_TCP
}

#[inline(always)]
fn is_unix_stream(family: u16, kind: u16) -> bool {
    family == AF_UNIX && (kind == SOCK_STREAM || kind == SOCK_SEQPACKET)
}

/// The stream socket behind an fd of the current task.
#[inline(always)]
fn of_fd(task: u64, fd: u32) -> Option<Socket> {
    let file = file::file_at(task, fd)?;
    let sk = file::stream_socket(file)?;
    let family: u16 = kernel(sk + offset!(sock_family) as u64)?;
    let protocol: u16 = kernel(sk + offset!(sock_protocol) as u64)?;
    let kind: u16 = kernel(sk + offset!(sock_type) as u64)?;
    let tcp = is_tcp(family, protocol);
    if !tcp && !is_unix_stream(family, kind) {
        return None;
    }
    let inode: u64 = kernel(file + offset!(file_inode) as u64)?;
    let id: u64 = kernel(inode + offset!(inode_ino) as u64)?;
    Some(Socket { sk, id, tcp })
}

/// `sock_send_length`, `sock_recv_length`: a send or receive on `sk` moved `bytes`, more than none.
#[inline(always)]
pub fn moved(t: &mut ThreadState, sk: Typed, bytes: u64, flags: u64, to: u8) {
    // A peek sees bytes that the next receive gives again.
    if setting!(capture_bytes) == 0 || flags & MSG_PEEK != 0 {
        return;
    }
    let family: u16 = field(sk, offset!(sock_family));
    let tcp = is_tcp(family, field(sk, offset!(sock_protocol)));
    if !tcp && !is_unix_stream(family, field(sk, offset!(sock_type))) {
        return;
    }
    let now = now_ns();
    // A TCP socket that is known is the one it was, see `destroyed`: four dependent loads less.
    let known = if tcp {
        CONNECTIONS.get_ptr_mut(&(sk as u64))
    } else {
        None
    };
    let c = match known {
        // SAFETY: a live map value, see `connection`.
        Some(c) => Some(unsafe { &mut *c }),
        None => {
            let socket = Socket {
                sk: sk as u64,
                id: inode_of(sk),
                tcp,
            };
            connection(t, socket, now)
        }
    };
    let Some(c) = c else {
        return lose(Loss::ConnectionsFull);
    };
    let socket = Socket {
        sk: sk as u64,
        id: c.id,
        tcp,
    };
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task_btf() };
    let regs = Registers::of(task as Typed);
    let transfer = Transfer { bytes, to, now };
    transferred::<false>(t, c, socket, transfer, &regs);
}

/// Kernels without these tracepoints: a system call of thread `t` returned `result`.
#[inline(always)]
pub fn returned(t: &mut ThreadState, regs: &Registers, result: i64) {
    if result <= 0 || setting!(capture_bytes) == 0 {
        return;
    }
    let nr = regs.nr();
    let to = match crate::shared_maps::sys_kind(nr) {
        sys::READ => direction::RECEIVED,
        sys::WRITE => direction::SENT,
        _ => return,
    };
    if buffer_kind(nr) == buffer::UNKNOWN {
        return;
    }
    // recvfrom's flags are its fourth argument, recvmsg's its third; of the others the bit means a
    // count or nothing.
    let flags = match buffer_kind(nr) {
        buffer::MSGHDR => regs.arg2(),
        buffer::PLAIN if is_recvfrom(nr) => regs.arg3(),
        _ => 0,
    };
    if to == direction::RECEIVED && flags & MSG_PEEK != 0 {
        return;
    }
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task() };
    let Some(socket) = of_fd(task, regs.arg0() as u32) else {
        return;
    };
    let now = now_ns();
    let Some(c) = connection(t, socket, now) else {
        return lose(Loss::ConnectionsFull);
    };
    let transfer = Transfer {
        bytes: result as u64,
        to,
        now,
    };
    transferred::<true>(t, c, socket, transfer, regs);
}

/// Bytes that one call moved.
#[derive(Clone, Copy)]
struct Transfer {
    bytes: u64,
    /// See [`direction`].
    to: u8,
    now: u64,
}

/// Counts and captures a transfer; for `FEW` see [`payload::tell`].
#[inline(always)]
fn transferred<const FEW: bool>(
    t: &mut ThreadState,
    c: &mut Connection,
    socket: Socket,
    Transfer { bytes, to, now }: Transfer,
    regs: &Registers,
) {
    c.last_ns = now;
    let (position, other_position) = if to == direction::SENT {
        let before = c.tx_bytes;
        c.tx_bytes = before + bytes;
        waits::sent(t, c, socket.sk, now);
        (before, c.rx_bytes)
    } else {
        let before = c.rx_bytes;
        c.rx_bytes = before + bytes;
        if is_client(c.kind) {
            waits::answered(t, c, socket.sk);
        }
        if socket.tcp {
            tcp::round_trip(c, socket.sk, now);
        }
        (before, c.tx_bytes)
    };
    if is_server(c.kind) {
        super::requests::tell(t, now);
    }
    if super::tls::inside(t, socket, now) {
        return;
    }
    let data = SocketData {
        header: RecordHeader {
            kind: record::SOCKET_DATA,
            pad: 0,
            at_ns: now,
        },
        id: socket.id,
        position,
        other_position,
        account_ns: t.since_ns,
        bytes: bytes as u32,
        captured: 0,
        tail: 0,
        tid: t.tid,
        tgid: t.tgid,
        direction: to,
        plaintext: 0,
        pad: [0; 6],
    };
    payload::tell::<FEW>(data, bytes, regs);
}

/// The connection's entry, made at its first byte.
#[inline(always)]
fn connection(t: &mut ThreadState, socket: Socket, now: u64) -> Option<&'static mut Connection> {
    if let Some(c) = CONNECTIONS.get_ptr_mut(&socket.sk) {
        // SAFETY: a live map value. Two threads that use one socket at the same moment may lose one
        // of two additions to its byte counts: the decoder then sees a jump and finds its place again.
        let c = unsafe { &mut *c };
        // Unix sockets end without an event: another one may be at the same address.
        if c.id == socket.id {
            return Some(c);
        }
    }
    meet(t, socket, now);
    // SAFETY: as above.
    CONNECTIONS
        .get_ptr_mut(&socket.sk)
        .map(|c| unsafe { &mut *c })
}

/// Makes the entry of a connection and tells of it.
#[inline(never)]
fn meet(t: &mut ThreadState, socket: Socket, now: u64) -> u64 {
    let Some(met) = MET.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: a per-CPU element of this program class.
    let met = unsafe { &mut *met };
    met.header = RecordHeader {
        kind: record::CONNECTION_MET,
        pad: 0,
        at_ns: now,
    };
    met.connection = Connection {
        id: socket.id,
        first_ns: now,
        last_ns: now,
        tx_bytes: 0,
        rx_bytes: 0,
        asked_ns: 0,
        requested_ns: 0,
        connect_ns: 0,
        rtt_sum_us: 0,
        send_stall_ns: 0,
        local: [0; 2],
        peer: [0; 2],
        rtt_count: 0,
        rtt_min_us: 0,
        rtt_max_us: 0,
        retransmits: 0,
        resets: 0,
        send_stalls: 0,
        tgid: t.tgid,
        local_port: 0,
        peer_port: 0,
        kind: fd::SOCKET_OTHER,
        peer_kind: 0,
        class: 0,
        pad: 0,
        rtt_at_ms: 0,
    };
    file::describe(&mut met.connection, socket.sk);
    met.connection.connect_ns = tcp::connect_ns(socket.sk);
    if CONNECTIONS.insert(&socket.sk, &met.connection, 0).is_err() {
        return 0;
    }
    count(record::CONNECTION_MET);
    if EVENTS.output::<ConnectionMet>(&*met, NO_WAKEUP).is_err() {
        lose(Loss::RingFull);
    }
    0
}

/// Whether the socket at this address is still the connection `id`.
#[inline(always)]
pub fn is_connection(sk: u64, id: u64) -> bool {
    // SAFETY: a live map value.
    CONNECTIONS
        .get_ptr(&sk)
        .is_some_and(|c| unsafe { (*c).id } == id)
}

#[inline(always)]
pub fn count(kind: u32) {
    if let Some(count) = GENERATED.get_ptr_mut(kind) {
        // SAFETY: a per-CPU element.
        unsafe { *count += 1 };
    }
}

#[inline(always)]
const fn is_client(kind: u8) -> bool {
    matches!(kind, fd::TCP_CLIENT | fd::UNIX_CLIENT)
}

#[inline(always)]
const fn is_server(kind: u8) -> bool {
    matches!(kind, fd::TCP_SERVER | fd::UNIX_SERVER)
}

/// A block in a send ended.
#[inline(always)]
pub fn send_stalled(sk: u64, length_ns: u64) {
    if let Some(c) = CONNECTIONS.get_ptr_mut(&sk) {
        // SAFETY: a live map value.
        unsafe {
            add32(&raw mut (*c).send_stalls, 1);
            add(&raw mut (*c).send_stall_ns, length_ns);
        }
    }
}
