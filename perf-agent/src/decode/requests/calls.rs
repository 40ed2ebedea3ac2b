//! What a thread asked others for while it served a request.

use super::super::{Exchange, Protocol, TextId, output::OTHER_TEXT};
use crate::model::{Downstream, DownstreamStatement};

/// Statements kept apart, of one request or of all of a route.
const MAX_STATEMENTS: usize = 64;

/// Peers kept apart; the others of a protocol share one row.
const MAX_PEERS: usize = 64;
const OTHER_PEER: u32 = u32::MAX;

/// Who was asked: protocol, and the place of the peer's name.
pub type Peer = (Protocol, u32);

#[derive(Clone, Debug)]
struct Asked {
    peer: Peer,
    /// For how long at least one answer was outstanding.
    time_ns: u64,
    /// Until when that was counted.
    until_ns: u64,
}

#[derive(Clone, Debug)]
struct Statement {
    peer: Peer,
    text: TextId,
    count: u64,
    errors: u64,
    sum_ns: u64,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Calls {
    peers: Vec<Asked>,
    statements: Vec<Statement>,
}

impl Calls {
    pub fn clear(&mut self) {
        self.peers.clear();
        self.statements.clear();
    }

    pub fn add(&mut self, peer: Peer, exchange: &Exchange) {
        let peer = self.kept(peer);
        let asked = self.asked(peer);
        let from_ns = exchange.started_ns.max(asked.until_ns);
        asked.time_ns += exchange.last_byte_ns.saturating_sub(from_ns);
        asked.until_ns = asked.until_ns.max(exchange.last_byte_ns);
        let statement = self.statement(peer, exchange.text);
        statement.count += 1;
        statement.errors += u64::from(exchange.error.is_some());
        statement.sum_ns += exchange.latency_ns();
    }

    /// Adds what another request asked for.
    pub fn merge(&mut self, other: &Calls) {
        for asked in &other.peers {
            let peer = self.kept(asked.peer);
            self.asked(peer).time_ns += asked.time_ns;
        }
        for row in &other.statements {
            let peer = self.kept(row.peer);
            let sum = self.statement(peer, row.text);
            sum.count += row.count;
            sum.errors += row.errors;
            sum.sum_ns += row.sum_ns;
        }
    }

    fn kept(&self, peer: Peer) -> Peer {
        let full = self.peers.len() >= MAX_PEERS && !self.peers.iter().any(|a| a.peer == peer);
        if full { (peer.0, OTHER_PEER) } else { peer }
    }

    fn asked(&mut self, peer: Peer) -> &mut Asked {
        let place = self.peers.iter().position(|asked| asked.peer == peer);
        let place = place.unwrap_or_else(|| {
            self.peers.push(Asked {
                peer,
                time_ns: 0,
                until_ns: 0,
            });
            self.peers.len() - 1
        });
        &mut self.peers[place]
    }

    fn statement(&mut self, peer: Peer, text: TextId) -> &mut Statement {
        let find = |rows: &[Statement], text| {
            rows.iter()
                .position(|row| row.peer == peer && row.text == text)
        };
        let mut place = find(&self.statements, text);
        let mut text = text;
        if place.is_none() && self.statements.len() >= MAX_STATEMENTS {
            text = OTHER_TEXT;
            place = find(&self.statements, text);
        }
        let place = place.unwrap_or_else(|| {
            self.statements.push(Statement {
                peer,
                text,
                count: 0,
                errors: 0,
                sum_ns: 0,
            });
            self.statements.len() - 1
        });
        &mut self.statements[place]
    }

    /// By peer, the one that took longest first; `name` and `text` give what places stand for.
    pub fn told(
        &self,
        name: impl Fn(u32) -> String,
        text: impl Fn(TextId) -> String,
    ) -> Vec<Downstream> {
        let of_peer = |asked: &Asked| {
            let rows = self.statements.iter().filter(|row| row.peer == asked.peer);
            let mut statements: Vec<DownstreamStatement> = rows
                .map(|row| DownstreamStatement {
                    text: text(row.text),
                    count: row.count,
                    errors: row.errors,
                    sum_ns: row.sum_ns,
                })
                .collect();
            statements.sort_by(|a, b| (b.sum_ns, &a.text).cmp(&(a.sum_ns, &b.text)));
            Downstream {
                protocol: asked.peer.0.name().to_owned(),
                peer: match asked.peer.1 {
                    OTHER_PEER => "(other peers)".to_owned(),
                    place => name(place),
                },
                count: statements.iter().map(|s| s.count).sum(),
                errors: statements.iter().map(|s| s.errors).sum(),
                time_ns: asked.time_ns,
                statements,
            }
        };
        let mut told: Vec<Downstream> = self.peers.iter().map(of_peer).collect();
        told.sort_by(|a, b| {
            (b.time_ns, &a.protocol, &a.peer).cmp(&(a.time_ns, &b.protocol, &b.peer))
        });
        told
    }
}
