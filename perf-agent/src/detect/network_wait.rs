//! Threads that wait for a peer: which one, how long, and whether it is a database.

use std::collections::BTreeMap;

use super::services::{self, API, DATABASE, SYSTEM, Service};
use super::settings::{Time, thresholds};
use super::view::{View, class, mean, net, ratio};
use super::{Candidate, Explain, evidence, statements, top_stacks};
use crate::model::{Detail, Evidence, Level, Site};
use crate::sink::units;

/// Peers with a finding of their own.
const MAX_PEERS: usize = 3;

thresholds! {
    /// From this mean a wait for an unknown peer is as likely a subscription as a slow reply.
    long_wait: Time = Time(1_000_000_000),
}

/// Waits for one peer.
struct Waits<'a> {
    peer: String,
    service: Option<&'static Service>,
    sites: Vec<&'a Site>,
    sum_ns: u64,
    count: u64,
}

pub const EXPLAIN: Explain = Explain {
    looks_at: "time blocked for an answer of a peer, for a connection to it, or for room to send",
    numbers: &[
        ("wait", "thread time spent waiting for it, a second"),
        ("waits", "waits that ended, a second"),
        ("mean_wait", "length of one"),
        ("max_wait", "the longest one since the attach"),
        (
            "share_of_thread_time",
            "part of the whole process’s thread time",
        ),
        (
            "wait_per_cpu_time",
            "waiting by computing: far above 1, the peer sets the pace",
        ),
    ],
    bound: "time blocked for this peer.",
    confidence: "0.85 for a known service that only answers, 0.7 for another peer, 0.3 where \
               its waits are long and it may send when something happens; 0.5 where no wait \
               ended.",
    next: "See what was asked: the `statements` of the same window. If the peer can be traced, trace it as well.",
};

pub fn find(view: &View) -> Vec<Candidate> {
    let mut peers: BTreeMap<String, Waits> = BTreeMap::new();
    for site in view.sites(|class| class.starts_with("net.")) {
        let service = services::of_site(site);
        let peer = peer_of(site, service.is_some());
        let waits = peers.entry(peer.clone()).or_insert(Waits {
            peer,
            service,
            sites: Vec::new(),
            sum_ns: 0,
            count: 0,
        });
        // One site may be from before the protocol was known.
        if site
            .class
            .strip_prefix("net.")
            .and_then(services::of_protocol)
            .is_some()
        {
            waits.service = service;
        }
        waits.sites.push(site);
        waits.sum_ns += site.sum_ns;
        waits.count += site.count;
    }
    let mut peers: Vec<Waits> = peers.into_values().filter(is_for_a_reply).collect();
    peers.sort_by_key(|b| std::cmp::Reverse(b.sum_ns));
    peers.truncate(MAX_PEERS);
    peers.iter().map(|waits| candidate(view, waits)).collect()
}

/// The peer, as it is called in the next run too: a client's port is another one then.
fn peer_of(site: &Site, known: bool) -> String {
    match &site.detail {
        Some(Detail::Peer { peer, .. }) if site.class == "net.send" && !known => {
            let host = peer
                .rsplit_once(':')
                .map_or(peer.as_str(), |(host, _)| host);
            format!("clients at {host}")
        }
        Some(Detail::Peer { peer, .. }) => peer.clone(),
        // A socket without a name has an empty path.
        Some(Detail::Unix { path }) if !path.is_empty() => path.clone(),
        _ => format!("a peer without a name ({})", site.class),
    }
}

/// A wait that neither began nor ended in the window is a subscription or an idle connection,
/// unless the peer is one that only ever answers.
fn is_for_a_reply(waits: &Waits) -> bool {
    waits.count > 0
        || waits
            .service
            .is_some_and(|service| !service.waits_for_events)
}

