//! Requests to a block device, against the kernel's counters of the device.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use perf_agent_tests::agent::{Agent, Run};
use perf_agent_tests::traced::{Traced, disk_directory};
use perf_agent_tests::{PATIENCE, alone};

const SECTOR_BYTES: u64 = 512;

/// /sys/dev/block entry of the disk (not the partition) a directory is on.
fn disk_of(directory: &Path) -> PathBuf {
    let device = std::fs::metadata(directory).unwrap().dev();
    let (major, minor) = (libc::major(device), libc::minor(device));
    let entry = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let entry = entry.canonicalize().unwrap_or_else(|e| {
        panic!(
            "{} is not on a block device ({entry:?}: {e})",
            directory.display()
        )
    });
    if entry.join("partition").exists() {
        entry.parent().unwrap().to_owned()
    } else {
        entry
    }
}

/// Bytes the device has read and written since boot.
fn device_bytes(disk: &Path) -> [u64; 2] {
    let stat = std::fs::read_to_string(disk.join("stat")).unwrap();
    let fields: Vec<u64> = stat
        .split_whitespace()
        .map(|f| f.parse().unwrap())
        .collect();
    [fields[2] * SECTOR_BYTES, fields[6] * SECTOR_BYTES]
}

/// Requests and bytes of one operation over all windows.
fn requests(run: &Run, disk: &Path, operation: &str) -> (u64, u64) {
    let name = disk.file_name().unwrap().to_str().unwrap();
    run.of_type("ledger")
        .flat_map(|line| line["block_io"].as_array().unwrap())
        .filter(|row| row["device"] == name && row["operation"] == operation)
        .fold((0, 0), |(count, bytes), row| {
            let latency = &row["latency"];
            assert!(latency["sum_ns"].as_u64() > Some(0), "{row}");
            (
                count + latency["count"].as_u64().unwrap(),
                bytes + row["bytes"].as_u64().unwrap(),
            )
        })
}

fn trace(workload: &str) -> (Run, serde_json::Value, [u64; 2]) {
    let disk = disk_of(&disk_directory());
    let mut program = Traced::workload(&[workload, "--seconds", "2", "--hold"]);
    let agent = Agent::start(["trace", "-p", &program.pid().to_string()]);
    agent.attached();
    let before = device_bytes(&disk);
    program.go();
    let done = program.done(PATIENCE);
    agent.interrupt();
    let run = agent.finish(PATIENCE);
    let after = device_bytes(&disk);
    run.ended_well("interrupt").lost_nothing();
    (run, done, [after[0] - before[0], after[1] - before[1]])
}

#[test]
fn what_fsync_writes_is_between_what_was_written_and_what_the_device_saw() {
    let _alone = alone();
    let (run, done, [_, device]) = trace("fsyncs");
    let written = done["fsyncs"].as_u64().unwrap() * (32 << 10);
    let (count, bytes) = requests(&run, &disk_of(&disk_directory()), "write");
    let said = format!("{count} requests, {bytes} bytes; written {written}, device {device}");
    assert!(bytes >= written / 100 * 99, "{said}");
    assert!(bytes <= device, "{said}");
    assert!(count > 0 && count <= bytes / SECTOR_BYTES, "{said}");
}

#[test]
fn what_faults_read_is_between_the_pages_touched_and_what_the_device_saw() {
    let _alone = alone();
    let (run, done, [device, _]) = trace("faults");
    let touched = done["pages"].as_u64().unwrap() * 4096;
    let faulted = done["major"].as_u64().unwrap() * 4096;
    let (count, bytes) = requests(&run, &disk_of(&disk_directory()), "read");
    let said = format!(
        "{count} requests, {bytes} bytes; touched {touched}, {faulted} by major faults, device {device}"
    );
    assert!(bytes >= touched / 100 * 99, "{said}");
    assert!(bytes <= device, "{said}");
    assert!(count > 0 && count <= bytes / SECTOR_BYTES, "{said}");
}
