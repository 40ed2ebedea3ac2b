//! All connections of a trace: takes the records of the sockets signal, keeps a [`Conversation`] for
//! each, and gives the facts of each window.

use std::collections::{HashMap, HashSet};

use perf_ebpf_common::{
    Wire as _, class, fd,
    signals::{
        RecordHeader,
        ledger::detail,
        record,
        requests::ThreadTotals,
        sockets::{Connection, SocketData, Told, direction},
    },
};
use rustc_hash::FxHashMap;

use super::{
    Joined, Options, Output, Protocol,
    conversation::{Captured, Conversation},
    ends::{address, figures, is_client},
    gathered::Gathered,
    requests::{Piece, Serving},
    telling::Telling,
};
use crate::drain::{ConnectionFact, RequestFact, StatementFact, TrafficFact};

/// Connections shown of a window, the busiest first.
const MAX_SHOWN: usize = 100;
/// Bytes of a connection held until its description comes.
const MAX_UNMET_BYTES: usize = 64 << 10;
/// Windows after which a connection that the kernel side no longer knows is forgotten.
const FORGET_AFTER: u32 = 2;

/// A connection and its conversation.
struct Known {
    /// As of the last record or window; `None` until it was described.
    meta: Option<Connection>,
    /// Its figures at the end of the window before.
    before: Connection,
    age_new: bool,
    conversation: Option<Conversation>,
    /// Of a connection whose server the target is.
    serving: Serving,
    /// Place of the other end's name.
    peer: u32,
    /// Data that came before the description.
    early: Vec<Vec<u8>>,
    early_bytes: usize,
    tgid: u32,
    closed: bool,
    missing: u32,
    exchanges_before: u64,
    telling: Telling,
    /// Plaintext of it is seen: what else moves is not decoded.
    plaintext: bool,
}

/// See the module.
pub struct Connections {
    output: Output,
    gathered: Gathered,
    known: FxHashMap<u64, Known>,
    /// Connections that were there before the trace, by [`Connection::id`].
    preexisting: HashSet<u64>,
    peers: Vec<String>,
    peer_places: HashMap<String, u32>,
    unix: HashMap<u64, String>,
    /// Clients' connections that something may have to be told of.
    looked_at: Vec<u64>,
    tls_bytes: u64,
    /// When OpenSSL was probed last: plaintext of older connections has no beginning.
    tls_since_ns: u64,
}

/// What became of a record of the data ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    Read,
    /// Its connection is not described yet: held until it is.
    Held,
    /// It is no such record.
    Refused,
}

/// What a window's connections came to.
pub struct WindowFacts {
    pub connections: Vec<ConnectionFact>,
    pub statements: Vec<StatementFact>,
    pub requests: Vec<RequestFact>,
    pub traffic: TrafficFact,
}

/// Ledger class of waiting for a peer that speaks a protocol.
pub const fn class_of(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Postgresql => class::NET_POSTGRESQL,
        Protocol::Mysql => class::NET_MYSQL,
        Protocol::Redis => class::NET_REDIS,
        Protocol::Memcached => class::NET_MEMCACHED,
        Protocol::Mongodb => class::NET_MONGODB,
        Protocol::Http => class::NET_HTTP,
        Protocol::Http2 => class::NET_HTTP2,
        Protocol::Kafka => class::NET_KAFKA,
    }
}

impl Connections {
    pub fn new(options: Options) -> Connections {
        Connections {
            output: Output::new(options),
            gathered: Gathered::default(),
            known: FxHashMap::default(),
            preexisting: HashSet::new(),
            peers: Vec::new(),
            peer_places: HashMap::new(),
            unix: HashMap::new(),
            looked_at: Vec::new(),
            tls_bytes: 0,
            tls_since_ns: 0,
        }
    }

    /// Sockets (by inode number) that were there before the trace began.
    pub fn preexisting(&mut self, ids: impl IntoIterator<Item = u64>) {
        self.preexisting.extend(ids);
    }

    /// OpenSSL was probed.
    pub fn tls_since(&mut self, at_ns: u64) {
        self.tls_since_ns = at_ns;
    }

    /// A Unix socket's name.
    pub fn unix_name(&mut self, id: u64, path: &str) {
        self.unix.insert(id, path.to_owned());
    }