fn candidate(view: &View, waits: &Waits) -> Candidate {
    let total_ns = net(&view.ledger.process.classes);
    let wait_ns = waits.sum_ns.min(total_ns);
    let mean_ns = mean(waits.sum_ns, waits.count);
    let share = view.share_of(net) * ratio(wait_ns, total_ns);
    let mut found = Candidate::new(&waits.peer, wait_ns, share);
    found.peer = Some(waits.peer.clone());
    found.server = Some(waits.peer.clone());
    let sending = mostly(waits, "net.send");
    let connecting = mostly(waits, "net.connect");
    let long_ns = view.settings.rules.network_wait.long_wait.0;
    let events = waits.service.is_none_or(|service| service.waits_for_events);
    // That the thread waits is measured. What is uncertain is whether a reply was due: sure for a
    // database that only answers, likely for short waits, a guess for long ones.
    found.confidence = match waits.service {
        _ if waits.count == 0 => 0.5,
        _ if events && mean_ns >= long_ns => 0.3,
        Some(_) => 0.85,
        None => 0.7,
    };
    if events && mean_ns >= long_ns {
        found.impact_cap = Level::Low;
    }
    found.area = API;
    if let Some(service) = waits.service {
        (found.area, found.delegate) = (service.area, service.delegate());
    }
    found.subject = match waits.service {
        Some(service) => format!("{} at {}", service.name, waits.peer),
        None => waits.peer.clone(),
    };
    let doing = match (connecting, sending) {
        (true, _) => "to connect to",
        (_, true) => "to send to",
        _ => "for",
    };
    let each = match waits.count {
        0 => "no reply in the whole window".to_owned(),
        _ => format!("{} each", units::duration(mean_ns)),
    };
    found.title = format!(
        "Threads wait {} {doing} {}: {} waits a second, {each}",
        units::duration_per_s(view.per_s(wait_ns)),
        found.subject,
        units::count(view.per_s(waits.count)),
    );
    found.evidence = figures(view, waits, wait_ns, mean_ns);
    found.recommendations = recommendations(view, waits, connecting, sending);
    found.stacks = top_stacks(waits.sites.iter().copied());
    found
}

/// Whether a class makes up half of the waits.
fn mostly(waits: &Waits, class: &str) -> bool {
    let of_class = waits.sites.iter().filter(|site| site.class == class);
    let sum: u64 = of_class.map(|site| site.sum_ns).sum();
    sum > 0 && sum * 2 >= waits.sum_ns
}

fn figures(view: &View, waits: &Waits, wait_ns: u64, mean_ns: u64) -> Vec<Evidence> {
    let longest = waits.sites.iter().map(|site| site.max_ns).max();
    let count = waits.count;
    let of_lifetime = ratio(wait_ns, view.lifetime_ns());
    let runs = view.cpu_ns() + class(&view.ledger.process.classes, "runq");
    vec![
        evidence("wait", view.per_s(wait_ns) as f64, "ns/s", count),
        evidence("waits", view.per_s(count) as f64, "1/s", count),
        evidence("mean_wait", mean_ns as f64, "ns", count),
        evidence("max_wait", longest.unwrap_or(0) as f64, "ns", count),
        evidence("share_of_thread_time", of_lifetime, "ratio", count),
        evidence("wait_per_cpu_time", ratio(wait_ns, runs), "ratio", count),
    ]
}

/// The statement that took most of the waits' time.
fn main_statement(view: &View, waits: &Waits) -> Option<String> {
    let asked = view
        .statements()
        .filter(|row| row.role == "client" && row.peer == waits.peer);
    let row = asked.max_by_key(|row| statements::in_hand_ns(row))?;
    Some(format!(
        "Begin with `{}`: {} of it, {} a second, 95th percentile {}",
        statements::shown(&row.text),
        units::percent(
            statements::in_hand_ns(row),
            waits.sum_ns.max(statements::in_hand_ns(row))
        ),
        units::count(view.per_s(row.count)),
        units::duration(row.latency.p95_ns),
    ))
}

