//! Stacks of Python code: known chains of calls in the distribution's interpreter, and in every other
//! one that pyenv has.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use perf_agent_tests::agent::{self, Run};
use perf_agent_tests::traced::Traced;
use perf_agent_tests::{PATIENCE, alone};
use serde_json::Value;

const PYTHON: &str = "/usr/bin/python3";

/// Who calls whom, and what the line of the call says.
const CALLS: &[(&str, &str, &str)] = &[
    ("<module>", "work", "    work()"),
    ("work", "alternate", "alternate()"),
    ("work", "ordered", "ordered()"),
    ("work", "make", "make()"),
    ("alternate", "compute", "compute()"),
    ("alternate", "short", "short()"),
    ("alternate", "long", "long()"),
    ("compute", "burn", "burn("),
    ("short", "rest", "rest(0.001)"),
    ("long", "rest", "rest(0.004)"),
    ("ordered", "key_of", "sorted("),
    ("make", "made", "made("),
    ("make", "first", "made(\"first\")"),
    ("make", "second", "made(\"second\")"),
    ("made", "<module>", "exec("),
    ("run", "hold", ""),
    ("run", "contend", ""),
    ("contend", "take", "take(lock)"),
    ("_bootstrap_inner", "run", ""),
    ("_bootstrap", "_bootstrap_inner", ""),
];

/// What stacks begin with, from the inside out, and at least how many blocks or samples do. The line
/// is that of the innermost frame.
const SEEN: &[(&str, &[&str], &str, u64)] = &[
    (
        "cpu.user",
        &["burn", "compute", "alternate", "work", "<module>"],
        "",
        50,
    ),
    (
        "timer",
        &["rest", "short", "alternate", "work", "<module>"],
        "time.sleep(seconds)",
        50,
    ),
    (
        "timer",
        &["rest", "long", "alternate", "work", "<module>"],
        "time.sleep(seconds)",
        50,
    ),
    (
        "timer",
        &["key_of", "ordered", "work", "<module>"],
        "time.sleep(0.001)",
        100,
    ),
    (
        "timer",
        &["hold", "run", "_bootstrap_inner", "_bootstrap"],
        "time.sleep(0.003)",
        100,
    ),
    // A semaphore, which is no lock to the kernel.
    (
        "idle",
        &["take", "contend", "run", "_bootstrap_inner", "_bootstrap"],
        "lock.acquire()",
        50,
    ),
];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/chain/chain.py")
}

fn trace(interpreter: &Path) -> Run {
    let mut command = Command::new(interpreter);
    command.arg(source());
    let mut program = Traced::start(command, "chain.py");
    program.go();
    let pid = program.pid().to_string();
    // In one window: what of it is left out of the lines is then least.
    let run = agent::run(
        ["trace", "-p", &pid, "--duration", "4s", "--interval", "5s"],
        PATIENCE,
    );
    run.ended_well("duration").lost_nothing();
    run
}

fn sites(run: &Run) -> impl Iterator<Item = &Value> {
    let profiles = run.of_type("profile");
    profiles.flat_map(|line| line["sites"].as_array().unwrap())
}

fn count(site: &Value) -> u64 {
    site["count"].as_u64().unwrap()
}

/// A frame of Python code.
#[derive(Debug)]
struct PythonFrame<'a> {
    /// Without the class.
    name: &'a str,
    /// Text of its line, where it is in the traced program's file.
    text: Option<&'a str>,
    /// Place in the stack.
    at: usize,
}

fn python_frames<'a>(site: &'a Value, program: &'a [&'a str]) -> Vec<PythonFrame<'a>> {
    let frames = site["user_stack"].as_array().unwrap().iter().enumerate();
    frames
        .filter_map(|(at, frame)| {
            let file = frame["module"].as_str()?;
            if !(file.ends_with(".py") || file == "<string>") {
                return None;
            }
            let line = frame["source"].as_str()?.strip_prefix(file)?;
            let line: usize = line.strip_prefix(':')?.parse().ok()?;
            let own = file.ends_with("chain.py").then(|| program[line - 1]);
            let name = frame["name"].as_str()?;
            Some(PythonFrame {
                name: name.rsplit('.').next().unwrap_or(name),
                text: own,
                at,
            })
        })
        .collect()
}

