//! What was said with whom, over all processes: statements and connections.

use std::{cmp::Reverse, collections::BTreeMap};

use super::state::{LatencySum, add_all, shrink};
use crate::model::{ConnectionRow, Connections, SocketCoverage, StatementRow, Statements};
use crate::sink::text::{Align, Style, Table, Text, plain};
use crate::sink::units;

const STATEMENTS: usize = 10;
const PEERS: usize = 8;
/// Characters shown of a statement.
const TEXT: usize = 70;

/// A statement over several windows and processes.
#[derive(Default)]
struct StatementSum {
    latency: LatencySum,
    p50_ns: u64,
    p95_ns: u64,
    errors: BTreeMap<String, u64>,
    hits: u64,
    misses: u64,
}

/// Connections of one protocol and role with one peer.
#[derive(Default)]
struct PeerSum {
    new: u64,
    preexisting: u64,
    bytes: [u64; 2],
    exchanges: u64,
    rtt_sum_ns: u64,
    rtt_count: u64,
    rtt_max_ns: u64,
    retransmits: u64,
    resets: u64,
    send_stall_ns: u64,
    idle_in_transaction_ns: u64,
}

/// Role, protocol, peer.
type PeerKey = (String, String, String);

/// See the module.
#[derive(Default)]
pub struct Peers {
    statements: BTreeMap<(String, String, String), StatementSum>,
    peers: BTreeMap<PeerKey, PeerSum>,
    /// Connections counted already: by socket and when it is of which age.
    seen: std::collections::HashSet<u64>,
    pub given_up: u64,
}

impl Peers {
    pub fn add_statements(&mut self, line: &Statements) {
        for row in &line.statements {
            self.add_statement(row);
        }
        self.given_up += shrink(&mut self.statements, |s| s.latency.sum_ns);
    }

    fn add_statement(&mut self, row: &StatementRow) {
        let key = (row.role.clone(), row.protocol.clone(), row.text.clone());
        let sum = self.statements.entry(key).or_default();
        sum.latency.add(&row.latency);
        sum.p50_ns = sum.p50_ns.max(row.latency.p50_ns);
        sum.p95_ns = sum.p95_ns.max(row.latency.p95_ns);
        add_all(&mut sum.errors, &row.errors_by_code);
        sum.hits += row.hits;
        sum.misses += row.misses;
    }

    pub fn add_connections(&mut self, line: &Connections) {
        for row in &line.connections {
            self.add_connection(row);
        }
        self.given_up += shrink(&mut self.peers, |p| p.bytes[0] + p.bytes[1]);
    }

    fn add_connection(&mut self, row: &ConnectionRow) {
        // A client's port comes and goes; a server's address is what it is known by.
        let peer = match row.role.as_str() {
            "client" => row.peer.clone(),
            _ => host(&row.peer).to_owned(),
        };
        let key = (row.role.clone(), row.protocol.clone(), peer);
        let sum = self.peers.entry(key).or_default();
        if self.seen.insert(row.id) {
            match row.age.as_str() {
                "new" => sum.new += 1,
                _ => sum.preexisting += 1,
            }
        }
        if row.closed {
            self.seen.remove(&row.id);
        }
        sum.bytes[0] += row.tx_bytes;
        sum.bytes[1] += row.rx_bytes;
        sum.exchanges += row.exchanges;
        if let Some(rtt) = row.rtt_ns {
            sum.rtt_sum_ns += rtt;
            sum.rtt_count += 1;
        }
        sum.rtt_max_ns = sum.rtt_max_ns.max(row.rtt_max_ns.unwrap_or(0));
        sum.retransmits += row.retransmits;
        sum.resets += row.resets;
        sum.send_stall_ns += row.send_stall_ns;
        sum.idle_in_transaction_ns += row.idle_in_transaction_ns;
    }

    /// The statements that took longest in all.
    pub fn statements(&self, text: &mut Text, wall_ns: u64) {
        if self.statements.is_empty() {
            return;
        }
        text.gap();
        text.heading(
            "Statements",
            "time is the sum of latencies; share is of wall time",
        );
        let mut rows: Vec<_> = self.statements.iter().collect();
        rows.sort_by_key(|(key, sum)| (Reverse(sum.latency.sum_ns), *key));
        let mut table = Table::new(&[
            ("time", Align::Right),
            ("share", Align::Right),
            ("count", Align::Right),
            ("per s", Align::Right),
            ("p50", Align::Right),
            ("p95", Align::Right),
            ("p99", Align::Right),
            ("max", Align::Right),
            ("statement", Align::Left),
        ]);
        let shown = rows.len().min(STATEMENTS);
        for ((role, protocol, shape), sum) in &rows[..shown] {
            let latency = &sum.latency;
            let of = |ns| match latency.windows {
                0 | 1 => units::duration(ns),
                _ => format!("≤ {}", units::duration(ns)),
            };
            table.row(vec![
                plain(units::duration(latency.sum_ns)),
                plain(units::percent(latency.sum_ns, wall_ns)),
                plain(units::count(latency.count)),
                plain(units::rate(
                    latency.count as f64 * 1e9 / wall_ns.max(1) as f64,
                )),
                plain(of(sum.p50_ns)),
                plain(of(sum.p95_ns)),
                plain(of(latency.p99_ns)),
                plain(units::duration(latency.max_ns)),
                plain(format!("{protocol} {role}: {}{}", cut(shape), notes(sum))),
            ]);
        }
        table.put(text);
        if rows.len() > shown {
            let more = rows.len() - shown;
            text.line([(Style::Dim, format!("    … and {more} more shapes"))]);
        }
    }

