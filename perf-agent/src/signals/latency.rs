//! Summaries of log-linear histograms.

use perf_ebpf_common::{
    histogram::{BUCKETS, bucket_mid},
    signals::LatencyCell,
};

use crate::model::Latency;

/// Summarizes buckets given in order. `sum_ns` and `max_ns` are exact and come from beside them; a
/// percentile is its bucket's midpoint, but never above the maximum.
pub fn summary(
    buckets: impl Iterator<Item = (usize, u64)> + Clone,
    sum_ns: u64,
    max_ns: u64,
) -> Latency {
    let count: u64 = buckets.clone().map(|(_, c)| c).sum();
    if count == 0 {
        return Latency::default();
    }
    let at = |q: f64| {
        let rank = ((count as f64 * q).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, c) in buckets.clone() {
            seen += c;
            if seen >= rank {
                return if max_ns == 0 {
                    bucket_mid(bucket)
                } else {
                    bucket_mid(bucket).min(max_ns)
                };
            }
        }
        max_ns
    };
    Latency {
        count,
        sum_ns,
        p50_ns: at(0.50),
        p90_ns: at(0.90),
        p95_ns: at(0.95),
        p99_ns: at(0.99),
        max_ns,
    }
}

/// What came between two reads of a cell. The cell's maximum is since its making: where it did not
/// grow, the window's maximum is its highest bucket's midpoint.
pub fn of_cell(now: &LatencyCell, before: Option<&LatencyCell>) -> Latency {
    let buckets: Vec<(usize, u64)> = (0..BUCKETS)
        .filter_map(|i| {
            let was = before.map_or(0, |b| b.buckets[i]);
            let delta = now.buckets[i].wrapping_sub(was);
            (delta != 0).then_some((i, u64::from(delta)))
        })
        .collect();
    let grown = before.is_none_or(|b| b.max_ns < now.max_ns);
    let max_ns = if grown {
        now.max_ns
    } else {
        buckets
            .last()
            .map_or(0, |(i, _)| bucket_mid(*i).min(now.max_ns))
    };
    let sum_ns = now.sum_ns.wrapping_sub(before.map_or(0, |b| b.sum_ns));
    summary(buckets.iter().copied(), sum_ns, max_ns)
}

#[cfg(test)]
mod tests {
    use perf_ebpf_common::histogram::bucket_of;

    use super::*;

    #[test]
    fn percentiles_are_midpoints_and_stop_at_the_maximum() {
        let buckets = [(bucket_of(1000), 98), (bucket_of(1_000_000), 2)];
        let s = summary(buckets.into_iter(), 2_098_000, 1_000_000);
        assert_eq!((s.count, s.sum_ns, s.max_ns), (100, 2_098_000, 1_000_000));
        assert_eq!(s.p50_ns, bucket_mid(bucket_of(1000)));
        assert_eq!(s.p95_ns, bucket_mid(bucket_of(1000)));
        assert_eq!(s.p99_ns, bucket_mid(bucket_of(1_000_000)).min(1_000_000));
        assert_eq!(summary(std::iter::empty(), 0, 0), Latency::default());
    }
}
