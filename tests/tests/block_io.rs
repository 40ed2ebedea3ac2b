//! Requests to a block device, against the kernel's counters of the device.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use perf_agent_tests::agent::{Agent, Run};
use perf_agent_tests::loop_device::LoopDevice;
use perf_agent_tests::traced::{Traced, disk_directory};
use perf_agent_tests::workloads::queued_writes::WRITTEN_BYTES;
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

fn name_of(disk: &Path) -> &str {
    disk.file_name().unwrap().to_str().unwrap()
}

/// Requests and bytes of one operation over all windows.
fn requests(run: &Run, name: &str, operation: &str) -> (u64, u64) {
    run.of_type("ledger")
        .flat_map(|line| line["block_io"].as_array().unwrap())
        .filter(|row| row["device"] == name && row["operation"] == operation)
        .fold((0, 0), |(count, bytes), row| {
            let timed = row["latency"]["count"].as_u64().unwrap();
            let sum_ns = row["latency"]["sum_ns"].as_u64().unwrap();
            assert!((timed > 0) == (sum_ns > 0), "{row}");
            assert!(timed <= row["requests"].as_u64().unwrap(), "{row}");
            (
                count + row["requests"].as_u64().unwrap(),
                bytes + row["bytes"].as_u64().unwrap(),
            )
        })
}

/// What the trace inferred of one kind.
fn inferred(run: &Run, kind: &str) -> u64 {
    let lines = run.of_type("coverage");
    lines
        .filter_map(|line| line["inferred"][kind].as_u64())
        .sum()
}

/// Requests that ended without the kernel telling of it.
fn ends_not_told(run: &Run) -> u64 {
    inferred(run, "io_end")
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
    let (count, bytes) = requests(&run, name_of(&disk_of(&disk_directory())), "write");
    let said = format!("{count} requests, {bytes} bytes; written {written}, device {device}");
    assert!(bytes >= written / 100 * 99, "{said}");
    assert!(bytes <= device, "{said}");
    assert!(count > 0 && count <= bytes / SECTOR_BYTES, "{said}");
}

/// Each major fault reads its page, and a page that was still in memory is no major fault: the kernel's count of
/// them is what must have been read, to the byte. A kernel may run no program where the end of a request
/// interrupts certain processes (here: threads of process 1); that it ended is known by the next request at its
/// address, and where none came by the end, it is among those told as open: the program has waited for all of its
/// own.
#[test]
fn what_faults_read_is_between_what_the_kernel_counts_and_what_the_device_saw() {
    let _alone = alone();
    let disk = disk_of(&disk_directory());
    let (run, done, [device, _]) = trace("faults");
    let touched = done["pages"].as_u64().unwrap() * 4096;
    let faulted = done["major"].as_u64().unwrap() * 4096;
    let (count, bytes) = requests(&run, name_of(&disk), "read");
    let (unseen, open) = (ends_not_told(&run), inferred(&run, "io_open"));
    let said = format!(
        "{count} requests, {bytes} bytes, {unseen} ends not told, {open} open; {faulted} by major faults, touched {touched}, device {device}"
    );
    assert!(faulted > touched / 2, "most pages stayed in memory: {said}");
    assert!(bytes + open * 4096 >= faulted, "{said}");
    assert!(bytes <= device, "{said}");
    assert!(count > 0 && count <= bytes / SECTOR_BYTES, "{said}");
}

/// Lets programs write to a device with a scheduler, the first of them traced: what the agent tells of it, and
/// what it says it did. The second half of the device is for the second.
fn trace_writes(device: &LoopDevice, bystanders: u64) -> (Run, serde_json::Value) {
    let path = device.path();
    let mut programs: Vec<Traced> = (0..=bystanders)
        .map(|place| {
            let offset = (place * WRITTEN_BYTES).to_string();
            let device = path.to_str().unwrap();
            Traced::workload(&[
                "queued-writes",
                "--device",
                device,
                "--offset",
                &offset,
                "--hold",
            ])
        })
        .collect();
    let agent = Agent::start(["trace", "-p", &programs[0].pid().to_string()]);
    agent.attached();
    for program in programs.iter_mut().rev() {
        program.go();
    }
    let done: Vec<_> = programs
        .iter()
        .map(|program| program.done(PATIENCE))
        .collect();
    agent.interrupt();
    let run = agent.finish(PATIENCE);
    run.ended_well("interrupt").lost_nothing();
    (run, done[0].clone())
}

/// Traces until the kernel has told of the end of every request (see above), most often once. Each try must hold
/// what `exact` asserts, which says whether all ends were told.
fn until_all_is_told(mut exact: impl FnMut() -> Result<(), String>) {
    const TRIES: usize = 3;
    let said: Vec<String> = (0..TRIES).map_while(|_| exact().err()).collect();
    assert!(said.len() < TRIES, "never all: {said:#?}");
}

/// A block that joined a request which waited has its bytes in it, and what it was before does not live on.
#[test]
fn what_joins_a_waiting_request_is_counted_with_it() {
    let _alone = alone();
    until_all_is_told(|| {
        let device = LoopDevice::new(WRITTEN_BYTES, "mq-deadline");
        let (run, done) = trace_writes(&device, 0);
        let [written, merged] = device.writes();
        let (count, bytes) = requests(&run, device.name(), "write");
        let slowest = run
            .of_type("ledger")
            .flat_map(|line| line["block_io"].as_array().unwrap())
            .filter(|row| row["device"] == device.name())
            .map(|row| row["latency"]["max_ns"].as_u64().unwrap())
            .max();
        let unseen = ends_not_told(&run);
        let said = format!(
            "{count} requests of {written}, {unseen} ends not told, {bytes} bytes of {WRITTEN_BYTES}, {merged} merged, slowest {slowest:?} ns; {done}"
        );
        assert!(merged > 0, "nothing joined a request: {said}");
        assert!(slowest <= done["slowest_ns"].as_u64(), "{said}");
        assert!(count <= written && bytes <= WRITTEN_BYTES, "{said}");
        if unseen > 0 || count < written {
            return Err(said);
        }
        assert_eq!(bytes, WRITTEN_BYTES, "{said}");
        Ok(())
    });
}

/// Whoever puts a request into a queue hands on what others left there.
#[test]
fn what_another_process_writes_is_not_the_targets_though_it_issues_it() {
    let _alone = alone();
    until_all_is_told(|| {
        let device = LoopDevice::new(2 * WRITTEN_BYTES, "mq-deadline");
        let (run, done) = trace_writes(&device, 1);
        let (count, bytes) = requests(&run, device.name(), "write");
        let unseen = ends_not_told(&run);
        let said = format!(
            "{count} requests, {unseen} ends not told, {bytes} bytes of {WRITTEN_BYTES}; {done}"
        );
        assert!(bytes <= WRITTEN_BYTES, "{said}");
        if bytes < WRITTEN_BYTES {
            Err(said)
        } else {
            Ok(())
        }
    });
}
