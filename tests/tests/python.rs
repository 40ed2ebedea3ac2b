//! Stacks of Python code: known chains of calls in the distribution's interpreter, and in every other
//! one that pyenv has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use perf_agent::aggregate::Pipeline;
use perf_agent::drain::codec::Reader;
use perf_agent::model::Site;
use perf_agent_tests::traced::Traced;
use perf_agent_tests::{PATIENCE, agent, alone};

const PYTHON: &str = "/usr/bin/python3";

/// Who calls whom, and what the line of the call says.
const CALLS: &[(&str, &str, &str)] = &[
    ("<module>", "work", "    work()"),
    ("work", "alternate", "alternate()"),
    ("work", "ordered", "ordered()"),
    ("alternate", "compute", "compute()"),
    ("alternate", "short", "short()"),
    ("alternate", "long", "long()"),
    ("compute", "burn", "burn("),
    ("short", "rest", "rest(0.003)"),
    ("long", "rest", "rest(0.009)"),
    ("ordered", "key_of", "sorted("),
    ("make", "made", "made("),
    ("make", "first", "made(\"first\")"),
    ("make", "second", "made(\"second\")"),
    ("made", "<module>", "exec("),
    ("run", "hold", ""),
    ("run", "contend", ""),
    ("run", "make", ""),
    ("contend", "take", "take(lock)"),
    ("_bootstrap_inner", "run", ""),
    ("_bootstrap", "_bootstrap_inner", ""),
];

/// What stacks begin with, from the inside out, and at least how many blocks or samples do. The line
/// is that of the innermost frame.
const SEEN: &[(bool, &[&str], &str, u64)] = &[
    (
        ON_CPU,
        &["burn", "compute", "alternate", "work", "<module>"],
        "",
        50,
    ),
    (
        OFF_CPU,
        &["rest", "short", "alternate", "work", "<module>"],
        "time.sleep(seconds)",
        50,
    ),
    (
        OFF_CPU,
        &["rest", "long", "alternate", "work", "<module>"],
        "time.sleep(seconds)",
        50,
    ),
    (
        OFF_CPU,
        &["key_of", "ordered", "work", "<module>"],
        "time.sleep(0.001)",
        100,
    ),
    (
        OFF_CPU,
        &["hold", "run", "_bootstrap_inner", "_bootstrap"],
        "time.sleep(0.003)",
        100,
    ),
    (
        OFF_CPU,
        &["take", "contend", "run", "_bootstrap_inner", "_bootstrap"],
        "lock.acquire()",
        50,
    ),
];

const ON_CPU: bool = true;
const OFF_CPU: bool = false;

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/chain/chain.py")
}

/// Every site of a recording, and what its windows say of walks of Python frames.
struct Recorded {
    sites: Vec<Site>,
    python_walks: BTreeMap<String, u64>,
    /// Walks that found the tables of the program still being made.
    pending: u64,
}

fn read(recording: &Path) -> Recorded {
    let mut reader = Reader::new(File::open(recording).unwrap()).unwrap();
    let mut pipeline = Pipeline::of_every_site();
    let (mut sites, mut python_walks, mut pending) = (Vec::new(), BTreeMap::new(), 0);
    while let Some(frame) = reader.frame().unwrap() {
        let Some(report) = pipeline.report_of(&frame) else {
            continue;
        };
        assert_eq!(report.coverage.lost, BTreeMap::new());
        for (name, count) in &report.coverage.python_walks {
            *python_walks.entry(name.clone()).or_default() += count;
        }
        let stack_walks = &report.coverage.stack_walks;
        pending += stack_walks.get("pending").copied().unwrap_or(0);
        sites.extend(report.processes.into_iter().flat_map(|p| p.profile.sites));
    }
    Recorded {
        sites,
        python_walks,
        pending,
    }
}

