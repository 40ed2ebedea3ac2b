//! What an fd of a task refers to, read from the kernel's own tables: works on files and
//! connections older than the attach, and needs no hook.

use aya_ebpf::{
    helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_kernel_str},
    macros::map,
    maps::{HashMap, PerCpuArray},
};
use perf_ebpf_common::{
    fd,
    loss::Loss,
    offsets::ABSENT,
    signals::{
        RecordHeader,
        ledger::{ListenerKey, ThreadState, UNIX_PATH_MAX, UnixName, detail},
        record,
        sockets::Connection,
    },
};

use crate::{
    prelude::*,
    shared_maps::{self, DEVICE_KINDS, EVENTS, GENERATED},
};

/// TCP ports listened on: what tells a server's end of a connection from a client's. Filled from
/// /proc at the attach and kept by `inet_sock_set_state`. A port stays in it after its listener
/// closes: connections it accepted are still a server's.
#[map(name = "listeners")]
pub static LISTENERS: HashMap<ListenerKey, u8> = HashMap::with_max_entries(4096, 0);

/// Unix addresses whose name was sent.
#[map(name = "unix_seen")]
static UNIX_SEEN: HashMap<u64, u8> = HashMap::with_max_entries(1024, 0);

/// Scratch for names: slot 0 of the scheduler's hooks, which do not nest on a CPU, slot 1 of the
/// socket hooks, which a wake-up from an interrupt may come into.
#[map(name = "unix_scratch")]
static UNIX_SCRATCH: PerCpuArray<UnixName> = PerCpuArray::with_max_entries(2, 0);

const S_IFMT: u16 = 0xf000;
const S_IFIFO: u16 = 0x1000;
const S_IFCHR: u16 = 0x2000;
const S_IFSOCK: u16 = 0xc000;
/// `ANON_INODE_FS_MAGIC`, `include/uapi/linux/magic.h`.
const ANON_INODE_MAGIC: u64 = 0x0904_1934;
const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const TCP_ESTABLISHED: u8 = 1;
const TCP_LISTEN: u8 = 10;
const IPPROTO_TCP: u16 = 6;
const IPPROTO_UDP: u16 = 17;

/// The table of fds of a task, null where the kernel has no such field.
#[inline(always)]
pub fn table_of(task: Typed) -> Typed {
    if offset!(task_files) == ABSENT {
        return core::ptr::null();
    }
    field(task, offset!(task_files))
}

/// Address of the `struct file` behind an fd of a table, `None` where it cannot be read.
#[inline(always)]
fn file_of(files: Typed, fd: u32) -> Option<u64> {
    let fdt: Typed = field(files, offset!(files_fdt));
    let max: u32 = field(fdt, offset!(fdt_max_fds));
    if fd >= max {
        return None;
    }
    let table: u64 = field(fdt, offset!(fdt_fd));
    let file: u64 = kernel(table + fd as u64 * 8)?;
    (file != 0).then_some(file)
}

/// As [`file_of`] of [`table_of`], of a task whose address is only a number to the verifier (before 5.11 the
/// current task cannot be had otherwise). Four helper calls more, 75 ns.
#[inline(always)]
pub fn file_at(task: u64, fd: u32) -> Option<u64> {
    let files: u64 = kernel(task + offset!(task_files) as u64)?;
    let fdt: u64 = kernel(files + offset!(files_fdt) as u64)?;
    let max: u32 = kernel(fdt + offset!(fdt_max_fds) as u64)?;
    if fd >= max {
        return None;
    }
    let table: u64 = kernel(fdt + offset!(fdt_fd) as u64)?;
    let file: u64 = kernel(table + fd as u64 * 8)?;
    (file != 0).then_some(file)
}

