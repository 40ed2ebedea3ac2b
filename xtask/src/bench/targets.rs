//! What was promised, beside what was measured.

use super::{
    BYSTANDER, COMPUTE, OwnCost, PING_PONG, PIPELINE, POSTGRES, READ, REDIS,
    report::{Bound, Row, Target},
    tracer,
};

/// Each promise, with what was measured of it.
pub fn targets(rows: &[Row], own: Option<OwnCost>) -> Vec<Target> {
    let row = |load, tracer| {
        rows.iter()
            .find(|row| row.load == load && row.tracer == tracer)
    };
    // What it adds, as a part of what another tracer adds.
    let share = |what, load, tracer, peer, most| {
        let share = || Some(row(load, tracer)?.added() / row(load, peer)?.added());
        target(what, share(), "ratio", Bound::AtMost(most))
    };
    let keeps = |what, load, tracer, least| {
        let kept = row(load, tracer).map(Row::kept);
        target(what, kept, "ratio", Bound::AtLeast(least))
    };
    use tracer::{DEFAULT, FULL, LEDGER, OFFCPU_STACKS, OFFCPU_SUM, SYSCALLS};
    [
        share(
            "ledger without stacks, added to a round trip, of bpftrace's off-CPU sum",
            PING_PONG,
            LEDGER,
            OFFCPU_SUM,
            0.40,
        ),
        share(
            "stacks of every block, added to a round trip, of bpftrace's",
            PING_PONG,
            DEFAULT,
            OFFCPU_STACKS,
            0.25,
        ),
        target(
            "samples of the CPU: what a program that computes keeps",
            row(COMPUTE, DEFAULT).map(|row| 1.0 / row.kept()),
            "ratio",
            Bound::AtLeast(0.98),
        ),
        keeps(
            "ledger without stacks: what Redis keeps of its throughput",
            REDIS,
            LEDGER,
            0.97,
        ),
        keeps(
            "default with decoding: what Redis keeps of its throughput",
            REDIS,
            DEFAULT,
            0.93,
        ),
        keeps(
            "default with decoding: what Redis keeps, pipelines of 16",
            PIPELINE,
            DEFAULT,
            0.90,
        ),
        keeps(
            "default with decoding: what pgbench keeps, prepared selects",
            POSTGRES,
            DEFAULT,
            0.97,
        ),
        target(
            "lost at those rates",
            decoding_lost(rows),
            "events",
            Bound::AtMost(0.0),
        ),
        share(
            "syscalls in full, added to a call, of bpftrace's histogram",
            READ,
            FULL,
            SYSCALLS,
            0.42,
        ),
        share(
            "syscalls in full, added to another process's call, of bpftrace's histogram",
            BYSTANDER,
            FULL,
            SYSCALLS,
            0.70,
        ),
        target(
            "syscalls off: added to another process's call, of its time",
            row(BYSTANDER, LEDGER).map(|row| row.kept() - 1.0),
            "ratio",
            // Nothing is attached there; what is left is the noise of the measurement.
            Bound::AtMost(0.02),
        ),
    ]
    .into_iter()
    .chain(own_targets(own))
    .collect()
}

/// Of the three loads whose bytes are decoded, where any of them was measured.
fn decoding_lost(rows: &[Row]) -> Option<f64> {
    let decoded = rows.iter().filter(|row| {
        row.tracer == tracer::DEFAULT && [REDIS, PIPELINE, POSTGRES].contains(&row.load)
    });
    decoded
        .map(|row| row.lost as f64)
        .reduce(|sum, of_row| sum + of_row)
}

fn own_targets(own: Option<OwnCost>) -> [Target; 4] {
    [
        target(
            "agent's resident memory",
            own.map(|own| own.rss_mib),
            "MiB",
            Bound::AtMost(48.0),
        ),
        target(
            "agent's resident memory with 10,000 connections",
            own.map(|own| own.connected_rss_mib),
            "MiB",
            Bound::AtMost(96.0),
        ),
        target(
            "agent's CPU time on an idle target",
            own.map(|own| own.cpu_ms_per_s),
            "ms/s",
            Bound::AtMost(10.0),
        ),
        target(
            "from exec to the hello line",
            own.map(|own| own.attach_s),
            "s",
            Bound::AtMost(0.3),
        ),
    ]
}

fn target(what: &'static str, measured: Option<f64>, unit: &'static str, bound: Bound) -> Target {
    Target {
        what,
        measured,
        unit,
        bound,
    }
}
