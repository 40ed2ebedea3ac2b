//! Config, targets, streams and explanations, end to end from a recording: no privilege is needed.

mod common;

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{agent, lines_of, of_type, parse, recorded, recording};
use serde_json::Value;

/// Longer than any test waits for what happens.
const LONG: Duration = Duration::from_secs(60);

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Exit code and standard error of a run that prints no data.
fn refused(arguments: &[&str]) -> (i32, String) {
    let output = agent(arguments).output().unwrap();
    assert_eq!(output.stdout, b"", "{arguments:?}");
    let errors = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), errors)
}

fn states<'a>(lines: &'a [Value], category: &str) -> Vec<(&'a str, &'a str)> {
    let found = of_type(lines, "finding").filter(|f| f["category"] == *category);
    found
        .map(|f| (f["state"].as_str().unwrap(), f["since"].as_str().unwrap()))
        .collect()
}

#[test]
fn a_missed_target_is_a_finding_since_its_first_window() {
    let directory = tempfile::tempdir().unwrap();
    let file = recorded(directory.path(), 8, |window| (2..4).contains(&window));
    let file = text(&file);
    assert_eq!(
        states(&lines_of(&mut agent(&["replay", file])), "target_missed"),
        []
    );
    let lines = lines_of(&mut agent(&["replay", file, "--target", "p95=200ms"]));
    let ends: Vec<&str> = of_type(&lines, "coverage")
        .map(|c| c["ts"].as_str().unwrap())
        .collect();
    assert_eq!(
        states(&lines, "target_missed"),
        [
            ("new", ends[2]),
            ("ongoing", ends[2]),
            ("resolved", ends[2])
        ]
    );
    let mut missed = of_type(&lines, "finding").filter(|f| f["category"] == "target_missed");
    let missed = missed.next().unwrap();
    assert_eq!(missed["subject"], "GET /orders/*");
    assert_eq!(missed["delegate_to"], "performance-engineer");
    assert_eq!(
        missed["title"],
        "p95 of `GET /orders/*` for 10.0.0.7 is 300 ms, 1.50 times the target of 200 ms"
    );
}

#[test]
fn a_config_file_sets_thresholds_targets_and_delegates_and_the_command_line_comes_before_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = recorded(directory.path(), 1, |_| true);
    let config = directory.path().join("c.toml");
    fs::write(
        &config,
        "findings.off = ['cpu_bound', 'slow_statement']\n\
         delegates = { database-specialist = 'dba', performance-engineer = 'sre' }\n\
         targets.p95 = '10s'\n\
         [[target]]\n\
         statement = 'SELECT name FROM users WHERE id = 7'\n\
         p95 = '10ms'\n",
    )
    .unwrap();
    let given = |more: &[&str]| -> Vec<(String, String)> {
        let base = ["replay", text(&file), "--config", text(&config)];
        let arguments: Vec<&str> = base.into_iter().chain(more.iter().copied()).collect();
        let lines = lines_of(&mut agent(&arguments));
        let of = |line: &Value, name: &str| line[name].as_str().unwrap().to_owned();
        of_type(&lines, "finding")
            .map(|line| (of(line, "category"), of(line, "delegate_to")))
            .collect()
    };
    let missed = |delegate: &str| ("target_missed".to_owned(), delegate.to_owned());
    assert_eq!(given(&[]), [missed("dba")]);
    assert_eq!(
        given(&[
            "--target",
            "p95=100ms",
            "--delegate",
            "performance-engineer=me"
        ]),
        [missed("me"), missed("dba")]
    );
}

