//! What a profile's figures rest on, in words.

use super::stacks::{LIVE, Stacks};
use crate::{
    cli::Mode,
    sink::units::{bytes, count, duration, duration_per_s, percent},
};

/// What is shown, of whom.
pub fn title(stacks: &Stacks) -> String {
    let what = match stacks.shown.mode {
        Mode::Cpu => "time on the CPU",
        Mode::Off => "time off the CPU",
        Mode::Wall => "wall time",
        Mode::Alloc => "memory allocated, live and freed,",
    };
    format!("{what} of {}", whom(stacks))
}

/// The processes: the first, and how many more.
pub fn whom(stacks: &Stacks) -> String {
    match stacks.processes.as_slice() {
        [] => "nobody".to_owned(),
        [one] => format!("{} (pid {})", one.comm, one.pid),
        [first, rest @ ..] => {
            format!("{} (pid {}) and {} more", first.comm, first.pid, rest.len())
        }
    }
}

/// An amount of what is shown: time, or bytes.
pub fn amount(stacks: &Stacks, weight: u64) -> String {
    match stacks.shown.mode {
        Mode::Alloc => bytes(weight),
        Mode::Cpu | Mode::Off | Mode::Wall => duration(weight),
    }
}

/// As [`short`], of memory.
fn short_of_memory(stacks: &Stacks) -> String {
    let basis = &stacks.basis;
    let places = stacks.in_order();
    let live = places.iter().filter(|(place, _)| place.class == LIVE);
    let live: u64 = live.map(|(_, amount)| amount.weight).sum();
    format!(
        "{} allocated, {} of it not freed, by {} samples · {} of it without a stack",
        bytes(basis.shown_ns),
        bytes(live),
        count(basis.samples),
        percent(basis.stackless_ns, basis.shown_ns),
    ) + &lost(stacks)
}

fn lost(stacks: &Stacks) -> String {
    match stacks.basis.lost.values().sum::<u64>() {
        0 => " · lost 0".to_owned(),
        lost => format!(" · lost {}", count(lost)),
    }
}

/// The share of thread time that is shown, and the share of it without a stack.
pub fn short(stacks: &Stacks) -> String {
    if stacks.shown.mode == Mode::Alloc {
        return short_of_memory(stacks);
    }
    let basis = &stacks.basis;
    let mut text = format!(
        "{} of {} thread time shown",
        duration(basis.shown_ns),
        duration(basis.lifetime_ns),
    );
    if let Some(idle) = basis
        .left_out
        .get("idle")
        .filter(|_| stacks.shown.mode != Mode::Cpu)
    {
        text.push_str(&format!(
            ", {} idle left out (--idle shows it)",
            duration(*idle)
        ));
    }
    text.push_str(&format!(
        " · {} of it without a stack",
        percent(basis.stackless_ns, basis.shown_ns)
    ));
    text.push_str(&lost(stacks));
    text
}

/// Everything that is known, in two lines; of allocations three.
pub fn text(stacks: &Stacks) -> String {
    let basis = &stacks.basis;
    let mut first = format!("coverage: {}", short(stacks));
    if !basis.lost.is_empty() {
        let reasons = basis.lost.iter().map(|(r, n)| format!("{r} {}", count(*n)));
        first.push_str(&format!(" ({})", reasons.collect::<Vec<_>>().join(", ")));
    }
    first.push_str(&format!(
        " · {} of thread time unexplained",
        percent(basis.residual_ns, basis.lifetime_ns)
    ));
    if basis.scaled_ns > 0 {
        first.push_str(&format!(
            " · places scaled down by {} to the ledger",
            duration(basis.scaled_ns)
        ));
    }
    if let Some(probes) = &basis.probes {
        first.push_str(&format!("\n  · {probes}"));
    }
    let unnamed = stacks.frames.iter().filter(|f| !f.frame.symbolized).count();
    let wall_ns = basis.end_ns.saturating_sub(basis.start_ns).max(1);
    let per_s = |ns: u64| (u128::from(ns) * 1_000_000_000 / u128::from(wall_ns)) as u64;
    format!(
        "{first}\n  · {} of {} functions without a symbol · {} of {} remembered stacks checked were wrong · agent {} CPU, {} in kernel programs, {}",
        count(unnamed as u64),
        count(stacks.frames.len() as u64),
        count(basis.memo.mismatched),
        count(basis.memo.checked),
        duration_per_s(per_s(basis.agent_cpu_ns)),
        duration_per_s(per_s(basis.agent_bpf_ns)),
        bytes(basis.agent_rss_bytes),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::fixtures::{shown, stacks};

    #[test]
    fn what_is_left_out_and_what_has_no_stack_is_said() {
        let stacks = stacks(shown(Mode::Wall, false));
        assert_eq!(title(&stacks), "wall time of app (pid 77)");
        assert_eq!(
            short(&stacks),
            "9.00 µs of 10.0 µs thread time shown, 1.00 µs idle left out (--idle shows it) · 7.8 % of it without a stack · lost 0"
        );
        let text = text(&stacks);
        assert!(text.contains("places scaled down by 100 ns"), "{text}");
        assert!(
            text.contains("1 of 10 functions without a symbol"),
            "{text}"
        );
    }

    #[test]
    fn losses_are_named() {
        let mut stacks = stacks(shown(Mode::Cpu, false));
        stacks.basis.lost.insert("ring_full".into(), 3);
        let text = text(&stacks);
        assert!(text.contains("lost 3 (ring_full 3)"), "{text}");
        assert!(!text.contains("--idle"), "{text}");
    }
}