/// Kind of an fd ([`fd`]) of the thread's table; peer or inode go to the `file_*` fields of `t`.
///
/// The last file is remembered: 95 % of blocks are on the fd of the block before, and the walk
/// costs five to eight probe reads. (A file freed and another allocated at its address between two
/// blocks of one thread, with no other fd used in between, would be misread; its fd would have to
/// be the only one the thread ever blocks on.)
#[inline(always)]
pub fn kind_of(t: &mut ThreadState, files: Typed, fd: u32) -> u8 {
    if offset!(task_files) == ABSENT {
        return fd::UNKNOWN;
    }
    let Some(file) = file_of(files, fd) else {
        lose(Loss::FdUnreadable);
        t.file_detail_kind = detail::NONE;
        t.file_sk = 0;
        return fd::UNKNOWN;
    };
    if file != t.file {
        t.file_detail_kind = detail::NONE;
        t.file_sk = 0;
        t.file_kind = resolve_file(t.tid, file) as u8;
        t.file_port = if t.file_detail_kind == detail::FILE {
            fd as u16
        } else {
            t.file_port
        };
        t.file = file;
    }
    t.file_kind
}

/// Reads what a file is, for a thread's account.
///
/// VERIFIER: a global function, looked at once and not once a way that leads here: 7,000 of the 65,000
/// instructions of `sched_switch`. So it looks the account up again, once a change of the fd.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn resolve_file(tid: u32, file: u64) -> u64 {
    let Some(t) = shared_maps::thread(tid) else {
        lose(Loss::FdUnreadable);
        return fd::UNKNOWN as u64;
    };
    // SAFETY: the account of the thread whose event this is, see `ledger::thread`.
    resolve(unsafe { &mut *t }, file) as u64
}

#[inline(always)]
fn resolve(t: &mut ThreadState, file: u64) -> u8 {
    let Some(inode) = kernel::<u64>(file + offset!(file_inode) as u64) else {
        lose(Loss::FdUnreadable);
        return fd::UNKNOWN;
    };
    let mode: u16 = kernel(inode + offset!(inode_mode) as u64).unwrap_or(0);
    match mode & S_IFMT {
        S_IFIFO => fd::PIPE,
        S_IFSOCK => {
            if offset!(socket_sk) == ABSENT {
                return fd::SOCKET_OTHER;
            }
            let socket: u64 = kernel(file + offset!(file_private) as u64).unwrap_or(0);
            let sk: u64 = kernel(socket + offset!(socket_sk) as u64).unwrap_or(0);
            t.file_sk = sk;
            socket_kind(t, sk)
        }
        S_IFCHR => {
            let rdev: u32 = kernel(inode + offset!(inode_rdev) as u64).unwrap_or(0);
            DEVICE_KINDS.get(rdev >> 20).copied().unwrap_or(fd::UNKNOWN)
        }
        _ => {
            let sb: u64 = kernel(inode + offset!(inode_sb) as u64).unwrap_or(0);
            if kernel::<u64>(sb + offset!(sb_magic) as u64) == Some(ANON_INODE_MAGIC) {
                return anonymous_kind(file);
            }
            t.file_detail[0] = kernel(inode + offset!(inode_ino) as u64).unwrap_or(0);
            t.file_detail[1] = kernel::<u32>(sb + offset!(sb_dev) as u64).unwrap_or(0) as u64;
            t.file_detail_kind = detail::FILE;
            fd::FILE
        }
    }
}

/// The `struct sock` of a file that is a socket.
#[inline(always)]
pub fn stream_socket(file: u64) -> Option<u64> {
    let inode: u64 = kernel(file + offset!(file_inode) as u64)?;
    let mode: u16 = kernel(inode + offset!(inode_mode) as u64)?;
    if mode & S_IFMT != S_IFSOCK || offset!(socket_sk) == ABSENT {
        return None;
    }
    let socket: u64 = kernel(file + offset!(file_private) as u64)?;
    let sk: u64 = kernel(socket + offset!(socket_sk) as u64)?;
    (sk != 0).then_some(sk)
}