#[test]
fn which_config_file_was_read_is_said_when_asked() {
    let directory = tempfile::tempdir().unwrap();
    let file = recorded(directory.path(), 1, |_| false);
    let folder = directory.path().join("perf-agent");
    fs::create_dir(&folder).unwrap();
    let own = folder.join("perf-agent.toml");
    fs::write(&own, "").unwrap();
    let said = |verbose: &[&str]| {
        let mut command = agent(verbose);
        command.args(["replay", text(&file)]);
        command.env("XDG_CONFIG_HOME", directory.path());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let line = format!("config: {}", own.display());
    assert!(said(&["-v"]).contains(&line));
    assert_eq!(said(&[]), "");
}

#[test]
fn a_wrong_config_file_is_one_error_with_its_line() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("c.toml");
    fs::write(&config, "[findings]\nmin_gian = 0.5\n").unwrap();
    let name = text(&config);
    for arguments in [
        &["replay", "/no/such/recording", "--config", name][..],
        &["trace", "-p", "1", "--config", name],
        &["explain", "--config", name],
    ] {
        let (code, errors) = refused(arguments);
        let expected =
            format!("error: {name}:2: there is no key `min_gian` here: did you mean `min_gain`?\n");
        assert_eq!((code, errors), (2, expected));
    }
    let (code, errors) = refused(&["replay", "x", "--config", "/no/such.toml"]);
    assert_eq!(code, 2);
    assert_eq!(errors, "error: /no/such.toml: there is no such file\n");
    let (code, errors) = refused(&["replay", "x", "--exec", "database-specialst=cat"]);
    assert_eq!(code, 2);
    assert_eq!(
        errors,
        "error: --exec database-specialst=…: no findings are for `database-specialst`: did you mean `database-specialist`?\n"
    );
}

#[test]
fn rotated_files_together_hold_every_line_and_each_begins_with_hello() {
    let directory = tempfile::tempdir().unwrap();
    let file = recorded(directory.path(), 30, |_| false);
    let whole = agent(&["replay", text(&file)]).output().unwrap();
    let whole = String::from_utf8(whole.stdout).unwrap();
    let hello = whole.lines().next().unwrap();
    let out = directory.path().join("out");
    let size = 20_000;
    let rotate = format!("{size},1000");
    let arguments = [
        "replay",
        text(&file),
        "--output",
        text(&out),
        "--rotate",
        &rotate,
    ];
    assert_eq!(lines_of(&mut agent(&arguments)).len(), 0);
    let newest = out.to_str().unwrap();
    let mut files = vec![newest.to_owned()];
    while Path::new(&format!("{newest}.{}", files.len())).exists() {
        files.push(format!("{newest}.{}", files.len()));
    }
    assert!(files.len() > 2, "{files:?}");
    let mut joined = format!("{hello}\n");
    for name in files.iter().rev() {
        let text = fs::read_to_string(name).unwrap();
        assert!(text.len() <= size, "{name}: {}", text.len());
        parse(&text);
        let (first, rest) = text.split_once('\n').unwrap();
        assert_eq!(first, hello, "{name}");
        joined += rest;
    }
    assert_eq!(joined, whole);
}

#[test]
fn a_file_that_can_take_no_more_is_one_error_and_holds_whole_lines() {
    let directory = tempfile::tempdir().unwrap();
    let file = recorded(directory.path(), 30, |_| false);
    let out = directory.path().join("out");
    // A limit on the size of files stands for a disk that is full: blocks of 512 bytes.
    let command = format!(
        "trap '' XFSZ; ulimit -f 20; exec {} replay {} --output {} --rotate 1MB",
        env!("CARGO_BIN_EXE_perf-agent"),
        file.display(),
        out.display()
    );
    let output = std::process::Command::new("sh")
        .args(["-c", &command])
        .output()
        .unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let expected = format!(
        "error: writing the output: cannot write to {}: ",
        out.display()
    );
    assert!(
        errors.starts_with(&expected) && errors.lines().count() == 1,
        "{errors}"
    );
    assert!(parse(&fs::read_to_string(&out).unwrap()).len() > 1);
}

/// A pipe with a name.
fn fifo(path: &Path) {
    let name = CString::new(text(path)).unwrap();
    // SAFETY: a string that ends in zero.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
}

