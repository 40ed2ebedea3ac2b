//! Packet captures as what a decoder is given: the bytes of each connection, in order.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use pcap_parser::{LegacyPcapReader, PcapBlockOwned, PcapError, traits::PcapReaderIterator};
use perf_agent::decode::{Direction, Joined};

/// What passed, in the order of the capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Bytes(Direction, u64, Vec<u8>),
    /// So many bytes that are not in the capture.
    Gap(Direction, u64, u64),
}

/// A TCP connection in a capture.
pub struct Connection {
    pub joined: Joined,
    pub events: Vec<Event>,
    ways: [Way; 2],
}

/// One direction's reassembly.
#[derive(Default)]
struct Way {
    /// Sequence number that comes next, counted without wrapping.
    next: Option<u64>,
    /// What came before its time, by sequence number.
    early: BTreeMap<u64, Vec<u8>>,
}

/// One segment.
struct Segment {
    at_ns: u64,
    from: SocketAddr,
    to: SocketAddr,
    sequence: u32,
    syn: bool,
    ack: bool,
    payload: Vec<u8>,
    /// Bytes of the payload that were not captured.
    cut: u64,
}

/// The connections of a capture, in the order of their first packets. The client is who opened it;
/// where that is not in the capture, who sends first.
pub fn connections(path: &Path) -> Vec<Connection> {
    let mut taken: Vec<([SocketAddr; 2], SocketAddr, Connection)> = Vec::new();
    for segment in segments(path) {
        let mut ends = [segment.from, segment.to];
        ends.sort();
        let known = taken.iter().position(|(of, ..)| *of == ends);
        let at = match known {
            Some(at) => at,
            None if !segment.syn && segment.payload.is_empty() => continue,
            None => {
                let client = match segment.syn && segment.ack {
                    true => segment.to,
                    false => segment.from,
                };
                let joined = match segment.syn {
                    true => Joined::AtStart,
                    false => Joined::Late,
                };
                taken.push((ends, client, Connection::new(joined)));
                taken.len() - 1
            }
        };
        let (_, client, connection) = &mut taken[at];
        let direction = match segment.from == *client {
            true => Direction::Request,
            false => Direction::Response,
        };
        connection.take(direction, segment);
    }
    let closed = taken.into_iter().map(|(.., mut connection)| {
        connection.close();
        connection
    });
    closed.filter(|c| !c.events.is_empty()).collect()
}

fn segments(path: &Path) -> Vec<Segment> {
    let file = std::fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut reader = LegacyPcapReader::new(1 << 20, file).expect("a capture");
    let mut segments = Vec::new();
    loop {
        match reader.next() {
            Ok((offset, PcapBlockOwned::Legacy(block))) => {
                let at_ns =
                    u64::from(block.ts_sec) * 1_000_000_000 + u64::from(block.ts_usec) * 1000;
                segments.extend(segment(at_ns, block.data));
                reader.consume(offset);
            }
            Ok((offset, _)) => reader.consume(offset),
            Err(PcapError::Eof) => return segments,
            Err(PcapError::Incomplete(_)) => reader.refill().expect("the rest of the capture"),
            Err(e) => panic!("{}: {e:?}", path.display()),
        }
    }
}

/// The TCP segment of a packet; the IP header says how long it really was.
fn segment(at_ns: u64, data: &[u8]) -> Option<Segment> {
    let packet = LaxSlicedPacket::from_ethernet(data).ok()?;
    let (source, destination, length) = match packet.net.as_ref()? {
        LaxNetSlice::Ipv4(ip) => {
            let header = ip.header();
            let length = usize::from(header.total_len()) - usize::from(header.ihl()) * 4;
            (
                header.source_addr().into(),
                header.destination_addr().into(),
                length,
            )
        }
        LaxNetSlice::Ipv6(ip) => {
            let header = ip.header();
            (
                header.source_addr().into(),
                header.destination_addr().into(),
                usize::from(header.payload_length()),
            )
        }
        _ => return None,
    };
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else {
        return None;
    };
    let whole = length.saturating_sub(tcp.header_slice().len());
    let payload = &tcp.payload()[..tcp.payload().len().min(whole)];
    Some(Segment {
        at_ns,
        from: SocketAddr::new(source, tcp.source_port()),
        to: SocketAddr::new(destination, tcp.destination_port()),
        sequence: tcp.sequence_number(),
        syn: tcp.syn(),
        ack: tcp.ack(),
        payload: payload.to_vec(),
        cut: (whole - payload.len()) as u64,
    })
}

impl Connection {
    fn new(joined: Joined) -> Connection {
        Connection {
            joined,
            events: Vec::new(),
            ways: Default::default(),
        }
    }

    fn take(&mut self, direction: Direction, segment: Segment) {
        let way = &mut self.ways[direction as usize];
        if segment.syn {
            way.next = Some(u64::from(segment.sequence) + 1);
            return;
        }
        let next = *way.next.get_or_insert(u64::from(segment.sequence));
        // The number nearest to the next one.
        let ahead = segment.sequence.wrapping_sub(next as u32) as i32;
        let Some(at) = next.checked_add_signed(i64::from(ahead)) else {
            return;
        };
        if !segment.payload.is_empty() {
            way.early.insert(at, segment.payload);
        }
        while let Some(entry) = way.early.first_entry() {
            let next = way.next.unwrap_or(*entry.key());
            if *entry.key() > next {
                break;
            }
            let (at, payload) = entry.remove_entry();
            // Sent again, in part or as a whole.
            let seen = usize::try_from(next - at).unwrap_or(usize::MAX);
            if let Some(new) = payload.get(seen..).filter(|new| !new.is_empty()) {
                way.next = Some(next + new.len() as u64);
                let bytes = Event::Bytes(direction, segment.at_ns, new.to_vec());
                self.events.push(bytes);
            }
        }
        if segment.cut > 0 {
            way.next = way.next.map(|next| next + segment.cut);
            let gap = Event::Gap(direction, segment.at_ns, segment.cut);
            self.events.push(gap);
        }
    }

    /// What came early and was never caught up with lies behind a gap.
    fn close(&mut self) {
        for direction in [Direction::Request, Direction::Response] {
            let way = &mut self.ways[direction as usize];
            for (at, payload) in std::mem::take(&mut way.early) {
                let next = way.next.unwrap_or(at);
                let gap = at.saturating_sub(next);
                if gap > 0 {
                    self.events.push(Event::Gap(direction, 0, gap));
                }
                way.next = Some(at + payload.len() as u64);
                self.events.push(Event::Bytes(direction, 0, payload));
            }
        }
    }
}

/// The same packets in other pieces: `size` gives the length of each.
pub fn in_pieces(events: &[Event], mut size: impl FnMut() -> usize) -> Vec<Event> {
    let mut pieces = Vec::new();
    for event in events {
        let Event::Bytes(direction, at_ns, bytes) = event else {
            pieces.push(event.clone());
            continue;
        };
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(size().clamp(1, rest.len()));
            pieces.push(Event::Bytes(*direction, *at_ns, piece.to_vec()));
            rest = after;
        }
    }
    pieces
}

/// The same with no more than the first `limit` bytes of each piece.
pub fn cut_at(events: &[Event], limit: usize) -> Vec<Event> {
    let cut = |event: &Event| match event {
        Event::Bytes(direction, at_ns, bytes) if bytes.len() > limit => vec![
            Event::Bytes(*direction, *at_ns, bytes[..limit].to_vec()),
            Event::Gap(*direction, *at_ns, (bytes.len() - limit) as u64),
        ],
        event => vec![event.clone()],
    };
    events.iter().flat_map(cut).collect()
}
