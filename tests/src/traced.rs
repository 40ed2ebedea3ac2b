//! Runs a workload of this package, in step with a test.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// A program of this package that was built with the test.
///
/// # Panics
/// Where the test does not run from cargo's target directory.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap_or_else(|e| panic!("own path: {e}"));
    let folder = test.parent();
    // A test lies in `deps`, a program beside it.
    let profile = folder.map(|folder| match folder.ends_with("deps") {
        true => folder.parent().unwrap_or(folder),
        false => folder,
    });
    let path = profile
        .map(|profile| profile.join(name))
        .unwrap_or_default();
    assert!(path.is_file(), "no {name} beside {}", test.display());
    path
}

/// A workload that waits for its cue, or works. Killed when dropped.
pub struct Traced {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    name: String,
}

impl Traced {
    /// Starts `workload NAME ...` and waits until it is ready.
    pub fn workload(arguments: &[&str]) -> Self {
        let mut command = Command::new(program("workload"));
        command.args(arguments).arg("--dir").arg(disk_directory());
        Self::start(command, arguments[0])
    }

    /// Starts `truth --wait` and waits until it is ready.
    pub fn truth(json: &std::path::Path) -> Self {
        let mut command = Command::new(program("truth"));
        command.args(["--wait", "--json"]).arg(json);
        command.arg("--dir").arg(disk_directory());
        Self::start(command, "truth")
    }

    /// Starts a program that keeps step in the same way, and waits until it is ready.
    pub fn start(mut command: Command, name: &str) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("starting {command:?}: {e}"));
        let (tell, lines) = mpsc::channel();
        if let Some(stdout) = child.stdout.take() {
            // Ends with the workload, or with the receiver.
            thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    if tell.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        let stdin = child.stdin.take();
        let traced = Traced {
            child,
            stdin,
            lines,
            name: name.to_owned(),
        };
        let pid = traced.line("READY ", crate::PATIENCE);
        assert_eq!(pid, traced.pid().to_string());
        traced
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets it begin, or dismisses it when it has held.
    pub fn go(&mut self) {
        if let Some(stdin) = &mut self.stdin {
            let wrote = stdin.write_all(b"\n").and_then(|()| stdin.flush());
            wrote.unwrap_or_else(|e| panic!("{} does not listen: {e}", self.name));
        }
    }

    /// What it did, once it says so.
    pub fn done(&self, patience: Duration) -> Value {
        let text = self.line("DONE ", patience);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    fn line(&self, prefix: &str, patience: Duration) -> String {
        let line = self.lines.recv_timeout(patience);
        let line = line.unwrap_or_else(|e| panic!("no {prefix}from {}: {e}", self.name));
        match line.strip_prefix(prefix) {
            Some(rest) => rest.to_owned(),
            None => panic!("{} says {line:?}, not {prefix}", self.name),
        }
    }

    /// Waits for its end.
    pub fn end(&mut self, patience: Duration) -> ExitStatus {
        let deadline = Instant::now() + patience;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return status,
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(2)),
                other => panic!("{} does not end: {other:?}", self.name),
            }
        }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // Fails only where it has ended already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// A Go program that was built for a test, in a directory of its own.
pub struct GoProgram(TempDir);

impl GoProgram {
    /// Builds a source of `src/chain`.
    pub fn build(source: &str) -> Self {
        let directory = tempfile::tempdir().unwrap_or_else(|e| panic!("a directory: {e}"));
        let program = GoProgram(directory);
        let source = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("src/chain")
            .join(source);
        let mut go = Command::new("go");
        go.args(["build", "-o"]).arg(program.path()).arg(source);
        go.env("GOCACHE", program.0.path().join("cache"));
        go.env("GO111MODULE", "off");
        crate::servers::to_end(go);
        program
    }

    pub fn path(&self) -> PathBuf {
        self.0.path().join("program")
    }
}

/// A directory that is on a disk where there is one: /tmp is often in memory, the build's own
/// directory seldom.
pub fn disk_directory() -> PathBuf {
    let test = std::env::current_exe().unwrap_or_else(|e| panic!("own path: {e}"));
    test.parent().map(PathBuf::from).unwrap_or_default()
}

/// Time a hypervisor took from this machine since boot, in which threads were neither on the CPU nor
/// in the run queue for the scheduler. Known to a hundredth of a second.
pub fn stolen() -> Duration {
    // The line `cpu` (proc_stat(5)), that word being field 0.
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks = stat.split_whitespace().nth(8);
    let ticks: u64 = ticks.and_then(|t| t.parse().ok()).unwrap_or(0);
    Duration::from_millis(10 * ticks)
}

/// The thread of a process that has this name.
///
/// # Panics
/// Where there is none.
pub fn thread_id(pid: u32, name: &str) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    tasks
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .find(|task| {
            let comm = std::fs::read_to_string(task.path().join("comm"));
            comm.is_ok_and(|comm| comm.trim_end() == name)
        })
        .and_then(|task| task.file_name().to_str()?.parse().ok())
        .unwrap_or_else(|| panic!("process {pid} has no thread {name}"))
}
