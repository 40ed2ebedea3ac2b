//! The ends of a connection, and the kernel side's figures of it, as facts have them.

use std::net::{Ipv4Addr, Ipv6Addr};

use perf_ebpf_common::{
    fd,
    signals::{ledger::detail, sockets::Connection},
};

use crate::drain::ConnectionFact;

/// The kernel side's figures of a window.
pub fn figures(now: &Connection, before: &Connection) -> ConnectionFact {
    let count = u64::from(now.rtt_count.wrapping_sub(before.rtt_count));
    let rtt_us = now.rtt_sum_us.saturating_sub(before.rtt_sum_us);
    ConnectionFact {
        tx_bytes: now.tx_bytes.saturating_sub(before.tx_bytes),
        rx_bytes: now.rx_bytes.saturating_sub(before.rx_bytes),
        connect_ns: (now.connect_ns > 0).then_some(now.connect_ns),
        rtt_ns: (rtt_us * 1000).checked_div(count),
        rtt_min_ns: (now.rtt_min_us > 0).then_some(u64::from(now.rtt_min_us) * 1000),
        rtt_max_ns: (now.rtt_max_us > 0).then_some(u64::from(now.rtt_max_us) * 1000),
        retransmits: now.retransmits.wrapping_sub(before.retransmits).into(),
        resets: now.resets.wrapping_sub(before.resets).into(),
        send_stalls: now.send_stalls.wrapping_sub(before.send_stalls).into(),
        send_stall_ns: now.send_stall_ns.saturating_sub(before.send_stall_ns),
        ..ConnectionFact::default()
    }
}

/// Whether this end is the client; `None` where neither can be told.
pub fn is_client(kind: u8) -> Option<bool> {
    match kind {
        fd::TCP_CLIENT | fd::UNIX_CLIENT => Some(true),
        fd::TCP_SERVER | fd::UNIX_SERVER => Some(false),
        _ => None,
    }
}

/// `address:port`, or the address alone; empty where there is neither.
pub fn address(kind: u8, words: &[u64; 2], port: Option<u16>) -> String {
    match (kind, port) {
        (detail::INET4, port) => {
            let ip = Ipv4Addr::from((words[0] as u32).to_ne_bytes());
            port.map_or_else(|| ip.to_string(), |port| format!("{ip}:{port}"))
        }
        (detail::INET6, port) => {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&words[0].to_ne_bytes());
            bytes[8..].copy_from_slice(&words[1].to_ne_bytes());
            let ip = Ipv6Addr::from(bytes);
            port.map_or_else(|| ip.to_string(), |port| format!("[{ip}]:{port}"))
        }
        _ => String::new(),
    }
}
