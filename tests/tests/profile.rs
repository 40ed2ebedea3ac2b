//! Profiles: whole, true to the ledger, the same from a recording, and with the names of code made
//! at run time.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use perf_agent_tests::agent;
use perf_agent_tests::alone;
use perf_agent_tests::traced::Traced;
use perf_agent_tests::workloads::{cpu::HOT_FUNCTION, jit::JIT_FUNCTION};
use serde_json::Value;

fn agent(arguments: &[&str]) -> Output {
    let output = Command::new(agent::binary())
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    output
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Profiles a workload in the middle of its work.
fn profile(workload: &str, arguments: &[&str]) -> String {
    let mut program = Traced::workload(&[workload, "--seconds", "30"]);
    program.go();
    profile_of(program.pid(), arguments)
}

fn profile_of(pid: u32, arguments: &[&str]) -> String {
    let pid = pid.to_string();
    let mut all = vec!["profile", "-p", &pid, "--duration", "2s"];
    all.extend(arguments);
    text(&agent(&all))
}

/// Classes and functions of folded stacks, with their nanoseconds.
fn folded(text: &str) -> Vec<(String, Vec<&str>, u64)> {
    text.lines()
        .map(|line| {
            let (stack, ns) = line.rsplit_once(' ').unwrap();
            let mut parts = stack.split(';');
            let (_process, class) = (parts.next().unwrap(), parts.next().unwrap());
            let class = class.trim_matches(['[', ']']).to_owned();
            (class, parts.collect(), ns.parse().unwrap())
        })
        .collect()
}

fn by_class(text: &str) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for (class, _, ns) in folded(text) {
        *sums.entry(class).or_default() += ns;
    }
    sums
}

/// Time on the CPU, and the part of it under a function.
fn share_on_cpu(text: &str, function: &str) -> (u64, u64) {
    let lines = folded(text);
    let on_cpu = lines.iter().filter(|(class, ..)| class.starts_with("cpu."));
    let with = on_cpu
        .clone()
        .filter(|(_, functions, _)| functions.contains(&function));
    (
        on_cpu.clone().map(|(.., ns)| ns).sum(),
        with.map(|(.., ns)| ns).sum(),
    )
}

#[test]
fn the_hot_function_has_the_time_on_the_cpu_and_nothing_else_is_there() {
    let _alone = alone();
    let text = profile("cpu", &["--mode", "cpu", "--folded", "-"]);
    let (total, hot) = share_on_cpu(&text, HOT_FUNCTION);
    assert!(hot > total / 10 * 8, "{hot} of {total} ns\n{text}");
    let classes = by_class(&text);
    assert!(classes.keys().all(|c| c.starts_with("cpu.")), "{classes:?}");
}

#[test]
fn code_made_at_run_time_is_named_by_a_perf_map_in_the_mount_namespace_of_the_process() {
    let _alone = alone();
    for workload in ["jit", "jit-private-tmp"] {
        let text = profile(workload, &["--mode", "cpu", "--folded", "-"]);
        let (total, hot) = share_on_cpu(&text, JIT_FUNCTION);
        assert!(
            hot > total / 10 * 8,
            "{workload}: {hot} of {total} ns\n{text}"
        );
        let called = folded(&text).into_iter().any(|(_, functions, _)| {
            let at = functions.iter().position(|f| *f == JIT_FUNCTION);
            at.is_some_and(|at| at > 0 && functions[at - 1].contains("call_made_code"))
        });
        assert!(called, "{workload}: not under its caller\n{text}");
    }
}

#[test]
fn functions_of_node_are_named_by_its_own_perf_map() {
    let _alone = alone();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/chain/hot.js");
    let mut node = Command::new("node");
    node.args(["--perf-basic-prof", "--interpreted-frames-native-stack"]);
    // It leaves a log of its own where it runs.
    let directory = tempfile::tempdir().unwrap();
    node.arg(source).current_dir(directory.path());
    let mut program = Traced::start(node, "node");
    program.go();
    let text = profile_of(program.pid(), &["--mode", "cpu", "--folded", "-"]);
    let map = format!("/tmp/perf-{}.map", program.pid());
    drop(program);
    fs::remove_file(map).unwrap();
    let (mut total, mut hot) = (0, 0);
    for (_, functions, ns) in folded(&text) {
        // Before the name stands how well it is compiled, behind it the place in the source.
        let at = |name| functions.iter().position(|f| f.contains(name));
        let (caller, callee) = (at("settleAccounts "), at("checksumOrders "));
        total += ns;
        // Compiled as one, the caller's name is what both have.
        if caller.is_some() && (callee.is_none() || callee > caller) {
            hot += ns;
        }
    }
    assert!(text.contains("checksumOrders "), "{text}");
    assert!(hot > total / 10 * 8, "{hot} of {total} ns\n{text}");
}

#[test]
fn the_text_begins_with_what_costs_most_and_ends_with_what_it_rests_on() {
    let _alone = alone();
    let text = profile("lockfight", &[]);
    let first = text.lines().next().unwrap_or_default();
    assert!(
        first.contains("is lock in `") && first.contains("update_shared_account`"),
        "{text}"
    );
    assert!(text.contains("\ncoverage: "), "{text}");
    assert!(text.contains("thread time shown"), "{text}");
    assert!(!text.contains('\x1b'), "{text}");
}

