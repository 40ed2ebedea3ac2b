//! Whom to trace: finds processes by id, name or cgroup, and starts commands held back until the
//! tracer is attached.

use std::{
    collections::HashSet,
    ffi::OsString,
    fs,
    io::{Read as _, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::mpsc,
};

use anyhow::{Context as _, Result, bail};

use crate::{cli, drain::procfs};

/// A target as named on the command line.
pub enum Target {
    Pids(Vec<u32>),
    Comm(String),
    Cgroup(PathBuf),
    Command(Held),
}

impl Target {
    /// Resolves the arguments; a command is forked but does not run yet.
    ///
    /// # Errors
    /// A process that is not there; a command that cannot be forked.
    pub fn new(args: &cli::Target) -> Result<Target> {
        if !args.command.is_empty() {
            return Held::new(args.command.clone()).map(Target::Command);
        }
        if let Some(comm) = &args.comm {
            return Ok(Target::Comm(comm.clone()));
        }
        if let Some(path) = &args.cgroup {
            return Ok(Target::Cgroup(path.clone()));
        }
        for pid in &args.pid {
            if !fs::exists(format!("/proc/{pid}")).unwrap_or(false) {
                bail!("there is no process {pid}");
            }
        }
        Ok(Target::Pids(args.pid.clone()))
    }

    /// The processes it names now, each with its descendants where those are followed.
    ///
    /// # Errors
    /// None of that name; a cgroup that cannot be read.
    pub fn processes(&self, children: bool) -> Result<Vec<u32>> {
        let mut pids = self.named()?;
        if let (true, Target::Comm(name)) = (pids.is_empty(), self) {
            bail!("there is no process named {name}");
        }
        if let (true, Target::Cgroup(path)) = (pids.is_empty(), self) {
            bail!("there is no process in {}", path.display());
        }
        if children {
            add_descendants(&mut pids, &parents());
        }
        Ok(pids)
    }

    /// Processes that match by name or cgroup now: those that came later are traced as well.
    pub fn matching(&self) -> Vec<u32> {
        match self {
            Target::Comm(_) | Target::Cgroup(_) => self.named().unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    fn named(&self) -> Result<Vec<u32>> {
        let own = std::process::id();
        Ok(match self {
            Target::Pids(pids) => pids.clone(),
            Target::Command(held) => vec![held.pid],
            Target::Comm(name) => all_processes()
                .filter(|pid| *pid != own)
                .filter(|pid| {
                    fs::read_to_string(format!("/proc/{pid}/comm"))
                        .is_ok_and(|c| c.trim_end_matches('\n') == name)
                })
                .collect(),
            Target::Cgroup(path) => {
                let mut pids = Vec::new();
                in_cgroup(path, &mut pids)
                    .with_context(|| format!("{} is not a readable cgroup", path.display()))?;
                pids.retain(|pid| *pid != own);
                pids
            }
        })
    }
}

fn all_processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
}

/// (process, parent) of every process.
fn parents() -> Vec<(u32, u32)> {
    all_processes()
        .filter_map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            Some((pid, procfs::stat(&stat)?.parent))
        })
        .collect()
}

fn add_descendants(pids: &mut Vec<u32>, parents: &[(u32, u32)]) {
    let mut known: HashSet<u32> = pids.iter().copied().collect();
    let mut at = 0;
    while at < pids.len() {
        for (pid, parent) in parents {
            if *parent == pids[at] && known.insert(*pid) {
                pids.push(*pid);
            }
        }
        at += 1;
    }
}

fn in_cgroup(path: &Path, pids: &mut Vec<u32>) -> std::io::Result<()> {
    let own = fs::read_to_string(path.join("cgroup.procs"))?;
    pids.extend(own.lines().filter_map(|l| l.parse::<u32>().ok()));
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            // A child that vanishes meanwhile has no processes any more.
            let _ = in_cgroup(&entry.path(), pids);
        }
    }
    Ok(())
}

