//! Histograms of a process's classes: packed sparsely at the drain, unpacked and subtracted here.

use std::sync::atomic::{AtomicU64, Ordering};

use perf_ebpf_common::{class, histogram::BUCKETS, signals::ledger::ClassHistograms};

/// One process's histograms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histograms {
    pub slot: u32,
    /// (class × BUCKETS + bucket, count), counts not zero, in order.
    pub counts: Vec<(u32, u32)>,
    pub sum_ns: [u64; class::COUNT],
    /// Since the read before.
    pub max_ns: [u64; class::COUNT],
}

/// Reads a live element; its maxima start anew.
///
/// # Safety
/// `element` points to a live element of the mapped array.
pub unsafe fn read_live(slot: u32, element: *mut ClassHistograms) -> Histograms {
    let mut out = Histograms {
        slot,
        ..Histograms::default()
    };
    // SAFETY: valid by the caller's contract; the kernel writes concurrently, so every access is
    // volatile or atomic.
    unsafe {
        let buckets = (&raw const (*element).buckets).cast::<u32>();
        for i in 0..class::COUNT * BUCKETS {
            let count = buckets.add(i).read_volatile();
            if count != 0 {
                out.counts.push((i as u32, count));
            }
        }
        for i in 0..class::COUNT {
            out.sum_ns[i] = (&raw const (*element).sum_ns)
                .cast::<u64>()
                .add(i)
                .read_volatile();
            let max = (&raw mut (*element).max_ns).cast::<u64>().add(i);
            out.max_ns[i] = AtomicU64::from_ptr(max).swap(0, Ordering::Relaxed);
        }
    }
    out
}

impl Histograms {
    /// As a frame's payload.
    pub fn pack(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(8 + self.counts.len() * 8 + class::COUNT * 16);
        out.extend(self.slot.to_ne_bytes());
        out.extend((self.counts.len() as u32).to_ne_bytes());
        for (index, count) in &self.counts {
            out.extend(index.to_ne_bytes());
            out.extend(count.to_ne_bytes());
        }
        for value in self.sum_ns.iter().chain(&self.max_ns) {
            out.extend(value.to_ne_bytes());
        }
        out
    }

    /// From a frame's payload; `None` where it is damaged.
    pub fn unpack(bytes: &[u8]) -> Option<Histograms> {
        let word = |at: usize| {
            let four = bytes.get(at..at.checked_add(4)?)?;
            Some(u32::from_ne_bytes([four[0], four[1], four[2], four[3]]))
        };
        let long = |at: usize| Some(u64::from(word(at)?) | u64::from(word(at + 4)?) << 32);
        let mut out = Histograms {
            slot: word(0)?,
            ..Histograms::default()
        };
        let n = word(4)? as usize;
        if n > class::COUNT * BUCKETS || bytes.len() != 8 + n * 8 + class::COUNT * 16 {
            return None;
        }
        for i in 0..n {
            let index = word(8 + i * 8)?;
            if index as usize >= class::COUNT * BUCKETS {
                return None;
            }
            out.counts.push((index, word(12 + i * 8)?));
        }
        let sums = 8 + n * 8;
        for i in 0..class::COUNT {
            out.sum_ns[i] = long(sums + i * 8)?;
            out.max_ns[i] = long(sums + (class::COUNT + i) * 8)?;
        }
        Some(out)
    }

    /// What came since `before`. Counts wrap at 2^32.
    pub fn since(&self, before: &Histograms) -> Histograms {
        let mut old = before.counts.iter().peekable();
        let counts = self
            .counts
            .iter()
            .filter_map(|(index, count)| {
                while old.peek().is_some_and(|(i, _)| i < index) {
                    old.next();
                }
                let was = old
                    .peek()
                    .filter(|(i, _)| i == index)
                    .map_or(0, |(_, c)| *c);
                let delta = count.wrapping_sub(was);
                (delta != 0).then_some((*index, delta))
            })
            .collect();
        let mut sum_ns = self.sum_ns;
        for (sum, was) in sum_ns.iter_mut().zip(&before.sum_ns) {
            *sum = sum.wrapping_sub(*was);
        }
        Histograms {
            slot: self.slot,
            counts,
            sum_ns,
            max_ns: self.max_ns,
        }
    }

    /// The buckets of one class: (bucket, count).
    pub fn of_class(&self, class: u8) -> impl Iterator<Item = (usize, u64)> + '_ {
        let from = class as u32 * BUCKETS as u32;
        self.counts
            .iter()
            .filter(move |(i, _)| (from..from + BUCKETS as u32).contains(i))
            .map(move |(i, c)| ((i - from) as usize, u64::from(*c)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(counts: Vec<(u32, u32)>) -> Histograms {
        Histograms {
            slot: 3,
            counts,
            sum_ns: [5; class::COUNT],
            max_ns: [9; class::COUNT],
        }
    }

    #[test]
    fn packing_and_unpacking_give_the_same() {
        let h = sample(vec![(0, 1), (641, 7)]);
        assert_eq!(Histograms::unpack(&h.pack()), Some(h));
    }

    #[test]
    fn differences_are_taken_bucket_by_bucket_across_the_wrap() {
        let before = sample(vec![(1, u32::MAX), (5, 4), (7, 1)]);
        let after = sample(vec![(1, 1), (3, 2), (5, 4), (7, 3)]);
        assert_eq!(after.since(&before).counts, [(1, 2), (3, 2), (7, 2)]);
    }

    proptest! {
        #[test]
        fn damaged_bytes_are_refused(mut at in 0usize..400, value: u8, cut in 0usize..400) {
            let mut bytes = sample(vec![(0, 1), (641, 7)]).pack();
            at %= bytes.len();
            bytes[at] = value;
            bytes.truncate(cut);
            let _ = Histograms::unpack(&bytes);
        }
    }
}