/// Fills in what a stream socket is, with the addresses of both ends.
#[inline(always)]
pub fn describe(c: &mut Connection, sk: u64) {
    let family: u16 = kernel(sk + offset!(sock_family) as u64).unwrap_or(0);
    if family == AF_UNIX {
        describe_unix(c, sk);
        return;
    }
    c.local_port = kernel(sk + offset!(sock_num) as u64).unwrap_or(0);
    c.peer_port = u16::from_be(kernel(sk + offset!(sock_dport) as u64).unwrap_or(0));
    c.kind = if is_listened(sk, c.local_port) {
        fd::TCP_SERVER
    } else {
        fd::TCP_CLIENT
    };
    if family == AF_INET6 && offset!(sock_v6_daddr) != ABSENT && offset!(sock_v6_saddr) != ABSENT {
        c.peer_kind = inet6(sk, offset!(sock_v6_daddr), &mut c.peer);
        inet6(sk, offset!(sock_v6_saddr), &mut c.local);
        return;
    }
    c.peer[0] = kernel::<u32>(sk + offset!(sock_daddr) as u64).unwrap_or(0) as u64;
    c.local[0] = kernel::<u32>(sk + offset!(sock_saddr) as u64).unwrap_or(0) as u64;
    c.peer_kind = detail::INET4;
}

/// Reads an IPv6 address; ::ffff:a.b.c.d is the IPv4 end of a dual-stack socket.
#[inline(always)]
fn inet6(sk: u64, offset: u32, into: &mut [u64; 2]) -> u8 {
    let address: [u64; 2] = kernel(sk + offset as u64).unwrap_or_default();
    let mapped = u64::from_be(address[1]);
    if address[0] == 0 && mapped >> 32 == 0xffff {
        *into = [(mapped as u32).to_be() as u64, 0];
        return detail::INET4;
    }
    *into = address;
    detail::INET6
}

/// Whether some socket of the same network namespace listens on a port.
#[inline(always)]
fn is_listened(sk: u64, port: u16) -> bool {
    let net: u64 = kernel(sk + offset!(sock_net) as u64).unwrap_or(0);
    let key = ListenerKey {
        netns: kernel(net + offset!(net_inum) as u64).unwrap_or(0),
        port: port as u32,
    };
    LISTENERS.get_ptr(&key).is_some()
}

/// See [`unix_kind`].
#[inline(always)]
fn describe_unix(c: &mut Connection, sk: u64) {
    let own: u64 = kernel(sk + offset!(unix_addr) as u64).unwrap_or(0);
    let other: u64 = kernel(sk + offset!(unix_peer) as u64).unwrap_or(0);
    let name = match (own, other) {
        (0, 0) => 0,
        (0, other) => kernel(other + offset!(unix_addr) as u64).unwrap_or(0),
        (own, _) => own,
    };
    c.kind = match (own, name) {
        (0, 0) => fd::UNIX_PAIR,
        (0, _) => fd::UNIX_CLIENT,
        _ => fd::UNIX_SERVER,
    };
    if name != 0 {
        c.peer = [name, 0];
        c.peer_kind = detail::UNIX;
        send_unix_name(name, 1);
    }
}

/// Kind of an anonymous inode, by the name the kernel gave it ("[eventfd]", "[timerfd]", ...).
#[inline(always)]
fn anonymous_kind(file: u64) -> u8 {
    let dentry: u64 = kernel(file + offset!(file_dentry) as u64).unwrap_or(0);
    let name: u64 = kernel(dentry + offset!(dentry_name) as u64).unwrap_or(0);
    let name: [u8; 4] = kernel(name).unwrap_or_default();
    match &name {
        b"[eve" => {
            // "[eventfd]" or "[eventpoll]": both wait to be told of something, and only the first
            // can be read.
            fd::EVENTFD
        }
        b"[tim" => fd::TIMERFD,
        b"[sig" | b"inot" | b"[fan" => fd::NOTIFY,
        _ => fd::UNKNOWN,
    }
}

/// Kind of a socket, with its peer.
#[inline(always)]
fn socket_kind(t: &mut ThreadState, sk: u64) -> u8 {
    let family: u16 = kernel(sk + offset!(sock_family) as u64).unwrap_or(0);
    if family == AF_UNIX {
        return unix_kind(t, sk);
    }
    if family != AF_INET && family != AF_INET6 {
        return fd::SOCKET_OTHER;
    }
    let protocol: u16 = kernel(sk + offset!(sock_protocol) as u64).unwrap_or(0);
    let state: u8 = kernel(sk + offset!(sock_state) as u64).unwrap_or(0);
    let local: u16 = kernel(sk + offset!(sock_num) as u64).unwrap_or(0);
    match protocol {
        IPPROTO_TCP if state == TCP_LISTEN => fd::TCP_LISTEN,
        IPPROTO_TCP => {
            if is_listened(sk, local) {
                return fd::TCP_SERVER;
            }
            peer(t, sk, family);
            fd::TCP_CLIENT
        }
        // A connected UDP socket has a fixed peer: a resolver's query, not a server's socket.
        IPPROTO_UDP if state == TCP_ESTABLISHED => {
            peer(t, sk, family);
            fd::UDP_CLIENT
        }
        IPPROTO_UDP => fd::UDP_SERVER,
        _ => fd::SOCKET_OTHER,
    }
}

