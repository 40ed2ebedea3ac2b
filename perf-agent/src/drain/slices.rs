//! When the syscalls signal is attached: a tenth of the time, in one randomly placed slice of each
//! quarter second, so that work which repeats at a fixed rate is not met in step.

/// Length of a stratum, in which one slice falls.
const STRATUM_NS: u64 = 250_000_000;
/// Length of a slice: a tenth. (Attaching takes 0.1 to 0.4 ms.)
const SLICE_NS: u64 = 25_000_000;

/// The schedule. Times are CLOCK_MONOTONIC.
pub struct Slices {
    random: u64,
    stratum_start: u64,
    begin: u64,
    on: bool,
}

impl Slices {
    pub fn new(now_ns: u64) -> Slices {
        let mut slices = Slices {
            random: now_ns | 1,
            stratum_start: now_ns,
            begin: 0,
            on: false,
        };
        slices.place();
        slices
    }

    /// When to switch next, and to what.
    pub fn next(&self) -> (u64, bool) {
        if self.on {
            (self.begin + SLICE_NS, false)
        } else {
            (self.begin, true)
        }
    }

    /// The switch was made.
    pub fn switched(&mut self) {
        if self.on {
            self.stratum_start += STRATUM_NS;
            self.place();
        }
        self.on = !self.on;
    }

    fn place(&mut self) {
        // xorshift64 (Marsaglia 2003): placement needs no more.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.begin = self.stratum_start + self.random % (STRATUM_NS - SLICE_NS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_the_time_is_covered_and_slices_do_not_overlap() {
        let mut slices = Slices::new(12345);
        let (mut on_ns, mut since, mut last) = (0, 0, 12345);
        for _ in 0..2000 {
            let (at, on) = slices.next();
            assert!(at >= last, "{at} before {last}");
            if on {
                since = at;
            } else {
                on_ns += at - since;
            }
            last = at;
            slices.switched();
        }
        assert_eq!(on_ns, 1000 * SLICE_NS);
        assert!(last <= 12345 + 1000 * STRATUM_NS);
    }
}
