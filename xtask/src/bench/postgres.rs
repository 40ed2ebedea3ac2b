//! A PostgreSQL server of its own under `pgbench`.

use std::{
    fs,
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::step;

/// The name of its Unix socket: nothing listens on TCP.
const PORT: &str = "5432";
const UP_LIMIT: Duration = Duration::from_secs(20);
/// Where Debian has the programs of each major version.
const BINARIES: &str = "/usr/lib/postgresql";

/// A server in a directory of its own, ended and removed when dropped.
pub struct Postgres {
    server: Child,
    binaries: PathBuf,
    directory: PathBuf,
    user: (u32, u32),
    time: Duration,
}

impl Postgres {
    /// Makes a cluster, starts it as the user `postgres` (it refuses root) and fills it.
    ///
    /// # Errors
    /// Where it is not installed or does not come up.
    pub fn start(directory: PathBuf, time: Duration) -> Result<Self> {
        let binaries = binaries()?;
        let user = user_ids("postgres")?;
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        chown(&directory, Some(user.0), Some(user.1)).context("giving the directory away")?;
        let data = directory.join("data");
        let mut initdb = command(&binaries, user, "initdb");
        initdb.args(["-A", "trust", "-U", "postgres", "--no-sync", "-D"]);
        step::output(initdb.arg(&data)).context("initdb failed")?;
        let server = command(&binaries, user, "postgres")
            .args(["-p", PORT, "-c", "listen_addresses=", "-D"])
            .arg(&data)
            .arg("-k")
            .arg(&directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting postgres")?;
        let postgres = Postgres {
            server,
            binaries,
            directory,
            user,
            time,
        };
        postgres.wait_until_up()?;
        step::output(postgres.pgbench().args(["-i", "-q", "-s", "2", "postgres"]))
            .context("filling the tables failed")?;
        Ok(postgres)
    }

    pub fn pid(&self) -> u32 {
        self.server.id()
    }

    /// Transactions a second: one prepared select each, on four connections.
    ///
    /// # Errors
    /// Where pgbench fails.
    pub fn measure(&self) -> Result<f64> {
        // Its shortest run is a second.
        let seconds = self.time.as_secs().max(1).to_string();
        let text = step::output(
            self.pgbench()
                .args(["-S", "-M", "prepared", "-c", "4", "-n", "-T", &seconds])
                .arg("postgres"),
        )
        .context("pgbench failed")?;
        transactions_per_second(&text).with_context(|| format!("pgbench said {text:?}"))
    }

    fn pgbench(&self) -> Command {
        let mut command = command(&self.binaries, self.user, "pgbench");
        command.args(["-U", "postgres", "-p", PORT, "-h"]);
        command.arg(&self.directory);
        command
    }

    fn wait_until_up(&self) -> Result<()> {
        let deadline = Instant::now() + UP_LIMIT;
        loop {
            let mut probe = command(&self.binaries, self.user, "pg_isready");
            probe.args(["-q", "-p", PORT, "-h"]).arg(&self.directory);
            if probe.status().context("running pg_isready")?.success() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("postgres does not listen after {} s", UP_LIMIT.as_secs());
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // SAFETY: a signal to a child of ours that was not waited for; SIGINT is its fast shutdown.
        unsafe { libc::kill(self.server.id() as libc::pid_t, libc::SIGINT) };
        let _ = self.server.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn command(binaries: &Path, user: (u32, u32), program: &str) -> Command {
    let mut command = Command::new(binaries.join(program));
    command.uid(user.0).gid(user.1).current_dir("/");
    command
}

/// The newest version's programs.
fn binaries() -> Result<PathBuf> {
    let entries = fs::read_dir(BINARIES)
        .with_context(|| format!("no {BINARIES}: apt-get install postgresql"))?;
    entries
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|path| path.join("postgres").exists() && path.join("pgbench").exists())
        .max()
        .context("postgres is not installed: apt-get install postgresql")
}

/// User and group of an account, from /etc/passwd.
fn user_ids(name: &str) -> Result<(u32, u32)> {
    let text = fs::read_to_string("/etc/passwd").context("reading /etc/passwd")?;
    let entry = |line: &str| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        let mut ids = fields.skip(1);
        Some((ids.next()?.parse().ok()?, ids.next()?.parse().ok()?))
    };
    text.lines()
        .find_map(entry)
        .with_context(|| format!("there is no user {name}: apt-get install postgresql"))
}

/// The figure of the line `tps = N (without initial connection time)`.
fn transactions_per_second(text: &str) -> Option<f64> {
    let figure = text.lines().find_map(|line| line.strip_prefix("tps = "))?;
    figure.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_read_from_its_line() {
        let text = "latency average = 0.214 ms\ntps = 18683.21 (without initial connection time)\n";
        assert_eq!(transactions_per_second(text), Some(18683.21));
        assert_eq!(transactions_per_second("latency average = 1 ms\n"), None);
    }
}
