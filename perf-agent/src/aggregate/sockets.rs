//! Connections, statements and requests of a window, by process.

use crate::{
    drain::{ConnectionFact, RequestFact, StatementFact, TrafficFact},
    model::{
        ConnectionRow, Connections, Coverage, ProcessReport, RequestCoverage, RequestRow, Requests,
        SocketCoverage, Stamp, StatementRow, Statements, Window,
    },
};

/// What the drain decoded of the window that is open.
#[derive(Default)]
pub struct Sockets {
    pub connections: Vec<ConnectionFact>,
    pub statements: Vec<StatementFact>,
    pub requests: Vec<RequestFact>,
    pub traffic: TrafficFact,
    request_coverage: RequestCoverage,
}

impl Sockets {
    /// Takes a process's part out and into its report.
    pub fn add_to(&mut self, report: &mut ProcessReport, stamp: &Stamp, window: Window) {
        let who = &report.ledger.who;
        let of_process = |pid: u32| pid == who.pid;
        let connections: Vec<ConnectionRow> = self
            .connections
            .extract_if(.., |c| of_process(c.pid))
            .filter_map(|c| connection(&c))
            .collect();
        let statements: Vec<StatementRow> = self
            .statements
            .extract_if(.., |s| of_process(s.pid))
            .map(|s| statement(s, window))
            .collect();
        let requests: Vec<RequestRow> = self
            .requests
            .extract_if(.., |r| of_process(r.pid))
            .map(|r| r.row)
            .collect();
        cover_requests(&mut self.request_coverage, &requests);
        report.requests = (!requests.is_empty()).then(|| Requests {
            stamp: stamp.clone(),
            who: who.clone(),
            window,
            requests,
        });
        report.connections = (!connections.is_empty()).then(|| Connections {
            stamp: stamp.clone(),
            who: who.clone(),
            window,
            connections,
        });
        report.statements = (!statements.is_empty()).then(|| Statements {
            stamp: stamp.clone(),
            who: who.clone(),
            window,
            statements,
        });
    }

    /// Says how much of the sockets' bytes the figures rest on. What is left of the window belongs to
    /// processes without lines of their own.
    pub fn cover(&mut self, coverage: &mut Coverage) {
        let traffic = std::mem::take(&mut self.traffic);
        coverage.bytes_seen = traffic.bytes_seen;
        coverage.bytes_decoded = traffic.bytes_decoded;
        coverage.sockets = SocketCoverage {
            connections: traffic.connections,
            unlisted_connections: traffic.rest_connections,
            unlisted_bytes: traffic.rest_bytes,
            tls_unreadable_bytes: traffic.bytes_encrypted,
            unreadable_tls: traffic.unreadable_tls,
            statements_dropped: traffic.statements_dropped,
            unattributed_statements: self.statements.drain(..).map(|s| s.latency.count).sum(),
            anomalies: traffic.anomalies,
        };
        self.connections.clear();
        let rest: Vec<RequestRow> = self.requests.drain(..).map(|r| r.row).collect();
        cover_requests(&mut self.request_coverage, &rest);
        coverage.requests = RequestCoverage {
            calls: traffic.calls,
            calls_elsewhere: traffic.calls_elsewhere,
            ..std::mem::take(&mut self.request_coverage)
        };
    }
}

fn cover_requests(coverage: &mut RequestCoverage, rows: &[RequestRow]) {
    for row in rows {
        coverage.served += row.count;
        coverage.attributed += row.attributed;
        for (reason, n) in &row.unattributed {
            *coverage.unattributed.entry(reason.clone()).or_default() += n;
        }
    }
}

/// A connection's row; `None` where it has no client and no server (a socketpair).
fn connection(c: &ConnectionFact) -> Option<ConnectionRow> {
    let protocol = match (&c.protocol, c.encrypted) {
        (_, true) => "tls-unreadable",
        (Some(name), false) => name,
        (None, false) => "unknown",
    };
    Some(ConnectionRow {
        id: c.id,
        protocol: protocol.to_owned(),
        role: role(c.client?).to_owned(),
        local: c.local.clone(),
        peer: c.peer.clone(),
        age: if c.new { "new" } else { "preexisting" }.to_owned(),
        opened: c.new && c.first_window,
        closed: c.closed,
        tx_bytes: c.tx_bytes,
        rx_bytes: c.rx_bytes,
        connect_ns: c.connect_ns,
        rtt_ns: c.rtt_ns,
        rtt_min_ns: c.rtt_min_ns,
        rtt_max_ns: c.rtt_max_ns,
        retransmits: c.retransmits,
        resets: c.resets,
        send_stalls: c.send_stalls,
        send_stall_ns: c.send_stall_ns,
        tls: c.encrypted || c.plaintext,
        exchanges: c.exchanges,
        in_flight: c.in_flight,
        idle_in_transaction_ns: c.idle_in_transaction_ns,
    })
}

fn role(client: bool) -> &'static str {
    if client { "client" } else { "server" }
}

fn statement(s: StatementFact, window: Window) -> StatementRow {
    let wall = window.length_ns().max(1) as f64;
    StatementRow {
        fingerprint: format!("{:016x}", crate::hash::fnv1a(&[&s.protocol, &s.text])),
        role: role(s.client).to_owned(),
        count: s.latency.count,
        wall_share: s.latency.sum_ns as f64 / wall,
        protocol: s.protocol,
        peer: s.peer,
        text: s.text,
        errors: s.errors.values().sum(),
        errors_by_code: s.errors,
        latency: s.latency,
        first_byte: s.first_byte,
        queued: s.queued,
        hits: s.hits,
        misses: s.misses,
        runs: s.runs,
        run_exchanges: s.run_exchanges,
        longest_run: s.longest_run,
        led_by: s.led_by,
    }
}
