//! TCP ports that are listened on, as a process sees them: from the kernel's `sock_diag`, which looks
//! through listeners alone; where there is none, from the table of all sockets in `/proc`.
//!
//! The table takes 4 µs a socket of the whole host, those in `TIME_WAIT` too: 0.15 s with 36,000.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    io,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    thread,
};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, SocketId, StateFlags},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

use super::procfs;

/// Room for what the kernel says at once: it fills at most as much.
const ANSWER: usize = 32 << 10;

/// Ports listened on, by network namespace: every process of one sees the same.
#[derive(Default)]
pub struct Listened(HashMap<u64, BTreeSet<u16>>);

impl Listened {
    /// As [`listened`], asked once a namespace.
    pub fn by(&mut self, pid: u32) -> &BTreeSet<u16> {
        let namespace = fs::metadata(format!("/proc/{pid}/ns/net")).map_or(0, |m| m.ino());
        self.0.entry(namespace).or_insert_with(|| listened(pid))
    }
}

/// The ports listened on in the network namespace of a process; none where neither way is open.
pub fn listened(pid: u32) -> BTreeSet<u16> {
    by_sock_diag(pid).unwrap_or_else(|e| {
        tracing::debug!("asking the kernel for the listeners {pid} sees: {e}; /proc has them too");
        by_proc(pid)
    })
}

fn by_proc(pid: u32) -> BTreeSet<u16> {
    let read = |name| fs::read_to_string(format!("/proc/{pid}/net/{name}"));
    let tables = ["tcp", "tcp6"].map(|name| read(name).unwrap_or_default());
    let ports = tables.iter().flat_map(|text| procfs::tcp_listeners(text));
    ports.collect()
}

/// A thread of its own goes to another namespace: it is a thread's, and this one does not come back.
fn by_sock_diag(pid: u32) -> io::Result<BTreeSet<u16>> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    if namespace.metadata()?.ino() == fs::metadata("/proc/self/ns/net")?.ino() {
        return dump_both();
    }
    let ask = move || {
        // SAFETY: an fd that is open.
        if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
            return Err(io::Error::last_os_error());
        }
        dump_both()
    };
    let thread = thread::Builder::new().name("listeners".into()).spawn(ask)?;
    let unexpected = |_| Err(io::Error::other("the thread that asks has panicked"));
    thread.join().unwrap_or_else(unexpected)
}

fn dump_both() -> io::Result<BTreeSet<u16>> {
    let mut ports = dump(AF_INET)?;
    ports.extend(dump(AF_INET6)?);
    Ok(ports)
}

/// Asks for the listeners of an address family, in the namespace of this thread: sock_diag(7).
fn dump(family: u8) -> io::Result<BTreeSet<u16>> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = SockDiagMessage::InetRequest(InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::LISTEN,
        socket_id: SocketId::new_v4(),
    });
    let mut message = NetlinkMessage::new(header, request.into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut ports = BTreeSet::new();
    let mut answer = vec![0; ANSWER];
    loop {
        let length = socket.recv(&mut &mut answer[..], 0)?;
        if read(&answer[..length.min(ANSWER)], &mut ports)? {
            return Ok(ports);
        }
    }
}

/// Takes the ports of an answer; whether it is the last.
fn read(mut bytes: &[u8], ports: &mut BTreeSet<u16>) -> io::Result<bool> {
    while !bytes.is_empty() {
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(bytes);
        let message = message.map_err(io::Error::other)?;
        match message.payload {
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(found)) => {
                ports.insert(found.header.socket_id.source_port);
            }
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(e) => return Err(e.to_io()),
            _ => {}
        }
        // Messages begin at multiples of four.
        let length = (message.header.length as usize).next_multiple_of(4);
        bytes = bytes.get(length.max(4)..).unwrap_or_default();
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn both_ways_have_a_port_that_is_listened_on_and_not_one_that_is_connected() {
        let pid = std::process::id();
        let four = TcpListener::bind("127.0.0.1:0").unwrap();
        let six = TcpListener::bind("[::1]:0").unwrap();
        let client = TcpStream::connect(four.local_addr().unwrap()).unwrap();
        for ports in [by_proc(pid), dump(AF_INET).unwrap(), listened(pid)] {
            assert!(ports.contains(&four.local_addr().unwrap().port()));
            assert!(!ports.contains(&client.local_addr().unwrap().port()));
        }
        for ports in [by_proc(pid), dump(AF_INET6).unwrap(), listened(pid)] {
            assert!(ports.contains(&six.local_addr().unwrap().port()));
        }
    }

    #[test]
    fn more_listeners_than_one_answer_holds_are_all_there() {
        let listeners: Vec<TcpListener> = (0..400)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let ports = dump(AF_INET).unwrap();
        for listener in &listeners {
            assert!(ports.contains(&listener.local_addr().unwrap().port()));
        }
    }

    #[test]
    fn an_answer_that_is_cut_is_an_error_and_never_a_panic() {
        let mut ports = BTreeSet::new();
        // A header of 16 bytes and `struct inet_diag_msg`: family, and further on the source port.
        let mut message = [0u8; 88];
        (message[0], message[4], message[16]) = (88, 20, AF_INET);
        message[20..22].copy_from_slice(&8080u16.to_be_bytes());
        for length in 1..88 {
            assert!(read(&message[..length], &mut ports).is_err(), "{length}");
        }
        assert!(!read(&message, &mut ports).unwrap());
        assert_eq!(ports, BTreeSet::from([8080]));
    }

    #[test]
    fn a_process_that_is_gone_has_no_listeners() {
        assert_eq!(listened(u32::MAX), BTreeSet::new());
    }
}