/// Records the chains for some seconds.
fn record(interpreter: &Path) -> Recorded {
    let mut command = Command::new(interpreter);
    command.arg(source());
    let mut program = Traced::start(command, "chain.py");
    program.go();
    let directory = tempfile::tempdir().unwrap();
    let recording = directory.path().join("chain.parec");
    let pid = program.pid().to_string();
    let path = recording.to_str().unwrap();
    let run = agent::run(["record", path, "-p", &pid, "--duration", "4s"], PATIENCE);
    assert!(run.status.success(), "{}", run.errors);
    read(&recording)
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

fn python_frames<'a>(site: &'a Site, program: &'a [&'a str]) -> Vec<PythonFrame<'a>> {
    let frames = site.user_stack.iter().enumerate();
    frames
        .filter_map(|(at, frame)| {
            let file = frame.module.as_deref()?;
            if !(file.ends_with(".py") || file == "<string>") {
                return None;
            }
            let line = frame.source.as_deref()?.strip_prefix(file)?;
            let line: usize = line.strip_prefix(':')?.parse().ok()?;
            let own = file.ends_with("chain.py").then(|| program[line - 1]);
            let name = frame.name.as_str();
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

fn is_on_cpu(site: &Site) -> bool {
    site.class.starts_with("cpu.")
}

fn names(site: &Site) -> Vec<&str> {
    site.user_stack.iter().map(|f| f.name.as_str()).collect()
}

/// Demands that at least 995 of 1,000 blocks and samples with a stack have a chain of calls that can be,
/// and that those which must be there are. Without a stack are those of the first moments, which are
/// counted as not to be walked yet, and fewer than one of 100: a lock that another CPU gives while the
/// stack of the wait for it is still being walked (two or three a second here).
fn every_stack_names_its_code(recorded: &Recorded) {
    let text = std::fs::read_to_string(source()).unwrap();
    let program: Vec<&str> = text.lines().collect();
    for on_cpu in [ON_CPU, OFF_CPU] {
        let (mut all, mut good, mut bare, mut others) = (0, 0, 0, Vec::new());
        for site in recorded.sites.iter().filter(|s| is_on_cpu(s) == on_cpu) {
            if site.user_stack.is_empty() {
                bare += site.count;
                continue;
            }
            all += site.count;
            match is_known(&python_frames(site, &program)) {
                true => good += site.count,
                false => others.push((site.count, names(site))),
            }
        }
        println!("on the CPU {on_cpu}: {good} of {all} known, {bare} without a stack");
        assert!(good * 1000 >= all * 995, "{good} of {all}: {others:?}");
        assert!(
            bare.saturating_sub(recorded.pending) * 100 < all,
            "{bare} beside {all}, {} pending",
            recorded.pending
        );
    }
    for (on_cpu, chain, line, least) in SEEN {
        let sites = recorded.sites.iter().filter(|site| {
            let frames = python_frames(site, &program);
            let here: Vec<&str> = frames.iter().map(|frame| frame.name).collect();
            is_on_cpu(site) == *on_cpu
                && here == *chain
                && frames[0].text.is_some_and(|text| text.contains(line))
        });
        let seen: u64 = sites.map(|site| site.count).sum();
        assert!(seen >= *least, "{seen} of {chain:?} at {line:?}");
    }
    let walks = |end: &str| recorded.python_walks.get(end).copied().unwrap_or(0);
    println!("{:?}", recorded.python_walks);
    let others: u64 = ["no_thread", "bad_read", "too_many_frames"]
        .map(walks)
        .iter()
        .sum();
    assert!(walks("complete") > 100, "{:?}", recorded.python_walks);
    assert!(
        others * 1000 <= walks("complete"),
        "{:?}",
        recorded.python_walks
    );
    // Functions that are made and thrown away may be gone before they are named.
    assert!(walks("unreadable") <= 10);
}

/// Frames of C stand between a function and the one that C called for it, and nowhere else from 3.11
/// on.
fn c_is_where_it_was_called(recorded: &Recorded, inlines_calls: bool) {
    let text = std::fs::read_to_string(source()).unwrap();
    let program: Vec<&str> = text.lines().collect();
    let mut sorts = 0;
    for site in &recorded.sites {
        let frames = python_frames(site, &program);
        for pair in frames.windows(2) {
            let between = pair[1].at - pair[0].at - 1;
            if pair[0].name == "key_of" {
                sorts += site.count;
                assert!(between > 0, "{:?}", names(site));
            } else if inlines_calls && pair[1].text.is_some() && pair[1].name != "made" {
                assert_eq!(between, 0, "{:?}", names(site));
            }
        }
    }
    assert!(sorts > 100, "{sorts}");
}

/// Two chains on one native stack are told apart, and two functions at one address.
fn chains_are_told_apart(recorded: &Recorded) {
    let sleeps = |name: &str| {
        let sites = recorded.sites.iter().filter(|site| {
            let calls = ["clock_nanosleep", "pselect6", "select"];
            let call = site.syscall.as_deref().unwrap_or_default();
            calls.contains(&call) && names(site).contains(&name)
        });
        sites.fold((0, 0), |sum, site| {
            (sum.0 + site.count, sum.1 + site.sum_ns)
        })
    };
    // They take turns. One that finds its time over, because other threads had the CPU meanwhile,
    // does not sleep.
    let (a, b) = (sleeps("short"), sleeps("long"));
    println!("short {a:?}, long {b:?}");
    assert!(a.0 > 50 && a.0.abs_diff(b.0) * 20 <= a.0 + b.0);
    let (a, b) = (sleeps("first"), sleeps("second"));
    println!("first {a:?}, second {b:?}");
    assert!(a.0 > 5 && a.0.abs_diff(b.0) <= 3);
    // No sleep ends early: a short one among the long ones would show in their mean.
    let long = sleeps("long");
    assert!(long.1 >= long.0 * 9_000_000, "{long:?}");
}

#[test]
fn the_distributions_python_names_its_code() {
    let _alone = alone();
    let run = record(Path::new(PYTHON));
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
        let run = record(&interpreter);
        every_stack_names_its_code(&run);
        c_is_where_it_was_called(&run, minor >= 11);
        chains_are_told_apart(&run);
    }
}

#[test]
fn a_recording_names_the_code_of_a_process_that_is_gone() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let (recording, program) = (at("naps.parec"), at("naps.py"));
    let script = "import time\ndef nap():\n    time.sleep(0.002)\nfor _ in range(1500): nap()\n";
    std::fs::write(&program, script).unwrap();
    let paths = [&recording, &program].map(|path| path.to_str().unwrap());
    let run = agent::run(["record", paths[0], "--", PYTHON, paths[1]], PATIENCE);
    assert!(run.status.success(), "{}", run.errors);
    let line = |n: u32| format!("{}:{n}", paths[1]);
    let whole = |site: &&Site| {
        let mut frames = site.user_stack.windows(2);
        frames.any(|pair| {
            pair[0].name == "nap"
                && pair[0].source == Some(line(3))
                && pair[1].source == Some(line(4))
        })
    };
    let recorded = read(&recording);
    let naps: u64 = recorded.sites.iter().filter(whole).map(|s| s.count).sum();
    // Those while tables are being built have the frames of the C library alone.
    assert!((1_350..=1_501).contains(&naps), "{naps} of 1,500");
}
