//! What tracing costs, measured beside what peers cost in the same run.
//!
//! Each load is measured untraced and traced in alternation, all tracers taking turns in each
//! round, so that a machine that changes meanwhile changes all of them alike. Added time is the
//! median of the differences. Targets are printed and never make the task fail: a timing is not a
//! test.

mod load;
mod report;
mod tracer;

use std::{path::PathBuf, thread, time::Duration};

use anyhow::{Context as _, Result, bail};

use self::{
    load::{Load, Redis},
    report::{Bound, Pair, Row, Target, median},
    tracer::Tracer,
};
use crate::{
    bpf, setup, step,
    workspace::{Profile, Workspace},
};

const READ: &str = "read of 1 byte";
const BYSTANDER: &str = "same, of a process that is not traced";
const PING_PONG: &str = "pipe round trip on one CPU";
const REDIS: &str = "redis GET -P 1";
/// How long the agent watches a process that sleeps.
const IDLE: Duration = Duration::from_secs(10);

/// What is measured, and how long.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Pairs of untraced and traced for each load and tracer.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub pairs: u32,
    /// Milliseconds of one measurement.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(10..))]
    pub milliseconds: u64,
    /// One of the loads.
    #[arg(long, value_enum)]
    pub only: Option<Only>,
    /// The agent alone, without the peers.
    #[arg(long)]
    pub no_peers: bool,
    /// The tables as Markdown.
    #[arg(long)]
    pub markdown: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Only {
    Read,
    PingPong,
    Redis,
    /// The agent's own memory, CPU time and time to attach.
    Agent,
}

/// What the agent takes for itself.
#[derive(Clone, Copy, Debug)]
struct OwnCost {
    attach_s: f64,
    rss_mib: f64,
    cpu_ms_per_s: f64,
}

/// Measures and prints both tables on standard output.
///
/// # Errors
/// Where a program is missing, a tracer does not attach, or this is not root.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    if !setup::is_root() {
        bail!("the bench needs root: sudo -E env \"PATH=$PATH\" cargo xtask bench");
    }
    let agent = bpf::build_all(workspace, Profile::Release)?;
    let mut command = workspace.cargo();
    command.args(["build", "--release", "--package", "perf-agent-tests"]);
    command.args(["--bin", "bench_load"]);
    step::run("building the loads", &mut command)?;

    let (mut tracers, lacking) = tracer::all(&agent, &workspace.root.join("xtask/bench"));
    if options.no_peers {
        tracers.retain(|tracer| tracer.name.starts_with(tracer::DEFAULT));
    }
    for name in lacking {
        eprintln!("left out, as it is not installed: {name} (apt-get install bpftrace linux-perf)");
    }
    let bench = Bench {
        load: workspace
            .target
            .join(Profile::Release.directory())
            .join("bench_load"),
        scratch: workspace.target.join("bench-redis"),
        time: Duration::from_millis(options.milliseconds),
        pairs: options.pairs,
        tracers,
    };
    let wanted = |part| options.only.is_none_or(|only| only == part);
    let mut rows = Vec::new();
    if wanted(Only::Read) {
        rows.extend(bench.read()?);
    }
    if wanted(Only::PingPong) {
        rows.extend(bench.ping_pong()?);
    }
    if wanted(Only::Redis) {
        rows.extend(bench.redis()?);
    }
    let own = wanted(Only::Agent).then(|| bench.own_cost()).transpose()?;
    let targets = targets(&rows, own);
    print!("{}", report::render(&rows, &targets, options.markdown));
    Ok(())
}

struct Bench {
    load: PathBuf,
    scratch: PathBuf,
    time: Duration,
    pairs: u32,
    tracers: Vec<Tracer>,
}

impl Bench {
    /// The tracers that have to do with a load.
    fn tracers(&self, peers: &[&str]) -> Vec<&Tracer> {
        self.tracers
            .iter()
            .filter(|tracer| {
                tracer.name.starts_with(tracer::DEFAULT) || peers.contains(&tracer.name)
            })
            .collect()
    }

    fn rounds(
        &self,
        label: &str,
        tracers: &[&Tracer],
        mut measure: impl FnMut(usize, &Tracer) -> Result<()>,
    ) -> Result<()> {
        for round in 1..=self.pairs {
            for (index, tracer) in tracers.iter().enumerate() {
                eprintln!("{label}: {}, pair {round} of {}", tracer.name, self.pairs);
                measure(index, tracer).with_context(|| format!("{label} under {}", tracer.name))?;
            }
        }
        Ok(())
    }

    fn read(&self) -> Result<Vec<Row>> {
        let tracers = self.tracers(&[tracer::SYSCALLS, tracer::PERF_TRACE]);
        let mut target = Load::start(&self.load, "read")?;
        let mut bystander = Load::start(&self.load, "read")?;
        let mut rows = rows(READ, "ns", &tracers);
        let mut bystander_rows = self::rows(BYSTANDER, "ns", &tracers);
        self.rounds(READ, &tracers, |index, tracer| {
            let untraced = target.measure(self.time)?;
            let bystander_untraced = bystander.measure(self.time)?;
            let running = tracer.start(target.pid())?;
            let traced = target.measure(self.time)?;
            let bystander_traced = bystander.measure(self.time)?;
            running.stop()?;
            rows[index].pairs.push(Pair { untraced, traced });
            bystander_rows[index].pairs.push(Pair {
                untraced: bystander_untraced,
                traced: bystander_traced,
            });
            Ok(())
        })?;
        rows.extend(bystander_rows);
        Ok(rows)
    }

