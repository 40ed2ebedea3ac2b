//! The log-linear histogram kept in kernel maps: 16 buckets an octave, so that a bucket's midpoint
//! is within 1/32 of every value in it (property-tested below against hdrhistogram).
//!
//! 640 buckets reach past 2^43 ns (2.4 hours); what is longer falls into the last one.

/// Buckets an octave, as a power of two.
const SUB_BITS: u32 = 4;
const SUB: u64 = 1 << SUB_BITS;
/// Number of buckets.
pub const BUCKETS: usize = 640;

/// Bucket of a value (any unit). Total order is kept: a larger value never gets a smaller bucket.
#[inline(always)]
pub const fn bucket_of(value: u64) -> usize {
    if value < SUB {
        return value as usize;
    }
    let exponent = 63 - value.leading_zeros();
    let mantissa = (value >> (exponent - SUB_BITS)) & (SUB - 1);
    let index = ((exponent - SUB_BITS + 1) as usize) * SUB as usize + mantissa as usize;
    if index >= BUCKETS { BUCKETS - 1 } else { index }
}

/// Smallest value of a bucket.
pub const fn bucket_low(index: usize) -> u64 {
    if index < SUB as usize {
        return index as u64;
    }
    let octave = (index / SUB as usize) as u32 - 1;
    (SUB + (index as u64 & (SUB - 1))) << octave
}

/// The value reported for a bucket: its midpoint.
pub const fn bucket_mid(index: usize) -> u64 {
    let low = bucket_low(index);
    if index < SUB as usize {
        return low;
    }
    let width = 1u64 << ((index / SUB as usize) as u32 - 1);
    low + width / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::Histogram;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// The value at a quantile, as user space computes it from bucket counts.
    fn quantile(values: &[u64], q: f64) -> u64 {
        let mut counts = [0u64; BUCKETS];
        for &v in values {
            counts[bucket_of(v)] += 1;
        }
        let rank = ((values.len() as f64 * q).ceil() as u64).max(1);
        let mut seen = 0;
        for (i, c) in counts.iter().enumerate() {
            seen += c;
            if seen >= rank {
                return bucket_mid(i);
            }
        }
        unreachable!("rank is at most the number of values")
    }

    proptest! {
        #[test]
        fn a_bucket_holds_its_value_within_one_thirty_second(v in 0u64..(1 << 43)) {
            let i = bucket_of(v);
            prop_assert!(i < BUCKETS);
            prop_assert!(bucket_low(i) <= v);
            prop_assert!(i + 1 == BUCKETS || v < bucket_low(i + 1));
            prop_assert!(bucket_mid(i).abs_diff(v) * 32 <= v.max(32));
        }

        #[test]
        fn larger_values_never_fall_into_smaller_buckets(a: u64, b: u64) {
            prop_assert!(bucket_of(a.min(b)) <= bucket_of(a.max(b)));
        }

        #[test]
        fn quantiles_agree_with_hdrhistogram(values in proptest::collection::vec(1u64..(1 << 40), 1..400)) {
            let mut reference = Histogram::<u64>::new_with_max(1 << 41, 4).unwrap();
            for &v in &values {
                reference.record(v).unwrap();
            }
            let values: Vec<u64> = values;
            for q in [0.5, 0.9, 0.95, 0.99, 1.0] {
                let (ours, theirs) = (quantile(&values, q), reference.value_at_quantile(q));
                prop_assert!(
                    ours.abs_diff(theirs) as f64 <= theirs as f64 * (1.0 / 32.0 + 0.0002) + 1.0,
                    "q {}: {} against {}", q, ours, theirs
                );
            }
        }
    }
}
