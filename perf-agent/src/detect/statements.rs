//! What the rules over statements and connections share: who waits, what time is at stake, and how
//! a statement is called.

use std::collections::BTreeMap;

use super::services::{self, Service};
use super::view::{View, class, cpu, net, ratio};
use super::{Candidate, top_stacks};
use crate::model::{Classes, ConnectionRow, Detail, Site, StatementRow};

/// Characters of a statement in a title, and in a subject.
const IN_TITLE: usize = 70;
const IN_SUBJECT: usize = 200;

/// Commands whose answer comes when something happens, by protocol and how their text begins: how
/// long they take says nothing.
const WAIT_ON_PURPOSE: &[(&str, &[&str])] = &[
    (
        "redis",
        &[
            "BLPOP",
            "BRPOP",
            "BLMOVE",
            "BLMPOP",
            "BZPOP",
            "BZMPOP",
            "XREAD",
            "WAIT",
            "SUBSCRIBE",
            "PSUBSCRIBE",
            "SSUBSCRIBE",
            "MONITOR",
            "PSYNC",
            "SYNC",
        ],
    ),
    ("kafka", &["Fetch", "ShareFetch", "JoinGroup", "SyncGroup"]),
    // A cursor that waits for new data, and the driver's watch on the state of the server.
    ("mongodb", &["getMore", "hello", "isMaster", "ismaster"]),
    ("postgresql", &["START_REPLICATION"]),
    ("mysql", &["(binlog dump)"]),
];

/// The text that statements share which are not kept apart.
const OTHERS: &str = "(other statements)";

/// The part of the time of threads that a rule says can be saved, of a thread or a process.
pub type Stake = fn(&Classes) -> u64;

/// A client's: it waits for peers, or works.
pub fn asking(classes: &Classes) -> u64 {
    net(classes) + cpu(classes) + class(classes, "runq")
}

/// A server's: whatever is not waiting for work.
pub fn working(classes: &Classes) -> u64 {
    let unused = ["idle", "timer", "child", "stopped"];
    living(classes) - unused.iter().map(|name| class(classes, name)).sum::<u64>()
}

/// All of it: a database's locks between transactions are waits for a semaphore or a latch, which the
/// ledger has as idle.
pub fn living(classes: &Classes) -> u64 {
    classes.values().sum()
}

/// Whether the target asked, and did not answer.
pub fn is_client(role: &str) -> bool {
    role == "client"
}

/// Time for which a server had a statement in hand: without what it spent behind earlier requests of
/// its connection.
pub fn in_hand_ns(row: &StatementRow) -> u64 {
    row.latency.sum_ns.saturating_sub(row.queued.sum_ns)
}

/// Whether requests were sent without waiting for the answers to those before: then an answer is
/// mostly (here: by a third; two at a time come to that) behind others.
pub fn is_pipelined(row: &StatementRow) -> bool {
    row.queued.sum_ns > row.latency.sum_ns / 3
}

/// Whether a statement's latency means anything.
pub fn is_judged(row: &StatementRow) -> bool {
    let on_purpose = WAIT_ON_PURPOSE.iter().any(|(protocol, starts)| {
        *protocol == row.protocol && starts.iter().any(|start| row.text.starts_with(start))
    });
    !on_purpose && row.text != OTHERS && row.count > 0
}

/// A statement as a title shows it.
pub fn shown(text: &str) -> String {
    cut(text, IN_TITLE)
}

fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", text[..end].trim_end()),
        None => text.to_owned(),
    }
}

/// The service behind a protocol; every protocol with statements has one.
pub fn service(protocol: &str) -> Option<&'static Service> {
    services::of_protocol(protocol)
}

/// `PostgreSQL at 10.0.0.5:5432`, or whose requests a server answers: `clients at 10.0.0.7`.
pub fn other_end(role: &str, protocol: &str, peer: &str) -> String {
    let name = service(protocol).map_or(protocol, |service| service.name);
    let peer = if is_client(role) { peer } else { host(peer) };
    // A server's clients on a Unix socket are told by its path, or not at all.
    let unnamed = peer.is_empty() || !is_client(role) && peer.starts_with(['/', '@']);
    match (is_client(role), unnamed) {
        (true, true) => name.to_owned(),
        (true, false) => format!("{name} at {peer}"),
        (false, true) => format!("{name} clients on this host"),
        (false, false) => format!("{name} clients at {peer}"),
    }
}

/// An address without its port; a client's is another one the next time.
pub fn host(peer: &str) -> &str {
    match peer.rsplit_once(':') {
        // `::1` has no port, `[::1]:5432` has.
        Some((host, _)) if !host.contains(':') || host.ends_with(']') => host,
        _ => peer,
    }
}

/// A candidate of a statement, capped to the time at stake.
pub fn about(view: &View, row: &StatementRow, bound_ns: u64, stake: Stake) -> Candidate {
    let mut found = between(view, (&row.role, &row.protocol, &row.peer), bound_ns, stake);
    found.key = match is_client(&row.role) {
        true => format!("{} {} {}", row.role, row.peer, row.fingerprint),
        false => format!("{} {}", row.role, row.fingerprint),
    };
    found.subject = cut(&row.text, IN_SUBJECT);
    found
}

