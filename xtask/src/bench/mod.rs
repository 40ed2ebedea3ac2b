//! What tracing costs, measured beside what peers cost in the same run.
//!
//! Each load is measured untraced and traced in alternation, all tracers taking turns in each
//! round, so that a machine that changes meanwhile changes all of them alike. Added time is the
//! median of the differences. Targets are printed and never make the task fail: a timing is not a
//! test.

mod connections;
mod load;
mod postgres;
mod report;
mod targets;
mod tracer;

use std::{path::PathBuf, thread, time::Duration};

use anyhow::{Context as _, Result, bail};

use self::{
    connections::{CONNECTIONS, Connections},
    load::{Load, Redis, Served, Shape},
    postgres::Postgres,
    report::{Pair, Row, median},
    tracer::Tracer,
};
use crate::{
    bpf, setup, step,
    workspace::{Profile, Workspace},
};

const READ: &str = "read of 1 byte";
const BYSTANDER: &str = "same, of a process that is not traced";
const COMPUTE: &str = "10 µs on a CPU, 30 calls deep";
const PING_PONG: &str = "pipe round trip on one CPU";
const REDIS: &str = "redis GET, 16 connections";
const REDIS_CPU: &str = "same, CPU time of the server per GET";
const PIPELINE: &str = "redis GET, 16 connections, -P 16";
const PIPELINE_CPU: &str = "same in pipelines, CPU time of the server per GET";
/// Connections of `REDIS` and `PIPELINE`.
const CLIENTS: u32 = 16;
const POSTGRES: &str = "pgbench -S -M prepared -c 4";
/// How long the agent watches a process that sleeps.
const IDLE: Duration = Duration::from_secs(10);

/// How long very many connections are in use.
const CONNECTED: Duration = Duration::from_secs(5);

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
    Compute,
    PingPong,
    Redis,
    Pipeline,
    Postgres,
    /// The agent's own memory, CPU time and time to attach.
    Agent,
}

/// What the agent takes for itself.
#[derive(Clone, Copy, Debug)]
struct OwnCost {
    attach_s: f64,
    rss_mib: f64,
    cpu_ms_per_s: f64,
    /// With [`CONNECTIONS`] open and in use.
    connected_rss_mib: f64,
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
        scratch: workspace.target.join("bench-servers"),
        time: Duration::from_millis(options.milliseconds),
        pairs: options.pairs,
        tracers,
    };
    let machine = format!(
        "{} CPUs, load average at the start {}",
        thread::available_parallelism().map_or(0, usize::from),
        load_average(),
    );
    let wanted = |part| options.only.is_none_or(|only| only == part);
    let mut rows = Vec::new();
    if wanted(Only::Read) {
        rows.extend(bench.read()?);
    }
    if wanted(Only::Compute) {
        rows.extend(bench.of_load(COMPUTE, "compute", &[])?);
    }
    if wanted(Only::PingPong) {
        let peers = [
            tracer::OFFCPU_SUM,
            tracer::OFFCPU_STACKS,
            tracer::PERF_TRACE,
        ];
        rows.extend(bench.of_load(PING_PONG, "ping-pong", &peers)?);
    }
    if wanted(Only::Redis) {
        rows.extend(bench.redis([REDIS, REDIS_CPU], 1)?);
    }
    if wanted(Only::Pipeline) {
        rows.extend(bench.redis([PIPELINE, PIPELINE_CPU], 16)?);
    }
    if wanted(Only::Postgres) {
        rows.extend(bench.postgres()?);
    }
    let own = wanted(Only::Agent).then(|| bench.own_cost()).transpose()?;
    let targets = targets::targets(&rows, own);
    print!("{}", report::render(&rows, &targets, options.markdown));
    println!(
        "\n{machine}, at the end {}; {} pairs",
        load_average(),
        options.pairs
    );
    Ok(())
}