    /// A connection was described.
    pub fn met(&mut self, connection: &Connection) {
        if let Some(known) = self.known.get_mut(&connection.id)
            && let Some(meta) = &mut known.meta
        {
            *meta = *connection;
            return;
        }
        let age_new = !self.preexisting.contains(&connection.id);
        let peer = self.peer_place(connection);
        let known = self.known.entry(connection.id).or_insert_with(Known::new);
        known.meta = Some(*connection);
        known.age_new = age_new;
        known.peer = peer;
        known.tgid = connection.tgid;
        if let Some(client) = is_client(connection.kind) {
            let joined = if age_new {
                Joined::AtStart
            } else {
                Joined::Late
            };
            known.conversation = Some(Conversation::new(client, joined));
        }
        for record in std::mem::take(&mut known.early) {
            self.data(&record);
        }
    }

    /// A connection's socket is gone.
    pub fn closed(&mut self, connection: &Connection) {
        self.met(connection);
        let Some(known) = self.known.get_mut(&connection.id) else {
            return;
        };
        known.closed = true;
        if let Some(conversation) = &mut known.conversation {
            conversation.end(&mut self.output);
        }
        self.gathered.requests.answered(&mut known.serving);
        self.gather(connection.id);
    }

    /// Takes a record of the data ring.
    pub fn data(&mut self, record: &[u8]) -> Taken {
        let kind = RecordHeader::from_bytes(record).map(|header| header.kind);
        if kind == Some(record::THREAD_TOTALS) {
            let Some(totals) = ThreadTotals::from_bytes(record) else {
                return Taken::Refused;
            };
            self.gathered.requests.told(&totals);
            return Taken::Read;
        }
        let Some(data) = SocketData::from_bytes(record) else {
            return Taken::Refused;
        };
        let payload = &record[size_of::<SocketData>()..];
        let (captured, tail) = (usize::from(data.captured), usize::from(data.tail));
        let Some(payload) = payload.get(..captured + tail) else {
            return Taken::Refused;
        };
        let Some(known) = self.known.get_mut(&data.id).filter(|k| k.meta.is_some()) else {
            self.hold(data.id, record);
            return Taken::Held;
        };
        self.gathered.traffic.bytes_seen += u64::from(data.bytes);
        known.tgid = data.tgid;
        if data.plaintext != 0 && !known.plaintext {
            known.plaintext = true;
            let since_ns = self.tls_since_ns;
            let begun = known.meta.is_some_and(|c| c.first_ns > since_ns);
            if let Some(conversation) = &mut known.conversation {
                conversation.decrypted(known.age_new && begun);
            }
        } else if known.plaintext && data.plaintext == 0 {
            // Handshake and alerts; what read and write calls move comes as plaintext instead.
            self.tls_bytes += u64::from(data.bytes);
            return Taken::Read;
        }
        let Some(conversation) = &mut known.conversation else {
            return Taken::Read;
        };
        let decoded: u64 = self.output.decoded.iter().sum();
        let piece = Captured {
            sent: data.direction == direction::SENT,
            at_ns: data.header.at_ns,
            tid: data.tid,
            position: data.position,
            other_position: data.other_position,
            bytes: data.bytes.into(),
            head: &payload[..captured],
            tail: &payload[captured..],
        };
        conversation.take(&piece, &mut self.output);
        if conversation.is_encrypted() {
            // What agreed on it was in the clear.
            let clear = self.output.decoded.iter().sum::<u64>() - decoded;
            self.tls_bytes += u64::from(data.bytes).saturating_sub(clear);
        }
        if conversation.is_client() && !known.telling.looked_at {
            known.telling.looked_at = true;
            self.looked_at.push(data.id);
        }
        let served = Piece {
            connection: data.id,
            tid: data.tid,
            tgid: data.tgid,
            at_ns: data.header.at_ns,
            account_ns: data.account_ns,
            sent: piece.sent,
            in_flight: false,
            asks_nothing: false,
        };
        let (serving, of) = (&mut known.serving, (served, known.peer));
        self.gathered
            .passed(conversation, serving, of, &self.output);
        let of = (known.tgid, known.peer);
        self.gathered.take(Some(conversation), of, &mut self.output);
        Taken::Read
    }

    /// Keeps a record until its connection is described.
    fn hold(&mut self, id: u64, record: &[u8]) {
        let known = self.known.entry(id).or_insert_with(Known::new);
        if known.early_bytes + record.len() <= MAX_UNMET_BYTES {
            known.early_bytes += record.len();
            known.early.push(record.to_vec());
        }
    }

