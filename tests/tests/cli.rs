//! What the command line promises: one clear error or a clean end, and nothing but data on
//! standard output.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use perf_agent_tests::agent::{self, Agent};
use perf_agent_tests::traced::Traced;
use perf_agent_tests::{PATIENCE, alone};

const NOBODY: u32 = 65_534;

/// Runs the agent for an error: one line on standard error, nothing on standard output.
fn refused(command: &mut Command) -> (i32, String) {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.stdout, b"", "{output:?}");
    assert!(errors.starts_with("error: "), "{errors}");
    let code = output.status.code();
    assert!(code.is_some_and(|code| code != 0), "{output:?}");
    (code.unwrap_or(0), errors)
}

fn one_line(errors: &str) {
    assert_eq!(errors.lines().count(), 1, "{errors}");
}

fn agent(arguments: &[&str]) -> Command {
    let mut command = Command::new(agent::binary());
    command.args(arguments);
    command
}

/// A process id that nobody has: of a child that has been waited for.
fn absent_pid() -> String {
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    child.id().to_string()
}

#[test]
fn a_target_that_is_not_there_is_one_error() {
    let _alone = alone();
    let pid = absent_pid();
    let (_, errors) = refused(&mut agent(&["trace", "-p", &pid]));
    one_line(&errors);
    assert!(errors.contains(&pid), "{errors}");
    let (_, errors) = refused(&mut agent(&["trace", "--comm", "no-such-program"]));
    one_line(&errors);
    let (_, errors) = refused(&mut agent(&["trace", "--cgroup", "/no/such/cgroup"]));
    one_line(&errors);
    let (_, errors) = refused(&mut agent(&["trace", "--", "/no/such/program"]));
    one_line(&errors);
}

#[test]
fn a_missing_privilege_is_one_error() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let binary = directory.path().join("perf-agent");
    fs::copy(agent::binary(), &binary).unwrap();
    for path in [directory.path(), &binary] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new(&binary);
    let pid = std::process::id().to_string();
    command.args(["trace", "-p", &pid, "--duration", "1s"]);
    let (_, errors) = refused(command.uid(NOBODY).gid(NOBODY).current_dir("/"));
    one_line(&errors);
    assert!(
        errors.contains("root") || errors.contains("CAP_"),
        "{errors}"
    );
}

#[test]
fn a_bad_argument_is_a_usage_error() {
    let _alone = alone();
    for arguments in [
        &["trace", "--no-such-option"][..],
        &["trace", "-p", "abc"],
        &["trace", "-p", "1", "--duration", "soon"],
        &["trace", "-p", "1", "--interval", "0s"],
        &["trace", "-p", "1", "--syscalls", "some"],
        &["trace"],
        &["no-such-command"],
    ] {
        let (code, errors) = refused(&mut agent(arguments));
        assert_eq!(code, 2, "{arguments:?}: {errors}");
    }
}

#[test]
fn every_way_to_end_is_clean() {
    let _alone = alone();
    let mut program = Traced::workload(&["sleeper"]);
    let pid = program.pid().to_string();

    let agent = Agent::start(["trace", "-p", &pid]);
    agent.attached();
    agent.interrupt();
    agent
        .finish(PATIENCE)
        .ended_well("interrupt")
        .lost_nothing();

    let agent = Agent::start(["trace", "-p", &pid]);
    agent.attached();
    agent.terminate();
    agent
        .finish(PATIENCE)
        .ended_well("terminate")
        .lost_nothing();

    let began = Instant::now();
    let run = agent::run(["trace", "-p", &pid, "--duration", "700ms"], PATIENCE);
    run.ended_well("duration").lost_nothing();
    let took = began.elapsed();
    assert!(took > Duration::from_millis(700), "{took:?}");
    assert!(took < Duration::from_secs(4), "{took:?}");

    let agent = Agent::start(["trace", "-p", &pid]);
    agent.attached();
    program.go();
    program.done(PATIENCE);
    assert!(program.end(PATIENCE).success());
    agent
        .finish(PATIENCE)
        .ended_well("target_exit")
        .lost_nothing();
}