#[test]
fn every_stream_at_once_has_the_same_lines_and_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let (input, socket, file) = (at("in"), at("s"), at("f"));
    let (sre, dba) = (at("sre"), at("dba"));
    fifo(&input);
    let to_sre = format!("performance-engineer=cat > {}", text(&sre));
    let to_dba = format!("database-specialist=cat > {}", text(&dba));
    let mut child = agent(&["replay", text(&input), "--output", text(&file)])
        .args([
            "--listen",
            text(&socket),
            "--exec",
            &to_sre,
            "--exec",
            &to_dba,
        ])
        .args(["--target", "p95=10ms", "--format", "summary"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let bytes = recording(1, |_| true);
    let mut writer = File::options().write(true).open(&input).unwrap();
    // The header lets it begin; it listens before it reads on.
    writer.write_all(&bytes[..12]).unwrap();
    let deadline = Instant::now() + LONG;
    while !socket.exists() {
        assert!(Instant::now() < deadline, "it does not listen");
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut readers: Vec<UnixStream> = (0..4)
        .map(|_| UnixStream::connect(&socket).unwrap())
        .collect();
    writer.write_all(&bytes[12..]).unwrap();
    drop(writer);
    let mut summary = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut summary)
        .unwrap();
    assert!(child.wait().unwrap().success());
    assert!(summary.contains("cpu.user"), "{summary}");
    assert!(!socket.exists());

    let whole = fs::read_to_string(&file).unwrap();
    let lines = parse(&whole);
    for reader in &mut readers {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, whole);
    }
    let bye = lines.last().unwrap();
    let streams = bye["streams"].as_array().unwrap();
    let dropped: Vec<u64> = streams
        .iter()
        .map(|s| s["dropped"].as_u64().unwrap())
        .collect();
    assert_eq!(dropped, [0, 0, 0]);
    for (file, delegate, categories) in [
        (
            sre,
            "performance-engineer",
            &["cpu_bound", "slow_statement", "target_missed"][..],
        ),
        (
            dba,
            "database-specialist",
            &["slow_statement", "target_missed"],
        ),
    ] {
        let own = parse(&fs::read_to_string(file).unwrap());
        assert_eq!(own[0], lines[0]);
        assert_eq!(own.last(), lines.last());
        let findings = &own[1..own.len() - 1];
        let mut found: Vec<&str> = findings
            .iter()
            .map(|f| f["category"].as_str().unwrap())
            .collect();
        found.sort_unstable();
        assert_eq!(found, categories);
        assert!(
            findings.iter().all(|f| f["delegate_to"] == delegate),
            "{findings:?}"
        );
    }
}

#[test]
fn a_command_that_dies_gets_in_the_end_all_that_is_not_counted_as_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let file = recorded(directory.path(), 40, |_| true);
    let log = directory.path().join("log");
    // Takes whole lines, five a life: the greeting and four others.
    let command = format!(
        "performance-engineer=i=0; while [ $i -lt 5 ] && read -r l; do echo \"$l\" >> {}; i=$((i+1)); done",
        text(&log)
    );
    let arguments = [
        "replay",
        text(&file),
        "--exec",
        &command,
        "--queue-bytes",
        "4000",
    ];
    let lines = lines_of(&mut agent(&arguments));
    let meant = of_type(&lines, "finding").filter(|f| f["delegate_to"] == "performance-engineer");
    let meant = meant.count() as u64;
    let row = &lines.last().unwrap()["streams"][0];
    assert_eq!(row["lines"], meant);
    let received = parse(&fs::read_to_string(&log).unwrap());
    let found = of_type(&received, "finding").count() as u64;
    assert!(row["restarts"].as_u64().unwrap() > 0, "{row}");
    // `bye` is counted from the dropped as well, if it was: what came after it is not known to it.
    let dropped = row["dropped"].as_u64().unwrap();
    assert!(found + dropped <= meant, "{found} + {dropped} of {meant}");
    assert!(found > 0 && dropped > 0, "{found} + {dropped} of {meant}");
}

#[test]
fn a_finding_of_a_file_is_explained() {
    let directory = tempfile::tempdir().unwrap();
    let file = recorded(directory.path(), 3, |_| true);
    let out = directory.path().join("out");
    lines_of(&mut agent(&["replay", text(&file), "--output", text(&out)]));
    let lines = parse(&fs::read_to_string(&out).unwrap());
    let mut computing = of_type(&lines, "finding").filter(|f| f["category"] == "cpu_bound");
    let finding = computing.next().unwrap();
    let id = finding["id"].as_str().unwrap();
    let output = agent(&["explain", id, "--from", text(&out)])
        .output()
        .unwrap();
    let explained = String::from_utf8(output.stdout).unwrap();
    let title = finding["title"].as_str().unwrap();
    assert!(explained.starts_with(title), "{explained}");
    assert!(explained.contains("busy = 0.5  (default)"), "{explained}");
    let piped = agent(&["explain", id, "--from", "-"])
        .stdin(File::open(&out).unwrap())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(piped.stdout).unwrap(), explained);
    let (code, errors) = refused(&["explain", id]);
    assert_eq!(code, 2);
    assert!(
        errors.contains(&format!("perf-agent explain {id} --from FILE")),
        "{errors}"
    );
}