    /// Who was talked to.
    pub fn connections(&self, text: &mut Text) {
        if self.peers.is_empty() {
            return;
        }
        text.gap();
        text.heading("Connections", "");
        let mut rows: Vec<_> = self.peers.iter().collect();
        rows.sort_by_key(|(key, sum)| (Reverse(sum.bytes[0] + sum.bytes[1]), *key));
        let mut table = Table::new(&[
            ("protocol", Align::Left),
            ("role", Align::Left),
            ("peer", Align::Left),
            ("new", Align::Right),
            ("older", Align::Right),
            ("sent", Align::Right),
            ("received", Align::Right),
            ("answers", Align::Right),
            ("rtt", Align::Right),
            ("", Align::Left),
        ]);
        for ((role, protocol, peer), sum) in rows.iter().take(PEERS) {
            let rtt = sum.rtt_sum_ns.checked_div(sum.rtt_count);
            table.row(vec![
                plain(protocol.clone()),
                plain(role.clone()),
                plain(peer.clone()),
                plain(units::count(sum.new)),
                plain(units::count(sum.preexisting)),
                plain(units::bytes(sum.bytes[0])),
                plain(units::bytes(sum.bytes[1])),
                plain(units::count(sum.exchanges)),
                plain(rtt.map_or_else(String::new, units::duration)),
                plain(troubles(sum)),
            ]);
        }
        table.put(text);
        if rows.len() > PEERS {
            let more = rows.len() - PEERS;
            text.line([(Style::Dim, format!("    … and {more} more peers"))]);
        }
    }
}

/// `12 of 40 failed (23505 12)`, `hit ratio 93 %`.
fn notes(sum: &StatementSum) -> String {
    let mut notes = String::new();
    let failed: u64 = sum.errors.values().sum();
    if failed > 0 {
        let codes: Vec<String> = sum.errors.iter().map(|(c, n)| format!("{c} {n}")).collect();
        notes += &format!("  [{failed} failed: {}]", codes.join(", "));
    }
    if sum.hits + sum.misses > 0 {
        let ratio = units::percent(sum.hits, sum.hits + sum.misses);
        notes += &format!("  [hit ratio {ratio}]");
    }
    notes
}

fn troubles(sum: &PeerSum) -> String {
    let mut troubles = Vec::new();
    for (what, n) in [("retransmits", sum.retransmits), ("resets", sum.resets)] {
        if n > 0 {
            troubles.push(format!("{} {what}", units::count(n)));
        }
    }
    for (what, ns) in [
        ("in full send buffers", sum.send_stall_ns),
        ("idle in transaction", sum.idle_in_transaction_ns),
    ] {
        if ns > 0 {
            troubles.push(format!("{} {what}", units::duration(ns)));
        }
    }
    troubles.join(", ")
}

/// `123 MB of socket data, 98 % decoded`, with what kept the rest from it.
pub fn coverage(sockets: &SocketCoverage, seen: u64, decoded: u64) -> Option<String> {
    if seen == 0 {
        return None;
    }
    let mut line = format!(
        "{} of {} socket bytes decoded",
        units::percent(decoded, seen),
        units::bytes(seen)
    );
    if sockets.tls_unreadable_bytes > 0 {
        line += &format!(", {} in TLS", units::bytes(sockets.tls_unreadable_bytes));
        if !sockets.unreadable_tls.is_empty() {
            line += &format!(" (not readable: {})", sockets.unreadable_tls.join(", "));
        }
    }
    for (what, n) in &sockets.anomalies {
        line += &format!(", {} {}", units::count(*n), what.replace('_', " "));
    }
    Some(line)
}

fn host(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

pub fn cut(shape: &str) -> String {
    if shape.chars().count() <= TEXT {
        return shape.to_owned();
    }
    let mut short: String = shape.chars().take(TEXT - 1).collect();
    short.push('…');
    short
}