/// All formats of a recording: folded, pprof, speedscope, SVG.
fn formats(recording: &Path, folder: &Path) -> Vec<Vec<u8>> {
    let names = ["folded", "pprof", "speedscope", "flamegraph"];
    let paths: Vec<String> = names
        .iter()
        .map(|name| folder.join(name).to_str().unwrap().to_owned())
        .collect();
    let mut arguments = vec!["profile", "--replay", recording.to_str().unwrap(), "--idle"];
    let options: Vec<String> = names.iter().map(|name| format!("--{name}")).collect();
    for (option, path) in options.iter().zip(&paths) {
        arguments.extend([option.as_str(), path.as_str()]);
    }
    let output = agent(&arguments);
    assert_eq!(text(&output), "", "standard output is for data");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.starts_with("coverage: "), "{errors}");
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn a_recording_gives_every_format_to_the_byte_and_the_ledger_to_the_nanosecond() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let recording = directory.path().join("a.parec");
    let name = recording.to_str().unwrap().to_owned();
    let mut program = Traced::workload(&["lockfight", "--seconds", "30"]);
    program.go();
    let pid = program.pid().to_string();
    agent(&["record", &name, "-p", &pid, "--duration", "2s"]);
    drop(program);

    let first = formats(&recording, directory.path());
    assert!(
        first == formats(&recording, directory.path()),
        "not the same twice"
    );
    let tree = |_| text(&agent(&["profile", "--replay", &name]));
    assert_eq!(tree(1), tree(2));

    let mut ledger: BTreeMap<String, u64> = BTreeMap::new();
    for line in text(&agent(&["replay", &name])).lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        if line["type"] == "ledger" {
            for (class, ns) in line["process"]["classes"].as_object().unwrap() {
                *ledger.entry(class.clone()).or_default() += ns.as_u64().unwrap();
            }
        }
    }
    let text = String::from_utf8(first[0].clone()).unwrap();
    assert_eq!(by_class(&text), ledger);

    let speedscope: Value = serde_json::from_slice(&first[2]).unwrap();
    let schema = include_str!("../speedscope/file-format-schema.json");
    let schema: Value = serde_json::from_str(schema).unwrap();
    let schema = jsonschema::validator_for(&schema).unwrap();
    let wrong: Vec<String> = schema
        .iter_errors(&speedscope)
        .map(|e| e.to_string())
        .collect();
    assert_eq!(wrong, [""; 0]);
    let weights = speedscope["profiles"][0]["weights"].as_array().unwrap();
    let sum: u64 = weights.iter().map(|w| w.as_u64().unwrap()).sum();
    assert_eq!(sum, ledger.values().sum::<u64>());

    let below: u64 = times_in(&text, SHARED).sum();
    assert!(below > 0, "{text}");
    pprof_says(&directory.path().join("pprof"), below);
    let svg = String::from_utf8(first[3].clone()).unwrap();
    assert!(svg.contains("<title>[lock] ("), "{svg}");
    let share = below as f64 / sum as f64;
    a_browser_finds(&directory.path().join("flamegraph"), share);
}

/// What the threads of `lockfight` fight in.
const SHARED: &str = "update_shared_account";

/// Times of the stacks that a function is in.
fn times_in<'a>(text: &'a str, function: &'a str) -> impl Iterator<Item = u64> + 'a {
    let has = move |functions: &[&str]| functions.iter().any(|f| f.contains(function));
    let lines = folded(text).into_iter();
    lines.filter(move |(_, f, _)| has(f)).map(|(.., ns)| ns)
}

/// Demands of pprof itself (Go's) that it gives the function this much time.
fn pprof_says(file: &Path, ns: u64) {
    let mut go = Command::new("go");
    let options = ["-top", "-cum", "-unit=ns", "-sample_index=time"];
    go.args(["tool", "pprof", "-nodecount=1000000"])
        .args(options);
    let output = go.arg(file).env("HOME", "/nonexistent").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = text(&output);
    let line = text.lines().find(|line| line.contains(SHARED));
    let line = line.unwrap_or_else(|| panic!("no {SHARED} in\n{text}"));
    // flat, its share, running sum, cum, its share, name
    let cum = line.split_whitespace().nth(3).unwrap().strip_suffix("ns");
    let cum: f64 = cum.unwrap_or_else(|| panic!("{line}")).parse().unwrap();
    assert!(
        (cum - ns as f64).abs() <= 1.0 + ns as f64 / 1e6,
        "{line}: {ns} ns"
    );
}

/// Opens a flame graph in a browser that has no window, with a search for the function: it says how much
/// of the width it matched, which is the function's share.
fn a_browser_finds(file: &Path, share: f64) {
    let directory = tempfile::tempdir().unwrap();
    let svg = directory.path().join("flame.svg");
    fs::copy(file, &svg).unwrap();
    let mut browser = Command::new("chromium");
    browser.args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]);
    browser.arg(format!(
        "--user-data-dir={}",
        directory.path().join("user").display()
    ));
    browser.arg(format!("file://{}?s={SHARED}", svg.display()));
    let output = browser.env("HOME", directory.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let page = text(&output);
    // Behind the script, which has the words too.
    let matched = page
        .rsplit_once("Matched: ")
        .and_then(|(_, rest)| rest.split_once('%'));
    let (percent, _) = matched.unwrap_or_else(|| panic!("nothing is matched in {page}"));
    let percent: f64 = percent.parse().unwrap();
    assert!(
        (percent - 100.0 * share).abs() < 0.2,
        "{percent} % and {share}"
    );
}