/// A command that was forked and waits before its exec.
pub struct Held {
    pub pid: u32,
    name: String,
    go: std::io::PipeWriter,
    child: mpsc::Receiver<std::io::Result<Child>>,
}

impl Held {
    fn new(mut words: Vec<OsString>) -> Result<Held> {
        let arguments = words.split_off(1);
        let program = words.remove(0);
        let name = program.to_string_lossy().into_owned();
        let (mut pid_reader, mut pid_writer) = std::io::pipe().context("making a pipe")?;
        let (mut go_reader, go) = std::io::pipe().context("making a pipe")?;
        let mut command = Command::new(&program);
        command.args(arguments);
        // Standard output carries the trace; a command's own output beside it would break the lines.
        if let Ok(stderr) = std::io::stderr().as_fd().try_clone_to_owned() {
            command.stdout(stderr);
        }
        let go_fd = go.as_raw_fd();
        // SAFETY: between fork and exec only a close, a write, a read and getpid happen, which are
        // async-signal-safe; the descriptor closed is the child's copy, which nothing there owns.
        unsafe {
            command.pre_exec(move || {
                // With its own copy of the writing end it would wait for ever for an agent that died.
                libc::close(go_fd);
                pid_writer.write_all(&std::process::id().to_ne_bytes())?;
                // End of file without a byte: the tracer gave up.
                go_reader.read_exact(&mut [0])
            });
        }
        let (sender, child) = mpsc::channel();
        // `spawn` returns only after the exec, which waits for `go`.
        std::thread::spawn(move || {
            let _ = sender.send(command.spawn());
        });
        let mut pid = [0; 4];
        if pid_reader.read_exact(&mut pid).is_err() {
            bail!("cannot start {name}");
        }
        Ok(Held {
            pid: u32::from_ne_bytes(pid),
            name,
            go,
            child,
        })
    }

    /// The file that will be executed, by its name and `PATH`.
    pub fn program(&self) -> PathBuf {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let there = |name: &PathBuf| name.is_file();
        match self.name.contains('/') {
            true => None,
            false => std::env::split_paths(&path)
                .map(|directory| directory.join(&self.name))
                .find(there),
        }
        .unwrap_or_else(|| PathBuf::from(&self.name))
    }

    /// Lets it run.
    ///
    /// # Errors
    /// The program cannot be executed.
    pub fn release(mut self) -> Result<Child> {
        self.go
            .write_all(&[1])
            .with_context(|| format!("starting {}", self.name))?;
        drop(self.go);
        self.child
            .recv()
            .context("the command's thread ended")?
            .with_context(|| format!("cannot execute {}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descendants_of_any_depth_are_found() {
        let mut pids = vec![10];
        add_descendants(&mut pids, &[(1, 0), (12, 11), (11, 10), (13, 12), (20, 1)]);
        assert_eq!(pids, [10, 11, 12, 13]);
    }

    #[test]
    fn a_held_command_has_its_id_before_it_runs_and_runs_when_released() {
        let held = Held::new(["true".into()].to_vec()).unwrap();
        let comm = fs::read_to_string(format!("/proc/{}/comm", held.pid)).unwrap();
        assert_ne!(comm.trim(), "true", "it has not executed yet");
        assert!(held.release().unwrap().wait().unwrap().success());
    }

    #[test]
    fn a_held_command_ends_with_the_agent_that_held_it() {
        let held = Held::new(["true".into()].to_vec()).unwrap();
        let pid = held.pid;
        // What the death of the agent does to the pipe.
        drop(held.go);
        let spawned = held.child.recv_timeout(std::time::Duration::from_secs(10));
        assert!(spawned.expect("the command is gone").is_err());
        assert!(!fs::exists(format!("/proc/{pid}")).unwrap());
    }

    #[test]
    fn a_command_that_is_not_there_is_an_error_that_names_it() {
        let held = Held::new(["/nonexistent/x".into()].to_vec()).unwrap();
        let error = format!("{:#}", held.release().unwrap_err());
        assert!(error.contains("cannot execute /nonexistent/x"), "{error}");
    }
}
