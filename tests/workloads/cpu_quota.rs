//! A thread that computes for a third of the time in a cgroup that is allowed a sixth of a CPU; the
//! twin's is allowed a whole one.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::row::{ENGINEER, Job, Program, Row, Stage, Worth};
use super::shift::{compute, steps_per_ms, work};

pub const ROW: Row = Row {
    name: "CPU quota",
    unit: "answer",
    category: "run_queue",
    about: "Quota throttling",
    delegate: ENGINEER,
    worth: Worth::Time,
    realtime: false,
    program: Program::Rust(run),
    stage: join_a_cgroup,
};

const EVERY: Duration = Duration::from_millis(15);
const ANSWER_MS: u64 = 4;
const PERIOD_US: u32 = 20_000;

fn run(_: &Job) -> io::Result<()> {
    let steps = ANSWER_MS * steps_per_ms();
    work(1, EVERY, |_| {
        Ok(move || {
            compute(steps);
            Ok(())
        })
    })
}

/// A cgroup of its own, removed when dropped.
struct Cgroup(PathBuf);

impl Drop for Cgroup {
    fn drop(&mut self) {
        // What is left is an empty cgroup.
        _ = fs::remove_dir(&self.0);
    }
}

fn join_a_cgroup(stage: &mut Stage) -> io::Result<()> {
    let quota_us = if stage.health.is_sick() {
        PERIOD_US / 6
    } else {
        PERIOD_US
    };
    let cgroup = with_quota(quota_us).map_err(|e| {
        io::Error::new(
            e.kind(),
            format!(
                "no cgroup with a CPU quota can be made below /sys/fs/cgroup ({e}): the controller \
                 `cpu` must be there and writable (in a container: --privileged)"
            ),
        )
    })?;
    let members = cgroup.0.join("cgroup.procs");
    // SAFETY: after the fork this opens a file and writes to it.
    unsafe {
        stage.command.pre_exec(move || fs::write(&members, "0"));
    }
    stage.props.push(Box::new(cgroup));
    Ok(())
}

/// In the hierarchy of version 2 where that has the controller, else in that of version 1.
fn with_quota(quota_us: u32) -> io::Result<Cgroup> {
    let name = format!("perf-agent-gallery-{}", std::process::id());
    let one = Path::new("/sys/fs/cgroup/cpu");
    if one.join("cpu.cfs_quota_us").is_file() || one.join("cpu.shares").is_file() {
        let cgroup = made(&one.join(name))?;
        // Before others, so that nothing but the quota holds it back: 256 times the default weight.
        fs::write(cgroup.0.join("cpu.shares"), "262144")?;
        fs::write(cgroup.0.join("cpu.cfs_period_us"), PERIOD_US.to_string())?;
        fs::write(cgroup.0.join("cpu.cfs_quota_us"), quota_us.to_string())?;
        return Ok(cgroup);
    }
    let two = Path::new("/sys/fs/cgroup");
    fs::write(two.join("cgroup.subtree_control"), "+cpu")?;
    let cgroup = made(&two.join(name))?;
    fs::write(cgroup.0.join("cpu.weight"), "10000")?;
    fs::write(cgroup.0.join("cpu.max"), format!("{quota_us} {PERIOD_US}"))?;
    Ok(cgroup)
}

fn made(path: &Path) -> io::Result<Cgroup> {
    fs::create_dir(path)?;
    Ok(Cgroup(path.to_owned()))
}
