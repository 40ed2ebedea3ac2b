//! Reads each signal's raw bytes into plain data: one file a signal, pure.

use perf_ebpf_common::Wire;

pub mod histograms;
pub mod latency;
pub mod ledger;
pub mod records;

/// Keys and values of a map, as they are read from the kernel: each key with its value behind
/// it. Bytes that are no whole entry are left out.
pub fn entries<K: Wire, V: Wire>(bytes: &[u8]) -> impl Iterator<Item = (K, V)> + '_ {
    bytes
        .chunks_exact(size_of::<K>() + size_of::<V>())
        .filter_map(|entry| {
            Some((
                K::from_bytes(entry)?,
                V::from_bytes(&entry[size_of::<K>()..])?,
            ))
        })
}
