//! A recording, replayed without privilege, says the same every time.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use perf_agent_tests::agent;
use perf_agent_tests::traced;
use perf_agent_tests::truth::{self, Demands};
use perf_agent_tests::{PATIENCE, alone};
use serde_json::Value;

const NOBODY: u32 = 65_534;

fn replay(binary: &Path, recording: &Path, user: u32) -> Output {
    let output = Command::new(binary)
        .arg("replay")
        .arg(recording)
        .uid(user)
        .gid(user)
        .current_dir("/")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    output
}

#[test]
fn a_replay_by_nobody_is_the_same_to_the_byte_and_holds_the_truth() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let (recording, json) = (at("a.parec"), at("truth.json"));
    let (program, disk) = (traced::program("truth"), traced::disk_directory());
    let run = agent::run(
        [
            "record",
            recording.to_str().unwrap(),
            "--",
            program.to_str().unwrap(),
            "--json",
            json.to_str().unwrap(),
            "--dir",
            disk.to_str().unwrap(),
        ],
        PATIENCE,
    );
    assert!(run.status.success(), "{}", run.errors);

    // Where nobody can get at them.
    let binary = at("perf-agent");
    fs::copy(agent::binary(), &binary).unwrap();
    for path in [directory.path(), &binary, &recording] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let first = replay(&binary, &recording, NOBODY);
    let second = replay(&binary, &recording, NOBODY);
    let as_root = replay(&binary, &recording, 0);
    assert!(!first.stdout.is_empty());
    assert_eq!(first.stdout, second.stdout);
    assert_eq!(first.stdout, as_root.stdout);

    let text = String::from_utf8(first.stdout).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    lines.iter().for_each(agent::validate);
    assert_eq!(lines[0]["type"], "hello", "{text}");
    assert_eq!(lines[lines.len() - 1]["type"], "bye", "{text}");
    let truth = fs::read_to_string(&json).unwrap();
    let measured = truth::measured(&serde_json::from_str(&truth).unwrap()).unwrap();
    let booked = truth::booked(&lines).unwrap();
    let rows = truth::compare(&measured, &booked, Demands::default());
    let table = truth::table(&rows);
    assert!(rows.iter().all(truth::Row::holds), "{table}");
}

#[test]
fn a_file_that_is_no_recording_is_refused() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("noise.parec");
    for noise in [&b""[..], b"not a recording", &[0xff; 4096]] {
        fs::write(&path, noise).unwrap();
        let output = Command::new(agent::binary())
            .arg("replay")
            .arg(&path)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{output:?}");
        assert!(
            errors.starts_with("error: ") && errors.lines().count() == 1,
            "{errors}"
        );
        assert_eq!(output.stdout, b"", "{output:?}");
    }
}