    /// Takes what a decoder just gave into the window.
    fn gather(&mut self, id: u64) {
        if let Some(known) = self.known.get_mut(&id) {
            if let Some(conversation) = &known.conversation
                && let (Some(protocol), false) = (conversation.protocol(), conversation.is_client())
            {
                let exchanges = &self.output.exchanges;
                self.gathered
                    .requests
                    .ended(known.tgid, protocol, exchanges);
            }
            let (conversation, of) = (known.conversation.as_mut(), (known.tgid, known.peer));
            self.gathered.take(conversation, of, &mut self.output);
        }
    }

    /// What the kernel side is to be told, by connection. `before_ns` is when this was asked before.
    pub fn tell(&mut self, before_ns: u64) -> Vec<(u64, Told)> {
        let mut tell = Vec::new();
        let known = &mut self.known;
        self.looked_at.retain(|id| {
            let Some(known) = known.get_mut(id) else {
                return false;
            };
            let Some(conversation) = &known.conversation else {
                return false;
            };
            let (told, again) = known.telling.look(conversation, before_ns);
            tell.extend(told.map(|told| (*id, told)));
            known.telling.looked_at = again;
            again
        });
        tell
    }

    /// The connection of a client, and its protocol's ledger class, if an answer to a request that was sent
    /// before `at_ns` is still on its way.
    pub fn awaited(&self, id: u64, at_ns: u64) -> Option<u8> {
        let conversation = self.known.get(&id)?.conversation.as_ref()?;
        let awaited = conversation.is_client()
            && conversation.requested_ns <= at_ns
            && conversation.is_awaited();
        conversation.protocol().filter(|_| awaited).map(class_of)
    }

    /// Ids of connections that the kernel side does not tell the end of.
    pub fn unix_ids(&self) -> impl Iterator<Item = (u64, u32)> {
        self.known.iter().filter_map(|(id, k)| {
            let kind = k.meta?.kind;
            matches!(kind, fd::UNIX_CLIENT | fd::UNIX_SERVER | fd::UNIX_PAIR)
                .then_some((*id, k.tgid))
        })
    }

    /// Ends a window with the kernel side's figures: entries of the map `connections`.
    pub fn window(&mut self, entries: &[u8], end_ns: u64) -> WindowFacts {
        let mut there = HashSet::new();
        for entry in entries.chunks_exact(8 + size_of::<Connection>()) {
            if let Some(connection) = Connection::from_bytes(&entry[8..]) {
                there.insert(connection.id);
                self.met(&connection);
            }
        }
        let mut rows = Vec::new();
        let ids: Vec<u64> = self.known.keys().copied().collect();
        for id in ids {
            self.end_of_window(id, end_ns, &there, &mut rows);
            self.gather(id);
        }
        let requests = &mut self.gathered.requests;
        self.known.retain(|id, k| {
            k.missing = if there.contains(id) { 0 } else { k.missing + 1 };
            let kept = !k.closed && k.missing < FORGET_AFTER;
            if !kept {
                requests.answered(&mut k.serving);
            }
            kept
        });
        requests.forget(end_ns);
        let decoded = std::mem::take(&mut self.output.decoded);
        self.gathered.traffic.bytes_decoded = decoded[0] + decoded[1];
        self.gathered.traffic.bytes_encrypted = std::mem::take(&mut self.tls_bytes);
        self.gathered.traffic.connections = rows.len() as u64;
        self.gathered.traffic.statements_dropped =
            std::mem::take(&mut self.gathered.statements.dropped);
        rows.sort_by(|a, b| {
            (b.tx_bytes + b.rx_bytes, a.pid, &a.local, &a.peer, a.id).cmp(&(
                a.tx_bytes + a.rx_bytes,
                b.pid,
                &b.local,
                &b.peer,
                b.id,
            ))
        });
        for rest in rows.drain(MAX_SHOWN.min(rows.len())..) {
            self.gathered.traffic.rest_connections += 1;
            self.gathered.traffic.rest_bytes += rest.tx_bytes + rest.rx_bytes;
        }
        let peers = &self.peers;
        let peer = |place: u32| peers.get(place as usize).cloned().unwrap_or_default();
        let Gathered {
            statements,
            requests,
            traffic,
        } = &mut self.gathered;
        let served = statements.served();
        let asked = requests.asked_by(&served);
        (traffic.calls, traffic.calls_elsewhere) = (asked.all, asked.elsewhere);
        let requests = requests.routes.window(served, &self.output, peer);
        let statements = statements.window(&self.output, peer);
        WindowFacts {
            connections: rows,
            statements,
            requests,
            traffic: std::mem::take(traffic),
        }
    }

