//! Peers that are databases, caches and the like: known by the protocol they speak, else by their
//! port or the path of their Unix socket.

use super::{DATABASE_SPECIALIST, PERFORMANCE_ENGINEER};
use crate::model::{Detail, Site};

pub const DATABASE: &str = "database_performance";
pub const CACHING: &str = "caching";
pub const API: &str = "api_response";
pub const SYSTEM: &str = "system_bottleneck";

/// What a peer is.
pub struct Service {
    pub name: &'static str,
    pub area: &'static str,
    /// Name in `statements` and, behind `net.`, in the ledger; empty where it is not decoded.
    protocol: &'static str,
    ports: &'static [u16],
    /// Part of the path of its Unix socket; empty where it has none.
    unix: &'static str,
    /// Clients wait for what may come at any time (subscriptions, blocking pops, long polls), so
    /// that a wait without an end says nothing.
    pub waits_for_events: bool,
}

const SERVICES: &[Service] = &[
    database("PostgreSQL", "postgresql", &[5432, 6432], ".s.PGSQL"),
    database("MySQL", "mysql", &[3306, 33060], "mysqld.sock"),
    database("MySQL", "", &[], "mysql.sock"),
    Service {
        area: CACHING,
        ..eventful("Redis", "redis", &[6379, 6380], "redis")
    },
    Service {
        area: CACHING,
        ..database("memcached", "memcached", &[11211], "memcached")
    },
    eventful("MongoDB", "mongodb", &[27017, 27018], "mongodb-"),
    eventful("Kafka", "kafka", &[9092], ""),
    eventful("Cassandra", "", &[9042], ""),
    database("SQL Server", "", &[1433], ""),
    database("Oracle", "", &[1521], ""),
    database("ClickHouse", "", &[9000, 8123], ""),
    database("Elasticsearch", "", &[9200], ""),
    Service {
        area: SYSTEM,
        ..database("DNS", "", &[53], "")
    },
    Service {
        area: API,
        ..eventful("HTTP", "http", &[], "")
    },
    Service {
        area: API,
        ..eventful("HTTP/2", "http2", &[], "")
    },
];

const fn database(
    name: &'static str,
    protocol: &'static str,
    ports: &'static [u16],
    unix: &'static str,
) -> Service {
    Service {
        name,
        area: DATABASE,
        protocol,
        ports,
        unix,
        waits_for_events: false,
    }
}

const fn eventful(
    name: &'static str,
    protocol: &'static str,
    ports: &'static [u16],
    unix: &'static str,
) -> Service {
    Service {
        waits_for_events: true,
        ..database(name, protocol, ports, unix)
    }
}

impl Service {
    /// Who acts on what is found about it.
    pub fn delegate(&self) -> &'static str {
        match self.area {
            API | SYSTEM => PERFORMANCE_ENGINEER,
            _ => DATABASE_SPECIALIST,
        }
    }
}

/// The service that speaks a protocol.
pub fn of_protocol(protocol: &str) -> Option<&'static Service> {
    SERVICES
        .iter()
        .find(|service| !service.protocol.is_empty() && service.protocol == protocol)
}

/// The service a thread waits for: by the class of the wait where the protocol was decoded, else as
/// port or path suggest.
pub fn of_site(site: &Site) -> Option<&'static Service> {
    let decoded = site.class.strip_prefix("net.").and_then(of_protocol);
    decoded.or_else(|| {
        SERVICES.iter().find(|service| match &site.detail {
            Some(Detail::Peer { port, .. }) => service.ports.contains(port),
            Some(Detail::Unix { path }) => !service.unix.is_empty() && path.contains(service.unix),
            _ => false,
        })
    })
}

/// Whether a peer is on this host: a loopback address, a Unix socket.
pub fn is_local(peer: &str) -> bool {
    ["127.", "[::1]", "::1", "/", "@"]
        .iter()
        .any(|start| peer.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::site;

    fn peer(address: &str, port: u16) -> Option<Detail> {
        Some(Detail::Peer {
            peer: format!("{address}:{port}"),
            port,
        })
    }

    fn unix(path: &str) -> Option<Detail> {
        Some(Detail::Unix { path: path.into() })
    }

    #[test]
    fn services_are_known_by_port_and_by_unix_socket() {
        for (detail, name) in [
            (peer("10.0.0.5", 3306), Some("MySQL")),
            (peer("[::1]", 6379), Some("Redis")),
            (peer("10.0.0.5", 11211), Some("memcached")),
            (peer("127.0.0.53", 53), Some("DNS")),
            (unix("/run/postgresql/.s.PGSQL.5432"), Some("PostgreSQL")),
            (unix("/run/mysql.sock"), Some("MySQL")),
            (unix("/run/redis/redis.sock"), Some("Redis")),
            (unix("/run/x"), None),
            (unix(""), None),
            (None, None),
        ] {
            let site = site("net.tcp", "read", 1, 1, detail);
            assert_eq!(of_site(&site).map(|s| s.name), name, "{site:?}");
        }
    }

    #[test]
    fn the_protocol_that_was_decoded_says_more_than_the_port() {
        let redis = site("net.redis", "read", 1, 1, peer("10.0.0.5", 5432));
        assert_eq!(of_site(&redis).map(|s| s.name), Some("Redis"));
        let http = site("net.http", "read", 1, 1, peer("10.0.0.5", 9200));
        assert_eq!(
            of_site(&http).map(|s| (s.name, s.delegate())),
            Some(("HTTP", PERFORMANCE_ENGINEER))
        );
        let connect = site("net.connect", "connect", 1, 1, peer("10.0.0.5", 5432));
        assert_eq!(of_site(&connect).map(|s| s.name), Some("PostgreSQL"));
    }

    #[test]
    fn every_protocol_that_is_decoded_is_a_service() {
        for entry in crate::decode::PROTOCOLS {
            let name = entry.protocol.name();
            assert!(of_protocol(name).is_some(), "{name}");
        }
        assert!(of_protocol("").is_none() && of_protocol("unknown").is_none());
    }
}