/// Stores a socket's peer in `t`.
#[inline(always)]
fn peer(t: &mut ThreadState, sk: u64, family: u16) {
    let port: u16 = kernel(sk + offset!(sock_dport) as u64).unwrap_or(0);
    t.file_port = u16::from_be(port);
    if family == AF_INET6 && offset!(sock_v6_daddr) != ABSENT {
        t.file_detail_kind = inet6(sk, offset!(sock_v6_daddr), &mut t.file_detail);
        return;
    }
    let address: u32 = kernel(sk + offset!(sock_daddr) as u64).unwrap_or(0);
    t.file_detail = [address as u64, 0];
    t.file_detail_kind = detail::INET4;
}

/// Role of a Unix socket: one accepted from a listener shares the listener's address, so the end
/// with a name is the server's and the end whose peer has a name is the client's
/// (`unix_stream_connect` in `net/unix/af_unix.c`).
#[inline(always)]
fn unix_kind(t: &mut ThreadState, sk: u64) -> u8 {
    let own: u64 = kernel(sk + offset!(unix_addr) as u64).unwrap_or(0);
    if own != 0 {
        return fd::UNIX_SERVER;
    }
    let other: u64 = kernel(sk + offset!(unix_peer) as u64).unwrap_or(0);
    let name: u64 = match other {
        0 => 0,
        _ => kernel(other + offset!(unix_addr) as u64).unwrap_or(0),
    };
    if name == 0 {
        return fd::UNIX_PAIR;
    }
    t.file_detail = [name, 0];
    t.file_detail_kind = detail::UNIX;
    t.file_port = 0;
    send_unix_name(name, 0);
    fd::UNIX_CLIENT
}

/// Sends a Unix address's name, once.
#[inline(always)]
fn send_unix_name(address: u64, slot: u32) {
    if UNIX_SEEN.get_ptr(&address).is_some() {
        return;
    }
    let Some(scratch) = UNIX_SCRATCH.get_ptr_mut(slot) else {
        return;
    };
    // SAFETY: a per-CPU element of this program class.
    let name = unsafe { &mut *scratch };
    // `len` counts sun_family's two bytes.
    let len: u32 = kernel(address + offset!(unix_addr_len) as u64).unwrap_or(0);
    name.header = RecordHeader {
        kind: record::UNIX_NAME,
        pad: 0,
        at_ns: now_ns(),
    };
    name.id = address;
    name.len = if len < 2 { 0 } else { len - 2 };
    let path = address + offset!(unix_addr_name) as u64 + 2;
    // SAFETY: writes at most UNIX_PATH_MAX bytes into the scratch.
    unsafe {
        // An abstract name begins with NUL, where a string copy would stop; a path may be followed
        // by unmapped memory, where a plain copy would fail.
        if kernel::<u8>(path) == Some(0) {
            bpf_probe_read_kernel(name.path.as_mut_ptr().cast(), 32, path as *const _);
        } else {
            bpf_probe_read_kernel_str(
                name.path.as_mut_ptr().cast(),
                UNIX_PATH_MAX as u32,
                path as *const _,
            );
        }
    }
    if let Some(count) = GENERATED.get_ptr_mut(record::UNIX_NAME) {
        // SAFETY: a per-CPU element.
        unsafe { *count += 1 };
    }
    match EVENTS.output::<UnixName>(&*name, NO_WAKEUP) {
        Ok(()) => {
            let _ = UNIX_SEEN.insert(&address, &1, 0);
        }
        Err(_) => lose(Loss::RingFull),
    }
}

/// `BPF_RB_NO_WAKEUP`: the drain polls; a wake-up costs 170 ns and loses records under load.
pub const NO_WAKEUP: u64 = 1;