    fn end_of_window(
        &mut self,
        id: u64,
        end_ns: u64,
        there: &HashSet<u64>,
        rows: &mut Vec<ConnectionFact>,
    ) {
        let Some(known) = self.known.get_mut(&id) else {
            return;
        };
        let Some(mut now) = known.meta else {
            return;
        };
        // No event tells of a Unix socket's end, but the kernel side gives its entry to the next one at
        // the same address. What it moved is then known from its pieces alone.
        let replaced = matches!(now.kind, fd::UNIX_CLIENT | fd::UNIX_SERVER)
            && now.first_ns < end_ns
            && !there.contains(&id);
        if let (true, Some(conversation)) = (replaced, &known.conversation) {
            let [sent, received] = conversation.moved();
            now.tx_bytes = now.tx_bytes.max(sent);
            now.rx_bytes = now.rx_bytes.max(received);
            known.meta = Some(now);
        }
        if let Some(conversation) = &mut known.conversation {
            conversation.release(&mut self.output);
            if let Some(since) = &mut conversation.idle_in_transaction_since_ns {
                conversation.idle_in_transaction_ns += end_ns.saturating_sub(*since);
                *since = end_ns;
            }
        }
        let exchanges = known.conversation.as_ref().map_or(0, |c| c.exchanges);
        let before = std::mem::replace(&mut known.before, now);
        let moved = now.tx_bytes + now.rx_bytes > before.tx_bytes + before.rx_bytes;
        let waits = known
            .conversation
            .as_ref()
            .is_some_and(|c| c.is_in_flight() || c.idle_in_transaction_since_ns.is_some());
        if !moved && !waits && !known.closed {
            return;
        }
        let mut row = figures(&now, &before);
        row.id = id;
        row.pid = known.tgid;
        row.new = known.age_new;
        row.closed = known.closed || replaced;
        row.first_window = before.first_ns == 0;
        row.exchanges = exchanges - std::mem::replace(&mut known.exchanges_before, exchanges);
        if let Some(conversation) = &mut known.conversation {
            row.client = Some(conversation.is_client());
            row.protocol = conversation.protocol().map(|p| p.name().to_owned());
            row.encrypted = conversation.is_encrypted();
            row.plaintext = known.plaintext;
            row.in_flight = conversation.in_flight() as u64;
            row.idle_in_transaction_ns = std::mem::take(&mut conversation.idle_in_transaction_ns);
        }
        (row.local, row.peer) = self.ends(&now);
        rows.push(row);
    }

    /// Detached: requests in flight stay unanswered.
    pub fn end(&mut self) {
        let ids: Vec<u64> = self.known.keys().copied().collect();
        for id in ids {
            if let Some(conversation) = self
                .known
                .get_mut(&id)
                .and_then(|k| k.conversation.as_mut())
            {
                conversation.end(&mut self.output);
            }
            self.gather(id);
        }
    }

    /// Place of the name statements of a connection go under: the server's address for a client, the
    /// client's host (its ports come and go) for a server.
    fn peer_place(&mut self, c: &Connection) -> u32 {
        let name = match (c.peer_kind, is_client(c.kind)) {
            (detail::UNIX, _) => self.unix.get(&c.peer[0]).cloned().unwrap_or_default(),
            (_, Some(true)) => address(c.peer_kind, &c.peer, Some(c.peer_port)),
            _ => address(c.peer_kind, &c.peer, None),
        };
        if let Some(place) = self.peer_places.get(&name) {
            return *place;
        }
        let place = self.peers.len() as u32;
        self.peers.push(name.clone());
        self.peer_places.insert(name, place);
        place
    }

    /// Names of this end and the other.
    fn ends(&self, c: &Connection) -> (String, String) {
        if c.peer_kind != detail::UNIX {
            return (
                address(c.peer_kind, &c.local, Some(c.local_port)),
                address(c.peer_kind, &c.peer, Some(c.peer_port)),
            );
        }
        let name = self.unix.get(&c.peer[0]).cloned().unwrap_or_default();
        if c.kind == fd::UNIX_SERVER {
            (name, String::new())
        } else {
            (String::new(), name)
        }
    }
}

impl Known {
    fn new() -> Known {
        Known {
            meta: None,
            before: Connection::default(),
            age_new: false,
            conversation: None,
            serving: Serving::default(),
            peer: 0,
            early: Vec::new(),
            early_bytes: 0,
            tgid: 0,
            closed: false,
            missing: 0,
            exchanges_before: 0,
            telling: Telling::default(),
            plaintext: false,
        }
    }
}