fn recommendations(view: &View, waits: &Waits, connecting: bool, sending: bool) -> Vec<String> {
    let mut out = Vec::new();
    if connecting {
        out.push("Keep connections open and reuse them (a pool)".to_owned());
        out.push("Check the peer's accept queue and the path to it (SYN retransmits)".to_owned());
    } else if sending {
        out.push("The peer reads too slowly: look at what it does with its time".to_owned());
        out.push("Send less, compressed, or from a thread that may wait".to_owned());
    } else {
        let begin = main_statement(view, waits);
        let known = begin.is_some();
        out.extend(begin);
        match waits
            .service
            .map(|service| service.area)
            .filter(|area| *area != API)
        {
            Some(DATABASE) if known => {
                out.push("Fetch in batches or joins; add the missing index".to_owned());
            }
            Some(DATABASE) => {
                out.push("Find the statements behind these waits on the server: slow ones by total time, and ones repeated per row (N+1)".to_owned());
                out.push("Fetch in batches or joins; add the missing index".to_owned());
            }
            Some(SYSTEM) => {
                out.push("Keep addresses for as long as they may be kept, or connections open: a cache of names on this host (systemd-resolved, dnsmasq, nscd)".to_owned());
                out.push("See how many names are tried for one (`search` and `ndots` in /etc/resolv.conf; a final dot ends that), and whether the first resolver answers at all".to_owned());
            }
            Some(_) => {
                out.push(
                    "Pipeline commands or use multi-key ones instead of one round trip each"
                        .to_owned(),
                );
                out.push("Keep the hottest keys in the process for a short time".to_owned());
            }
            None => {
                out.push("Find out what the peer does with the time; send independent requests at the same time".to_owned());
                out.push("Cache replies that repeat; batch small requests".to_owned());
            }
        }
    }
    if services::is_local(&waits.peer) {
        out.push("The peer runs on this host: trace it as well, with a -p of its own".to_owned());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::{DATABASE_SPECIALIST, PERFORMANCE_ENGINEER};
    use crate::fixtures::{report, site, thread};

    fn peer(address: &str, port: u16) -> Option<Detail> {
        Some(Detail::Peer {
            peer: format!("{address}:{port}"),
            port,
        })
    }

    #[test]
    fn waiting_for_a_database_is_for_its_specialist() {
        let times = [("cpu.user", 200_000_000), ("net.tcp", 800_000_000)];
        let mut report = report("web", vec![thread(1, &times)]);
        report.profile.sites = vec![
            site(
                "net.tcp",
                "recvfrom",
                300,
                600_000_000,
                peer("10.0.0.5", 5432),
            ),
            site("net.tcp", "poll", 100, 150_000_000, peer("10.0.0.5", 5432)),
            site("net.tcp", "read", 10, 50_000_000, peer("10.0.0.9", 8000)),
        ];
        let found = find(&View::new(&report));
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].bound_ns, 750_000_000);
        assert_eq!(found[0].delegate, DATABASE_SPECIALIST);
        assert_eq!(found[0].area, DATABASE);
        assert_eq!(found[0].confidence, 0.85);
        assert_eq!(found[0].share, 0.75);
        assert_eq!(
            found[0].title,
            "Threads wait 750 ms/s for PostgreSQL at 10.0.0.5:5432: 400 waits a \
             second, 1.88 ms each"
        );
        assert_eq!(found[0].evidence[2].value, 1_875_000.0);
        assert_eq!(found[0].evidence[5].value, 3.75);
        assert_eq!(found[1].bound_ns, 50_000_000);
        assert_eq!(found[1].delegate, PERFORMANCE_ENGINEER);
    }

    #[test]
    fn the_peer_is_named_by_what_it_speaks_from_the_moment_that_is_known() {
        let times = [("net.tcp", 100_000_000), ("net.redis", 500_000_000)];
        let mut report = report("web", vec![thread(1, &times)]);
        let odd_port = || peer("10.0.0.5", 5432);
        report.profile.sites = vec![
            site("net.tcp", "read", 10, 100_000_000, odd_port()),
            site("net.redis", "read", 1_000, 500_000_000, odd_port()),
            site("net.http", "read", 1, 50_000_000, peer("10.0.0.9", 9200)),
        ];
        let found = find(&View::new(&report));
        assert_eq!(found[0].subject, "Redis at 10.0.0.5:5432");
        assert_eq!(found[0].area, services::CACHING);
        assert_eq!(found[1].subject, "HTTP at 10.0.0.9:9200");
        assert_eq!(found[1].delegate, PERFORMANCE_ENGINEER);
    }

    #[test]
    fn an_open_wait_is_a_subscription_unless_the_peer_only_answers() {
        let mut report = report("app", vec![thread(1, &[("net.tcp", 1_000_000_000)])]);
        for (port, findings) in [(8080, 0), (6379, 0), (5432, 1)] {
            report.profile.sites = vec![site("net.tcp", "read", 0, 1_000_000_000, peer("h", port))];
            let found = find(&View::new(&report));
            assert_eq!(found.len(), findings, "port {port}");
            assert!(found.iter().all(|f| f.confidence == 0.5));
        }
    }

    #[test]
    fn clients_that_read_slowly_are_one_subject_whatever_their_ports() {
        let mut report = report("app", vec![thread(1, &[("net.send", 1_000_000_000)])]);
        report.profile.sites = vec![
            site(
                "net.send",
                "write",
                5,
                500_000_000,
                peer("10.1.1.1", 40_001),
            ),
            site(
                "net.send",
                "write",
                5,
                500_000_000,
                peer("10.1.1.1", 40_002),
            ),
        ];
        let found = find(&View::new(&report));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].key, "clients at 10.1.1.1");
        assert_eq!(found[0].bound_ns, 1_000_000_000);
    }
}