    fn ping_pong(&self) -> Result<Vec<Row>> {
        let tracers = self.tracers(&[
            tracer::OFFCPU_SUM,
            tracer::OFFCPU_STACKS,
            tracer::PERF_TRACE,
        ]);
        let mut target = Load::start(&self.load, "ping-pong")?;
        let mut rows = rows(PING_PONG, "ns", &tracers);
        self.rounds(PING_PONG, &tracers, |index, tracer| {
            let untraced = target.measure(self.time)?;
            let running = tracer.start(target.pid())?;
            let traced = target.measure(self.time)?;
            running.stop()?;
            rows[index].pairs.push(Pair { untraced, traced });
            Ok(())
        })?;
        Ok(rows)
    }

    fn redis(&self) -> Result<Vec<Row>> {
        let tracers: Vec<&Tracer> = self.tracers.iter().collect();
        let redis = Redis::start(self.scratch.clone(), self.time)?;
        let mut rows = rows(REDIS, "1/s", &tracers);
        self.rounds(REDIS, &tracers, |index, tracer| {
            let untraced = redis.measure()?;
            let running = tracer.start(redis.pid())?;
            let traced = redis.measure()?;
            running.stop()?;
            rows[index].pairs.push(Pair { untraced, traced });
            Ok(())
        })?;
        Ok(rows)
    }

    /// On a target that sleeps, in the default mode.
    fn own_cost(&self) -> Result<OwnCost> {
        let tracer = self
            .tracers
            .iter()
            .find(|tracer| tracer.name == tracer::DEFAULT)
            .context("the agent is always there")?;
        let target = Load::start(&self.load, "read")?;
        let mut attach = Vec::new();
        for _ in 0..self.pairs {
            let running = tracer.start(target.pid())?;
            attach.push(running.attach.as_secs_f64());
            running.stop()?;
        }
        eprintln!("the agent alone: {} s on an idle target", IDLE.as_secs());
        let running = tracer.start(target.pid())?;
        thread::sleep(IDLE);
        let resident = running.rss_bytes();
        let coverage = running.stop()?;
        let reported = coverage
            .iter()
            .filter_map(|line| line["agent"]["rss_bytes"].as_u64());
        let rss_bytes = reported.chain(resident).max().context("no memory figure")?;
        Ok(OwnCost {
            attach_s: median(attach.into_iter()),
            rss_mib: rss_bytes as f64 / f64::from(1 << 20),
            cpu_ms_per_s: cpu_ms_per_s(&coverage).context("no window without the start in it")?,
        })
    }
}

/// Over all windows but the first, which has the start in it, and the last, which has the end.
fn cpu_ms_per_s(coverage: &[serde_json::Value]) -> Option<f64> {
    let windows = coverage.get(1..coverage.len().checked_sub(1)?)?;
    let (mut cpu_ns, mut wall_ns) = (0, 0);
    for line in windows {
        cpu_ns += line["agent"]["cpu_ns"].as_u64()?;
        let window = &line["window"];
        wall_ns += window["end_ns"].as_u64()? - window["start_ns"].as_u64()?;
    }
    (wall_ns > 0).then(|| cpu_ns as f64 * 1e3 / wall_ns as f64)
}

fn rows(load: &'static str, unit: &'static str, tracers: &[&Tracer]) -> Vec<Row> {
    tracers
        .iter()
        .map(|tracer| Row {
            load,
            tracer: tracer.name,
            unit,
            pairs: Vec::new(),
        })
        .collect()
}

fn targets(rows: &[Row], own: Option<OwnCost>) -> Vec<Target> {
    let row = |load, tracer| {
        rows.iter()
            .find(|row| row.load == load && row.tracer == tracer)
    };
    let share = |load, tracer, peer| Some(row(load, tracer)?.added() / row(load, peer)?.added());
    [
        target(
            "ledger without stacks, added to a round trip, of bpftrace's off-CPU sum",
            share(PING_PONG, tracer::LEDGER, tracer::OFFCPU_SUM),
            "ratio",
            Bound::AtMost(0.40),
        ),
        target(
            "ledger without stacks: what Redis keeps of its throughput",
            row(REDIS, tracer::LEDGER).map(Row::kept),
            "ratio",
            Bound::AtLeast(0.97),
        ),
        target(
            "syscalls in full, added to a call, of bpftrace's histogram",
            share(READ, tracer::FULL, tracer::SYSCALLS),
            "ratio",
            Bound::AtMost(0.42),
        ),
        target(
            "syscalls in full, added to another process's call, of bpftrace's histogram",
            share(BYSTANDER, tracer::FULL, tracer::SYSCALLS),
            "ratio",
            Bound::AtMost(0.70),
        ),
        target(
            "syscalls off: added to another process's call, of its time",
            row(BYSTANDER, tracer::LEDGER).map(|row| row.kept() - 1.0),
            "ratio",
            // Nothing is attached there; what is left is the noise of the measurement.
            Bound::AtMost(0.01),
        ),
    ]
    .into_iter()
    .chain(own_targets(own))
    .collect()
}

fn own_targets(own: Option<OwnCost>) -> [Target; 3] {
    [
        target(
            "agent's resident memory",
            own.map(|own| own.rss_mib),
            "MiB",
            Bound::AtMost(48.0),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_cost_leaves_out_the_windows_of_start_and_end() {
        let window = |cpu_ns: u64| {
            serde_json::json!({
                "agent": {"cpu_ns": cpu_ns},
                "window": {"start_ns": 0, "end_ns": 1_000_000_000},
            })
        };
        let lines = [900_000_000, 4_000_000, 2_000_000, 800_000_000].map(window);
        assert_eq!(cpu_ms_per_s(&lines), Some(3.0));
        assert_eq!(cpu_ms_per_s(&lines[..2]), None);
        assert_eq!(cpu_ms_per_s(&[]), None);
    }
}