/// A candidate of what is said between the target and a peer (role, protocol, peer), capped to the
/// time at stake.
pub fn between(
    view: &View,
    (role, protocol, peer): (&str, &str, &str),
    bound_ns: u64,
    stake: Stake,
) -> Candidate {
    let at_stake = stake(&view.ledger.process.classes);
    let bound_ns = bound_ns.min(at_stake);
    let share = view.share_of(stake) * ratio(bound_ns, at_stake);
    let other_end = other_end(role, protocol, peer);
    let mut found = Candidate::new(format!("{role} {other_end}"), bound_ns, share);
    found.subject = other_end;
    if let Some(service) = service(protocol) {
        (found.area, found.delegate) = (service.area, service.delegate());
    }
    if is_client(role) {
        found.server = Some(peer.to_owned());
        found.stacks = top_stacks(view.sites(is_net).filter(|site| waits_for(site, peer)));
    }
    found
}

fn is_net(class: &str) -> bool {
    class.starts_with("net.")
}

fn waits_for(site: &Site, peer: &str) -> bool {
    match &site.detail {
        Some(Detail::Peer { peer: address, .. }) => address == peer,
        Some(Detail::Unix { path }) => !path.is_empty() && path == peer,
        _ => false,
    }
}

/// Role, protocol and peer (a server's clients by host) of a connection.
pub type Ends<'a> = (&'a str, &'a str, &'a str);

/// The connections by their ends; those whose protocol is not known are left out.
pub fn by_ends<'a>(view: &View<'a>) -> BTreeMap<Ends<'a>, Vec<&'a ConnectionRow>> {
    let mut ends: BTreeMap<Ends, Vec<&ConnectionRow>> = BTreeMap::new();
    let known = view
        .connections()
        .filter(|c| service(&c.protocol).is_some());
    for connection in known {
        let peer = match is_client(&connection.role) {
            true => connection.peer.as_str(),
            false => host(&connection.peer),
        };
        let key = (connection.role.as_str(), connection.protocol.as_str(), peer);
        ends.entry(key).or_default().push(connection);
    }
    ends
}

/// Statements between the same ends.
pub fn statements_of<'a>(
    view: &View<'a>,
    (role, protocol, peer): Ends<'a>,
) -> impl Iterator<Item = &'a StatementRow> {
    view.statements()
        .filter(move |row| row.role == role && row.protocol == protocol && row.peer == peer)
}

/// The candidates that bound most, at most `most` of them.
pub fn largest(mut found: Vec<Candidate>, most: usize) -> Vec<Candidate> {
    found.sort_by_key(|candidate| std::cmp::Reverse(candidate.bound_ns));
    found.truncate(most);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{asked, classes};

    #[test]
    fn a_wait_on_purpose_is_not_judged() {
        let row = |protocol: &str, text: &str| StatementRow {
            protocol: protocol.into(),
            ..asked(text, 1, 1)
        };
        assert!(!is_judged(&row("redis", "BLPOP queue#1")));
        assert!(!is_judged(&row("kafka", "Fetch orders")));
        assert!(is_judged(&row("postgresql", "Fetch orders")));
        assert!(is_judged(&row("redis", "GET key")));
        assert!(!is_judged(&row("redis", OTHERS)));
    }

    #[test]
    fn the_other_end_is_called_by_its_service() {
        for (role, peer, name) in [
            ("client", "10.0.0.9:5432", "PostgreSQL at 10.0.0.9:5432"),
            (
                "client",
                "/run/.s.PGSQL.5432",
                "PostgreSQL at /run/.s.PGSQL.5432",
            ),
            ("client", "", "PostgreSQL"),
            ("server", "10.0.0.7:4711", "PostgreSQL clients at 10.0.0.7"),
            (
                "server",
                "/run/.s.PGSQL.5432",
                "PostgreSQL clients on this host",
            ),
            ("server", "", "PostgreSQL clients on this host"),
        ] {
            assert_eq!(other_end(role, "postgresql", peer), name);
        }
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(shown("SELECT ?"), "SELECT ?");
        let long = "é".repeat(200);
        assert_eq!(shown(&long), format!("{}…", "é".repeat(70)));
    }

    #[test]
    fn a_port_is_taken_off_an_address_that_has_one() {
        for (peer, expected) in [
            ("10.0.0.7:4711", "10.0.0.7"),
            ("[::1]:4711", "[::1]"),
            ("10.0.0.7", "10.0.0.7"),
            ("::1", "::1"),
            ("", ""),
        ] {
            assert_eq!(host(peer), expected);
        }
    }

    #[test]
    fn stakes_are_the_parts_of_a_threads_time() {
        let times = classes(&[("cpu.user", 1), ("net.redis", 2), ("idle", 4), ("lock", 8)]);
        assert_eq!(
            (asking(&times), working(&times), living(&times)),
            (3, 11, 15)
        );
    }
}
