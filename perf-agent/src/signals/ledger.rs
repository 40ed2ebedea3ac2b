//! One thread's account as it stands at an instant, and what came between two instants.

use perf_ebpf_common::{
    class,
    signals::ledger::{ThreadState, thread_state},
};

/// Nanoseconds by class (kernel numbering), and what could not be classed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub spent_ns: [u64; class::COUNT],
    pub unaccounted_ns: u64,
}

impl Totals {
    /// The account at `end_ns`: closed intervals, and the open one up to then. `seeded` is the
    /// class read from `/proc` for a thread without events.
    ///
    /// The map is read a little after `end_ns`. Where the thread moved on in between, the surplus
    /// is taken back from the interval closed last, and the next window gets it.
    pub fn at(t: &ThreadState, end_ns: u64, seeded: Option<u8>) -> Totals {
        let mut totals = Totals {
            spent_ns: t.spent_ns,
            unaccounted_ns: t.unaccounted_ns,
        };
        if t.since_ns <= end_ns {
            let open = end_ns - t.since_ns;
            match open_class(t, seeded) {
                Some(class) => totals.spent_ns[class as usize] += open,
                None => totals.unaccounted_ns += open,
            }
        } else {
            totals.take_back(t.since_ns - end_ns, t.last_class);
        }
        totals
    }

    fn take_back(&mut self, mut surplus: u64, last_class: u8) {
        let mut take = |from: &mut u64| {
            let part = surplus.min(*from);
            *from -= part;
            surplus -= part;
        };
        if let Some(last) = self.spent_ns.get_mut(last_class as usize) {
            take(last);
        }
        take(&mut self.spent_ns[class::CPU as usize]);
        take(&mut self.spent_ns[class::RUNQ as usize]);
        for rest in &mut self.spent_ns {
            take(rest);
        }
        take(&mut self.unaccounted_ns);
    }

    /// What came since `before`. Where an open interval was first counted in one class and then
    /// closed in another, the difference of the first is negative: it is taken from the largest, so
    /// that the sum is kept and no class goes below zero.
    pub fn since(&self, before: &Totals) -> Totals {
        self.grown(before)
            .unwrap_or_else(|| self.since_moved(before))
    }

    /// The difference where no class is below what it was: the usual one, for every request.
    fn grown(&self, before: &Totals) -> Option<Totals> {
        let mut out = Totals {
            spent_ns: [0; class::COUNT],
            unaccounted_ns: self.unaccounted_ns.checked_sub(before.unaccounted_ns)?,
        };
        let parts = self.spent_ns.iter().zip(&before.spent_ns);
        for (out, (now, was)) in out.spent_ns.iter_mut().zip(parts) {
            *out = now.checked_sub(*was)?;
        }
        Some(out)
    }

    fn since_moved(&self, before: &Totals) -> Totals {
        let mut delta = [0i128; class::COUNT + 1];
        for (i, d) in delta.iter_mut().enumerate() {
            *d = i128::from(self.part(i)) - i128::from(before.part(i));
        }
        for i in 0..delta.len() {
            while delta[i] < 0 {
                let Some(largest) = (0..delta.len()).max_by_key(|j| delta[*j]) else {
                    break;
                };
                if delta[largest] <= 0 {
                    delta[i] = 0;
                    break;
                }
                let moved = delta[largest].min(-delta[i]);
                delta[largest] -= moved;
                delta[i] += moved;
            }
        }
        let mut out = Totals::default();
        for (i, d) in delta.iter().enumerate() {
            match out.spent_ns.get_mut(i) {
                Some(spent) => *spent = *d as u64,
                None => out.unaccounted_ns = *d as u64,
            }
        }
        out
    }

    fn part(&self, i: usize) -> u64 {
        self.spent_ns.get(i).copied().unwrap_or(self.unaccounted_ns)
    }

    /// Adds another account.
    pub fn add(&mut self, other: &Totals) {
        for (sum, part) in self.spent_ns.iter_mut().zip(&other.spent_ns) {
            *sum += part;
        }
        self.unaccounted_ns += other.unaccounted_ns;
    }

    pub fn classed_ns(&self) -> u64 {
        self.spent_ns.iter().sum()
    }
}

/// Class of the open interval.
pub fn open_class(t: &ThreadState, seeded: Option<u8>) -> Option<u8> {
    match t.state {
        thread_state::ON_CPU => Some(class::CPU),
        thread_state::QUEUED => Some(class::RUNQ),
        thread_state::BLOCKED => Some(t.site.class).filter(|c| (*c as usize) < class::COUNT),
        _ => seeded.filter(|c| (*c as usize) < class::COUNT),
    }
}

#[cfg(test)]
mod tests {
    use perf_ebpf_common::{Wire as _, signals::ledger::SiteKey};
    use proptest::prelude::*;

    use super::*;

    fn thread(since_ns: u64, state: u8) -> ThreadState {
        let zero = vec![0u8; size_of::<ThreadState>()];
        let mut t = ThreadState::from_bytes(&zero).unwrap();
        t.since_ns = since_ns;
        t.state = state;
        t.site = SiteKey {
            class: class::LOCK,
            ..SiteKey::EMPTY
        };
        t
    }

    #[test]
    fn the_open_interval_counts_up_to_the_end_of_the_window() {
        let t = thread(100, thread_state::BLOCKED);
        assert_eq!(Totals::at(&t, 150, None).spent_ns[class::LOCK as usize], 50);
        let t = thread(100, thread_state::SEEDED);
        assert_eq!(
            Totals::at(&t, 150, Some(class::TIMER)).spent_ns[class::TIMER as usize],
            50
        );
        assert_eq!(Totals::at(&t, 150, None).unaccounted_ns, 50);
    }

    #[test]
    fn what_happened_after_the_end_is_left_to_the_next_window() {
        let mut t = thread(160, thread_state::ON_CPU);
        t.spent_ns[class::LOCK as usize] = 100;
        t.spent_ns[class::RUNQ as usize] = 3;
        t.last_class = class::RUNQ;
        let at = Totals::at(&t, 150, None);
        assert_eq!(at.classed_ns(), 93);
        assert_eq!(at.spent_ns[class::RUNQ as usize], 0);
        let later = Totals::at(&t, 200, None);
        assert_eq!(later.since(&at).classed_ns(), 50);
    }

    #[test]
    fn a_sleep_first_read_from_proc_and_then_closed_in_another_class_is_counted_once() {
        let before = Totals::at(&thread(0, thread_state::SEEDED), 1000, Some(class::IDLE));
        let mut t = thread(1500, thread_state::ON_CPU);
        t.spent_ns[class::NET_TCP as usize] = 1500;
        let delta = Totals::at(&t, 1600, None).since(&before);
        assert_eq!(delta.classed_ns(), 600);
        assert_eq!(delta.spent_ns[class::IDLE as usize], 0);
        assert_eq!(delta.spent_ns[class::NET_TCP as usize], 500);
    }

    proptest! {
        #[test]
        fn differences_keep_the_sum_and_never_go_below_zero(
            a in proptest::array::uniform26(0u64..1000), grow in proptest::array::uniform26(0u64..1000),
            from in 0usize..26, to in 0usize..26
        ) {
            let before = Totals { spent_ns: a, unaccounted_ns: 1 };
            let mut after = before;
            for (sum, g) in after.spent_ns.iter_mut().zip(&grow) {
                *sum += g;
            }
            let moved = after.spent_ns[from];
            after.spent_ns[from] -= moved;
            after.spent_ns[to] += moved;
            let total: u64 = grow.iter().sum();
            prop_assert_eq!(after.since(&before).classed_ns(), total);
        }
    }
}