#[test]
fn a_killed_target_ends_the_trace() {
    let _alone = alone();
    let program = Traced::workload(&["cpu", "--seconds", "30", "--now"]);
    let pid = program.pid().to_string();
    let agent = Agent::start(["trace", "-p", &pid]);
    agent.attached();
    drop(program);
    agent
        .finish(PATIENCE)
        .ended_well("target_exit")
        .lost_nothing();
}

#[test]
fn the_exit_code_of_a_command_is_told() {
    let _alone = alone();
    let run = agent::run(["trace", "--", "sh", "-c", "exit 7"], PATIENCE);
    run.ended_well("target_exit");
    assert_eq!(run.the("bye")["exit_code"], 7);
    let run = agent::run(["trace", "--", "sh", "-c", "kill -9 $$"], PATIENCE);
    run.ended_well("target_exit");
    assert_eq!(run.the("bye")["exit_code"], 128 + 9);
}

#[test]
fn the_output_of_a_command_is_kept_apart_from_the_data() {
    let _alone = alone();
    // Every line of standard output is parsed and validated.
    let run = agent::run(
        [
            "trace",
            "--",
            "sh",
            "-c",
            "echo not JSON; echo nor this >&2",
        ],
        PATIENCE,
    );
    run.ended_well("target_exit");
    assert!(run.errors.contains("nor this"), "{}", run.errors);
}

#[test]
fn a_reader_that_goes_away_is_a_success() {
    let _alone = alone();
    let program = Traced::workload(&["sleeper"]);
    let pid = program.pid().to_string();
    let mut child = agent(&[
        "trace",
        "-p",
        &pid,
        "--interval",
        "100ms",
        "--duration",
        "30s",
    ])
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut hello = String::new();
    reader.read_line(&mut hello).unwrap();
    drop(reader);
    let began = Instant::now();
    let output: Output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {errors}", output.status);
    assert_eq!(output.status.signal(), None);
    assert!(!errors.contains("error"), "{errors}");
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn the_lines_go_to_a_file_when_asked() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lines.ndjson");
    let program = Traced::workload(&["sleeper"]);
    let pid = program.pid().to_string();
    let file = path.to_str().unwrap();
    let run = agent::run(
        [
            "trace",
            "-p",
            &pid,
            "--duration",
            "500ms",
            "--output",
            file,
            "--format",
            "ndjson",
        ],
        PATIENCE,
    );
    assert!(run.status.success(), "{}", run.errors);
    assert_eq!(run.text, "");
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    lines.iter().for_each(agent::validate);
    assert_eq!(lines[0]["type"], "hello", "{text}");
    assert_eq!(lines[lines.len() - 1]["type"], "bye", "{text}");
}

#[test]
fn a_summary_is_for_people() {
    let _alone = alone();
    let program = Traced::workload(&["cpu", "--seconds", "30", "--now"]);
    let pid = program.pid().to_string();
    let output = agent(&[
        "trace",
        "-p",
        &pid,
        "--duration",
        "1s",
        "--format",
        "summary",
    ])
    .output()
    .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("cpu.user") && !text.contains("{\""), "{text}");
}

#[test]
fn targets_are_found_by_name() {
    let _alone = alone();
    let program = Traced::workload(&["sleeper"]);
    let run = agent::run(
        ["trace", "--comm", "workload", "--duration", "500ms"],
        PATIENCE,
    );
    run.ended_well("duration");
    let pid = program.pid();
    assert!(
        run.of_type("ledger").any(|line| line["pid"] == pid),
        "{}",
        run.text
    );
}

#[test]
fn the_doctor_answers_within_two_seconds() {
    let _alone = alone();
    let began = Instant::now();
    let output = agent(&["doctor"]).output().unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    for word in [
        "kernel",
        "BTF",
        "lockdown",
        "ledger",
        "syscalls",
        "block_io",
        "faults",
        "lifecycle",
    ] {
        assert!(text.contains(word), "no {word} in {text}");
    }
}

#[test]
fn the_kernel_sides_debug_log_is_shown_when_asked_for_and_only_then() {
    let _alone = alone();
    let lines = |arguments: &[&str]| {
        let command = ["--duration", "5s", "--", "true"];
        let output = agent(arguments).args(command).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        errors
            .lines()
            .filter(|l| l.contains("exec by thread"))
            .count()
    };
    assert_eq!(lines(&["trace"]), 0);
    assert_eq!(lines(&["trace", "-vv"]), 1);
}
