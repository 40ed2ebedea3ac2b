//! What is traced: the loads of `bench_load`, and a Redis server under its own benchmark.

use std::{
    fs,
    io::{BufRead as _, BufReader, Lines, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::connections::CONNECTIONS;
use crate::{setup, step};

/// A process that waits to be told to run for a while.
pub struct Load {
    child: Child,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Load {
    /// # Errors
    /// Where it cannot be started.
    pub fn start(program: &Path, kind: &str) -> Result<Self> {
        let mut child = Command::new(program)
            .arg(kind)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let commands = child.stdin.take().context("the load has an input")?;
        let answers = child.stdout.take().context("the load has an output")?;
        let mut load = Load {
            child,
            commands,
            answers: BufReader::new(answers).lines(),
        };
        match load.answer()?.as_str() {
            "ready" => Ok(load),
            other => bail!("the load said {other:?}"),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// CPU time of one step in nanoseconds, over a run of this length.
    ///
    /// # Errors
    /// Where the load is gone.
    pub fn measure(&mut self, time: Duration) -> Result<f64> {
        writeln!(self.commands, "{}", time.as_millis()).context("telling the load to run")?;
        let answer = self.answer()?;
        let answer: serde_json::Value =
            serde_json::from_str(&answer).with_context(|| format!("the load said {answer:?}"))?;
        answer["ns_per_step"]
            .as_f64()
            .context("the load gave no time for a step")
    }

    fn answer(&mut self) -> Result<String> {
        let line = self.answers.next().context("the load ended")?;
        line.context("reading from the load")
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a server did in one run of its benchmark.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    pub per_second: f64,
    /// On all its threads, whoever's code ran there: on a machine with other work the steadier
    /// figure.
    pub cpu_ns_per_request: f64,
}

/// A Redis server on a port of its own that keeps nothing.
pub struct Redis {
    server: Child,
    port: u16,
    directory: PathBuf,
    shape: Shape,
    /// Requests of one run, so many that it takes the time asked for.
    requests: u64,
}

/// How `redis-benchmark` asks.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub connections: u32,
    /// Requests sent before the first answer is waited for.
    pub pipeline: u32,
}

impl Redis {
    /// # Errors
    /// Where it is not installed or does not come up.
    pub fn start(directory: PathBuf, shape: Shape, time: Duration) -> Result<Self> {
        for program in ["redis-server", "redis-benchmark"] {
            setup::find_program(program).with_context(|| {
                format!("{program} is not installed: apt-get install redis-server redis-tools")
            })?;
        }
        fs::create_dir_all(&directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|listener| listener.local_addr())
            .context("finding a free port")?
            .port();
        let server = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(["--maxclients", &(CONNECTIONS + 100).to_string()])
            .args(["--port", &port.to_string(), "--dir"])
            .arg(&directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("starting redis-server")?;
        let mut redis = Redis {
            server,
            port,
            directory,
            shape,
            requests: 20_000,
        };
        redis.wait_until_up()?;
        let rate = redis.measure()?.per_second;
        redis.requests = (rate * time.as_secs_f64()).max(1.0) as u64;
        Ok(redis)
    }

    pub fn pid(&self) -> u32 {
        self.server.id()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Runs the benchmark.
    ///
    /// # Errors
    /// Where the benchmark fails.
    pub fn measure(&self) -> Result<Served> {
        let cpu_before_ns = cpu_ns(self.pid())?;
        let text = step::output(
            Command::new("redis-benchmark")
                .args(["-h", "127.0.0.1", "-p", &self.port.to_string()])
                .args(["-c", &self.shape.connections.to_string()])
                .args(["-P", &self.shape.pipeline.to_string()])
                .args(["-t", "get", "--csv"])
                .args(["-n", &self.requests.to_string()]),
        )
        .context("redis-benchmark failed")?;
        let cpu_ns = cpu_ns(self.pid())? - cpu_before_ns;
        Ok(Served {
            per_second: requests_per_second(&text)
                .with_context(|| format!("redis-benchmark said {text:?}"))?,
            cpu_ns_per_request: cpu_ns as f64 / self.requests as f64,
        })
    }

    fn wait_until_up(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            if Instant::now() > deadline {
                bail!("redis-server does not listen after 10 s");
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Time its threads ran, by the scheduler's own figures.
fn cpu_ns(pid: u32) -> Result<u64> {
    let tasks = format!("/proc/{pid}/task");
    let mut sum_ns = 0;
    for task in fs::read_dir(&tasks).with_context(|| format!("reading {tasks}"))? {
        let path = task.with_context(|| format!("reading {tasks}"))?.path();
        let path = path.join("schedstat");
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let ran_ns = text
            .split_whitespace()
            .next()
            .and_then(|first| first.parse::<u64>().ok());
        sum_ns += ran_ns.with_context(|| format!("{} says {text:?}", path.display()))?;
    }
    Ok(sum_ns)
}

/// Second field of the row that begins with `"GET"`.
fn requests_per_second(csv: &str) -> Option<f64> {
    csv.lines().find_map(|line| {
        let (_, rest) = line.split_once("\"GET\",\"")?;
        rest.split('"').next()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throughput_is_read_from_the_row_of_the_command() {
        let csv = "\"test\",\"rps\",\"avg_latency_ms\"\n\"GET\",\"81234.56\",\"0.312\"\n";
        assert_eq!(requests_per_second(csv), Some(81234.56));
        assert_eq!(requests_per_second("\"test\",\"rps\"\n"), None);
    }
}
