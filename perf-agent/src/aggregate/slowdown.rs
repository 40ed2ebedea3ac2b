//! What counting did to the rate it counted.
//!
//! A call costs a traced thread some 300 ns more while the hooks are on: a thread that does nothing
//! but cheap calls makes 2.6 times fewer of them in a slice than outside it (measured: 0.39 of the
//! truth by scaling alone). The cost of the hooks is measured at the attach, so the rate without
//! them follows: of a slice of length L with n calls that each took c longer, L - n·c was the
//! program's own, and outside the slices it makes n calls in every L - n·c.
//!
//! Time in which the process waits for a CPU is nobody's: the more CPU time its calls take, the more
//! of that there is. (Without this the same storm on a machine with as many other runnable threads
//! as CPUs came out at 0.54 of the truth.)
//!
//! That is exact for a thread that is never idle, and for one that waits for nothing but what it
//! does itself. One that is paced from outside makes as many calls either way. Which of these a
//! process is cannot be known, so `count_error` reaches from one to the other, unless the process
//! was on the CPU all the time.

/// Most of a slice that is put down to the hooks: at their 400 ns that is a call of 44 ns, and no
/// entry into the kernel is cheaper.
const MOST: f64 = 0.9;
/// The hooks' cost is measured with warm caches on one call, which is the least it can be. In a loop
/// of writes it was 1.1 to 1.4 times that.
const COST_TYPICAL: f64 = 1.25;
/// Relative uncertainty of the typical cost.
const COST_ERROR: f64 = 0.3;
/// Time on the CPU or waiting for one, per wall time, from which a process counts as never idle.
const NEVER_IDLE: f64 = 0.9;

/// How many times more calls per time a process makes while nobody counts them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slowdown {
    pub least: f64,
    pub likely: f64,
    pub most: f64,
}

impl Slowdown {
    pub const NONE: Slowdown = Slowdown {
        least: 1.0,
        likely: 1.0,
        most: 1.0,
    };

    /// Of a process with `calls` counted in `on_ns` of slices, each slowed by `hook_ns`, that was on
    /// the CPU for `busy` times the window's length and waited for one for `queued` times.
    pub fn of(calls: u64, hook_ns: u64, on_ns: u64, (busy, queued): (f64, f64)) -> Slowdown {
        if on_ns == 0 || calls == 0 || hook_ns == 0 {
            return Slowdown::NONE;
        }
        let factor = |share: f64| 1.0 / (1.0 - share.min(MOST));
        let share_of = |slices: f64| calls as f64 * hook_ns as f64 * COST_TYPICAL / slices;
        // A process on several CPUs is taken to make its calls on all of them alike.
        let had = busy.max(1.0 - queued).max(f64::EPSILON);
        let share = share_of(on_ns as f64 * had);
        // More calls than fit into that time: the slices fell where the process had the CPU, and not on the
        // same share of it as the window.
        let likely = match share > MOST {
            true => share_of(on_ns as f64 * had.max(1.0)),
            false => share,
        };
        Slowdown {
            least: match busy + queued >= NEVER_IDLE {
                true => factor(likely * (1.0 - COST_ERROR)),
                false => 1.0,
            },
            likely: factor(likely),
            most: factor(share * (1.0 + COST_ERROR)),
        }
    }

    /// From a count in slices that are `fraction` of the window to the whole of it.
    pub fn scale(factor: f64, fraction: f64) -> f64 {
        1.0 + factor * (1.0 / fraction - 1.0)
    }

    /// How far the truth may be from the likely count, in counted calls.
    pub fn error(&self, fraction: f64) -> f64 {
        let off = 1.0 / fraction - 1.0;
        (self.likely - self.least).max(self.most - self.likely) * off
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_is_counted_as_it_would_run_uncounted() {
        // 100 ns a call and 300 more with the hooks (1.25 times 240): 2.5 million counted in a second of
        // slices.
        let slowed = Slowdown::of(2_500_000, 240, 1_000_000_000, (1.0, 0.0));
        assert!((slowed.likely - 4.0).abs() < 1e-9, "{slowed:?}");
        // Ten seconds, one of them counted: 2.5 million and nine times 10 million.
        let scale = Slowdown::scale(slowed.likely, 0.1);
        assert!((scale * 2.5 - 92.5).abs() < 1e-6, "{scale}");
        assert!(
            slowed.least > 1.0 && slowed.most > slowed.likely,
            "{slowed:?}"
        );
    }

    #[test]
    fn time_spent_waiting_for_a_cpu_is_not_the_loops_own() {
        // The same loop with half a CPU: half as many calls in the same time.
        let alone = Slowdown::of(2_500_000, 240, 1_000_000_000, (1.0, 0.0));
        let half = Slowdown::of(1_250_000, 240, 1_000_000_000, (0.5, 0.5));
        assert_eq!(alone, half);
    }

    #[test]
    fn slices_in_which_the_loop_did_not_wait_are_not_like_their_window() {
        // It had a CPU for 0.6 of the window, and for all of its slices.
        let alone = Slowdown::of(2_500_000, 240, 1_000_000_000, (1.0, 0.0));
        let lucky = Slowdown::of(2_500_000, 240, 1_000_000_000, (0.6, 0.4));
        assert_eq!((lucky.least, lucky.likely), (alone.least, alone.likely));
        assert!(lucky.most >= 10.0 - 1e-9, "{lucky:?}");
    }

    #[test]
    fn a_process_that_may_be_paced_from_outside_may_not_have_been_slowed() {
        let slowed = Slowdown::of(100_000, 240, 100_000_000, (0.4, 0.0));
        assert_eq!(slowed.least, 1.0);
        assert!((slowed.likely - 1.0 / 0.7).abs() < 1e-9, "{slowed:?}");
        let error = slowed.error(0.1);
        assert!(error >= 9.0 * (slowed.likely - 1.0), "{error}");
    }

    #[test]
    fn more_hook_than_time_is_bounded_and_no_hook_is_no_slowdown() {
        let slowed = Slowdown::of(1_000_000, 2_000, 1_000_000_000, (1.0, 0.0));
        assert!(slowed.likely <= 10.0 + 1e-9 && slowed.most <= 10.0 + 1e-9);
        assert_eq!(Slowdown::of(5, 0, 1, (1.0, 0.0)), Slowdown::NONE);
        assert_eq!(Slowdown::scale(1.0, 0.25), 4.0);
        assert_eq!(Slowdown::NONE.error(0.1), 0.0);
    }
}