/// Whether each frame is of a function that the next one calls, at the line where it does, and the
/// outermost is where a thread begins.
fn is_known(frames: &[PythonFrame<'_>]) -> bool {
    let called = frames.windows(2).all(|pair| {
        CALLS.iter().any(|(caller, callee, text)| {
            pair[0].name == *callee
                && pair[1].name == *caller
                && pair[1].text.unwrap_or_default().contains(text)
        })
    });
    let root = frames.last().map(|frame| frame.name);
    called && matches!(root, Some("<module>" | "_bootstrap"))
}

/// Demands that at least 995 of 1,000 blocks and samples have a chain of calls that can be, and that
/// those which must be there are.
fn every_stack_names_its_code(run: &Run) {
    let text = std::fs::read_to_string(source()).unwrap();
    let program: Vec<&str> = text.lines().collect();
    for classes in [&["cpu.user", "cpu.kernel"][..], &["timer", "idle"][..]] {
        let (mut all, mut good, mut others) = (0, 0, Vec::new());
        for site in sites(run).filter(|s| classes.contains(&s["class"].as_str().unwrap())) {
            all += count(site);
            match is_known(&python_frames(site, &program)) {
                true => good += count(site),
                false => others.push(&site["user_stack"]),
            }
        }
        assert!(good * 1000 >= all * 995, "{good} of {all}: {others:?}");
    }
    for (class, names, line, least) in SEEN {
        let seen: u64 = sites(run)
            .filter(|site| site["class"] == *class)
            .filter(|site| {
                let frames = python_frames(site, &program);
                let here: Vec<&str> = frames.iter().map(|frame| frame.name).collect();
                here == *names && frames[0].text.is_some_and(|text| text.contains(line))
            })
            .map(count)
            .sum();
        assert!(
            seen >= *least,
            "{seen} of {class} {names:?} at {line:?}\n{}",
            run.text
        );
    }
    let walks = |end: &str| run.sum("coverage", &format!("/python_walks/{end}"));
    let others: u64 = ["no_thread", "bad_read", "too_many_frames"]
        .map(walks)
        .iter()
        .sum();
    assert!(others * 1000 <= walks("complete"), "{}", run.text);
    assert_eq!(walks("unreadable"), 0, "{}", run.text);
}

/// Frames of C stand between a function and the one that C called for it, and nowhere else.
fn c_is_where_it_was_called(run: &Run, inlines_calls: bool) {
    let text = std::fs::read_to_string(source()).unwrap();
    let program: Vec<&str> = text.lines().collect();
    let mut sorts = 0;
    for site in sites(run) {
        let frames = python_frames(site, &program);
        for pair in frames.windows(2) {
            let between = pair[1].at - pair[0].at - 1;
            if pair[0].name == "key_of" {
                sorts += count(site);
                assert!(between > 0, "{site}");
            } else if inlines_calls && pair[0].name != "hold" && pair[1].text.is_some() {
                let through_c = pair[1].name == "made" || pair[1].name == "run";
                assert!(between == 0 || through_c, "{site}");
            }
        }
    }
    assert!(sorts > 100, "{sorts}");
}

/// Two chains on one native stack are told apart, and two functions at one address.
fn chains_are_told_apart(run: &Run) {
    let of = |name: &str| {
        let sites = sites(run).filter(|site| {
            let frames = site["user_stack"].as_array().unwrap();
            site["class"] == "timer" && frames.iter().any(|frame| frame["name"] == name)
        });
        sites.fold((0, 0), |sum, site| {
            (
                sum.0 + count(site),
                sum.1 + site["sum_ns"].as_u64().unwrap(),
            )
        })
    };
    for (one, other) in [("short", "long"), ("first", "second")] {
        let (a, b) = (of(one), of(other));
        assert!(
            a.0 > 50 && a.0.abs_diff(b.0) <= 2,
            "{one} {a:?}, {other} {b:?}"
        );
    }
    // No sleep ends early.
    let long = of("long");
    assert!(long.1 >= long.0 * 4_000_000, "{long:?}");
}

#[test]
fn the_distributions_python_names_its_code() {
    let _alone = alone();
    let run = trace(Path::new(PYTHON));
    every_stack_names_its_code(&run);
    c_is_where_it_was_called(&run, true);
    chains_are_told_apart(&run);
}

/// `3.N` of each interpreter that pyenv has, by its path.
fn pyenvs() -> Vec<(u32, PathBuf)> {
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".pyenv"));
    let Some(root) = std::env::var_os("PYENV_ROOT").map(PathBuf::from).or(home) else {
        return Vec::new();
    };
    let versions: BTreeSet<PathBuf> = std::fs::read_dir(root.join("versions"))
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    let version = |path: PathBuf| {
        let minor = path.file_name()?.to_str()?.strip_prefix("3.")?;
        let minor = minor.split('.').next()?.parse().ok()?;
        Some((minor, path.join("bin/python3")))
    };
    versions.into_iter().filter_map(version).collect()
}

#[test]
fn other_versions_that_are_at_hand_name_their_code() {
    let _alone = alone();
    for (minor, interpreter) in pyenvs() {
        if !(9..=13).contains(&minor) {
            continue;
        }
        println!("{}", interpreter.display());
        let run = trace(&interpreter);
        every_stack_names_its_code(&run);
        c_is_where_it_was_called(&run, minor >= 11);
        chains_are_told_apart(&run);
    }
}

#[test]
fn a_replay_names_the_code_of_a_process_that_is_gone() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let recording = directory.path().join("python.parec");
    let recording = recording.to_str().unwrap();
    let script = "import time\ndef nap():\n    time.sleep(0.002)\nfor _ in range(300): nap()\n";
    let program = directory.path().join("naps.py");
    std::fs::write(&program, script).unwrap();
    let program = program.to_str().unwrap();
    let run = agent::run(["record", recording, "--", PYTHON, program], PATIENCE);
    assert!(run.status.success(), "{}", run.errors);
    let replayed = agent::run(["replay", recording], PATIENCE);
    let naps: u64 = sites(&replayed)
        .filter(|site| {
            let frames = site["user_stack"].as_array().unwrap();
            let at = frames.iter().position(|frame| frame["name"] == "nap");
            at.is_some_and(|at| {
                frames[at]["source"] == format!("{program}:3")
                    && frames[at + 1]["source"] == format!("{program}:4")
            })
        })
        .map(count)
        .sum();
    assert!(naps * 1000 >= 300 * 900, "{naps} of 300\n{}", replayed.text);
}