/// Of the last minute. Other work on the machine shows in the throughput of Redis above all.
fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_owned()
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

    /// A load of `bench_load`, under the agent and some peers.
    fn of_load(&self, name: &'static str, kind: &str, peers: &[&str]) -> Result<Vec<Row>> {
        let tracers = self.tracers(peers);
        let mut target = Load::start(&self.load, kind)?;
        let mut rows = rows(name, "ns", &tracers);
        self.rounds(name, &tracers, |index, tracer| {
            let untraced = target.measure(self.time)?;
            let running = tracer.start(target.pid())?;
            let traced = target.measure(self.time)?;
            running.stop()?;
            rows[index].pairs.push(Pair { untraced, traced });
            Ok(())
        })?;
        Ok(rows)
    }

    fn redis(&self, names: [&'static str; 2], pipeline: u32) -> Result<Vec<Row>> {
        let tracers: Vec<&Tracer> = self.tracers.iter().collect();
        let shape = Shape {
            connections: CLIENTS,
            pipeline,
        };
        let redis = Redis::start(self.scratch.join("redis"), shape, self.time)?;
        let mut rows = rows(names[0], "1/s", &tracers);
        let mut cpu_rows = self::rows(names[1], "ns", &tracers);
        self.rounds(names[0], &tracers, |index, tracer| {
            let untraced = redis.measure()?;
            let running = tracer.start(redis.pid())?;
            // What a tracer does once (names of the stacks, tables, buffers) is not a rate; for the
            // agent it is told apart, as its time to attach and its CPU time.
            redis.measure()?;
            let traced = redis.measure()?;
            rows[index].lost += lost(&running.stop()?);
            let pair = |figure: fn(Served) -> f64| Pair {
                untraced: figure(untraced),
                traced: figure(traced),
            };
            rows[index].pairs.push(pair(|served| served.per_second));
            cpu_rows[index]
                .pairs
                .push(pair(|served| served.cpu_ns_per_request));
            Ok(())
        })?;
        rows.extend(cpu_rows);
        Ok(rows)
    }

    fn postgres(&self) -> Result<Vec<Row>> {
        let tracers = self.tracers(&[tracer::SYSCALLS, tracer::OFFCPU_STACKS]);
        let postgres = Postgres::start(self.scratch.join("postgres"), self.time)?;
        let mut rows = rows(POSTGRES, "1/s", &tracers);
        self.rounds(POSTGRES, &tracers, |index, tracer| {
            let untraced = postgres.measure()?;
            let running = tracer.start(postgres.pid())?;
            postgres.measure()?;
            let traced = postgres.measure()?;
            rows[index].lost += lost(&running.stop()?);
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
        Ok(OwnCost {
            attach_s: median(attach.into_iter()),
            rss_mib: rss_mib(&coverage, resident)?,
            connected_rss_mib: self.connected_rss_mib(tracer)?,
            cpu_ms_per_s: cpu_ms_per_s(&coverage).context("no window without the start in it")?,
        })
    }

    /// On a Redis server with very many connections, all of them in use.
    fn connected_rss_mib(&self, tracer: &Tracer) -> Result<f64> {
        eprintln!("the agent alone: {CONNECTIONS} connections");
        let shape = Shape {
            connections: CLIENTS,
            pipeline: 1,
        };
        let redis = Redis::start(self.scratch.join("connections"), shape, self.time)?;
        let running = tracer.start(redis.pid())?;
        let mut connections = Connections::open(redis.port())?;
        connections.ask(CONNECTED)?;
        let resident = running.rss_bytes();
        rss_mib(&running.stop()?, resident)
    }
}

/// What the agent says it lost, of all kinds.
fn lost(coverage: &[serde_json::Value]) -> u64 {
    let reasons = coverage.iter().filter_map(|line| line["lost"].as_object());
    reasons
        .flat_map(serde_json::Map::values)
        .filter_map(serde_json::Value::as_u64)
        .sum()
}

/// The most that the agent said of its own memory, or the kernel of it.
fn rss_mib(coverage: &[serde_json::Value], resident: Option<u64>) -> Result<f64> {
    let reported = coverage
        .iter()
        .filter_map(|line| line["agent"]["rss_bytes"].as_u64());
    let bytes = reported.chain(resident).max().context("no memory figure")?;
    Ok(bytes as f64 / f64::from(1 << 20))
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
            lost: 0,
        })
        .collect()
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
