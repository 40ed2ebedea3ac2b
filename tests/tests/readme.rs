//! The one-liners of the README, run by jq on the lines of the demo.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use perf_agent_tests::{agent, alone};
use serde_json::{Value, json};

const README: &str = include_str!("../../README.md");

/// What a command prints, made of the lines without jq.
type Expected = fn(&[Value]) -> Vec<String>;

/// The commands by the comment above them.
const COMMANDS: &[(&str, Expected)] = &[
    ("milliseconds by class over the whole trace", by_class),
    ("what to act on, and who should", to_act_on),
    ("what each window's figures rest on", coverage),
    (
        "what is worth most: the largest bound of each finding, in ms a second",
        worth_most,
    ),
    ("missed targets, since when", missed),
    (
        "slowest statements by total time, with their 95th percentile in ms",
        slowest,
    ),
    (
        "what a request waits for: ms of each class, on average, of the routes that are attributed",
        waits,
    ),
    ("connections with retransmits or resets", retransmits),
    ("was anything lost, or a reader too slow?", lost),
];

fn of_type<'a>(lines: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    lines.iter().filter(move |line| line["type"] == *kind)
}

fn rows<'a>(lines: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    of_type(lines, kind).flat_map(move |line| line[kind].as_array().into_iter().flatten())
}

fn by_class(lines: &[Value]) -> Vec<String> {
    let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
    for line in of_type(lines, "ledger") {
        for (class, ns) in line["process"]["classes"].as_object().into_iter().flatten() {
            *sums.entry(class).or_default() += ns.as_f64().unwrap_or(0.0);
        }
    }
    let rounded: BTreeMap<&str, u64> = sums
        .into_iter()
        .map(|(class, ns)| (class, (ns / 1e6).round() as u64))
        .collect();
    vec![json!(rounded).to_string()]
}

fn to_act_on(lines: &[Value]) -> Vec<String> {
    let text = |line: &Value, name: &str| line[name].as_str().unwrap_or_default().to_owned();
    of_type(lines, "finding")
        .map(|f| {
            ["impact", "delegate_to", "title"]
                .map(|name| text(f, name))
                .join("\t")
        })
        .collect()
}

fn coverage(lines: &[Value]) -> Vec<String> {
    let part = |c: &Value| {
        format!(
            "{{\"lifetime_ns\":{},\"residual_ns\":{},\"lost\":{}}}",
            c["lifetime_ns"], c["residual_ns"], c["lost"]
        )
    };
    of_type(lines, "coverage").map(part).collect()
}

fn worth_most(lines: &[Value]) -> Vec<String> {
    let mut largest: BTreeMap<&str, (u64, &Value)> = BTreeMap::new();
    for finding in of_type(lines, "finding") {
        let gain = finding["gain_bound_ns_per_s"].as_u64().unwrap_or(0);
        let entry = largest.entry(finding["id"].as_str().unwrap_or_default());
        let entry = entry.or_insert((gain, finding));
        if gain >= entry.0 {
            *entry = (gain, finding);
        }
    }
    let mut out: Vec<(u64, String)> = largest
        .values()
        .map(|(gain, f)| {
            let (id, title) = (f["id"].as_str(), f["title"].as_str());
            let ms = (*gain as f64 / 1e6).round() as u64;
            (
                *gain,
                format!(
                    "{ms}\t{}\t{}",
                    id.unwrap_or_default(),
                    title.unwrap_or_default()
                ),
            )
        })
        .collect();
    out.sort_by_key(|(gain, _)| std::cmp::Reverse(*gain));
    out.into_iter().map(|(_, text)| text).collect()
}

fn missed(lines: &[Value]) -> Vec<String> {
    let missed = of_type(lines, "finding").filter(|f| f["category"] == "target_missed");
    let missed = missed.filter(|f| f["state"] == "new");
    let text = |f: &Value, name: &str| f[name].as_str().unwrap_or_default().to_owned();
    missed
        .map(|f| format!("{}\t{}", text(f, "since"), text(f, "title")))
        .collect()
}

/// The ten lines are sorted by `sort`; here only the sums are told.
fn slowest(lines: &[Value]) -> Vec<String> {
    let mut sums: Vec<u64> = rows(lines, "statements")
        .filter_map(|s| s["latency"]["sum_ns"].as_u64())
        .collect();
    sums.sort_unstable_by_key(|ns| std::cmp::Reverse(*ns));
    sums.truncate(10);
    sums.into_iter()
        .map(|ns| (ns / 1_000_000).to_string())
        .collect()
}

fn waits(lines: &[Value]) -> Vec<String> {
    rows(lines, "requests")
        .filter_map(|row| {
            let attributed = row["attributed"].as_u64().filter(|n| *n > 0)?;
            let classes = row["ledger"]["classes"].as_object()?;
            let ms = |ns: &Value| ns.as_f64().unwrap_or(0.0) / attributed as f64 / 1e6;
            let classes = classes.iter().map(|(class, ns)| {
                let text = serde_json::to_string(class).unwrap_or_default();
                format!("{text}:{}", ms(ns).round())
            });
            let classes: Vec<String> = classes.collect();
            Some(format!(
                "{{\"text\":{},\"ms\":{{{}}}}}",
                row["text"],
                classes.join(",")
            ))
        })
        .collect()
}

fn retransmits(lines: &[Value]) -> Vec<String> {
    let bad = |c: &&Value| c["retransmits"].as_u64() > Some(0) || c["resets"].as_u64() > Some(0);
    let some = rows(lines, "connections").filter(bad);
    some.map(|c| c["peer"].to_string()).collect()
}

fn lost(lines: &[Value]) -> Vec<String> {
    let bye = of_type(lines, "bye")
        .next()
        .map(|bye| bye["lost"].to_string());
    vec![format!(
        "{{\"lost\":{},\"streams\":null}}",
        bye.unwrap_or_default()
    )]
}

/// The README's commands that use jq, by the comment above each.
fn commands() -> Vec<(String, String)> {
    let mut out: Vec<(String, String)> = Vec::new();
    for block in README.split("```sh\n").skip(1) {
        let block = block.split("```").next().unwrap_or_default();
        let mut about = String::new();
        for line in block.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                about = comment.to_owned();
            } else if line.starts_with("jq ") {
                out.push((about.clone(), line.to_owned()));
            } else if let (true, Some((_, command))) = (line.starts_with("  "), out.last_mut()) {
                *command += "\n";
                *command += line;
            }
        }
    }
    out
}

/// What a command prints, line by line.
fn run(command: &str, directory: &Path) -> Vec<String> {
    let output = Command::new("sh")
        .args(["-c", command])
        .current_dir(directory)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && errors.is_empty(),
        "{command}\n{errors}"
    );
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn the_one_liners_answer_their_questions() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let status = Command::new(agent::binary())
        .args(["demo", "--duration", "3s"])
        .current_dir(directory.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let demo = directory.path().join("perf-agent-demo.ndjson");
    fs::copy(&demo, directory.path().join("trace.ndjson")).unwrap();
    let text = fs::read_to_string(demo).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();

    let found = commands();
    let names: Vec<&str> = found.iter().map(|(about, _)| about.as_str()).collect();
    let known: Vec<&str> = COMMANDS.iter().map(|(about, _)| *about).collect();
    assert_eq!(
        names, known,
        "the commands of the README and those tested here"
    );
    for ((about, command), (_, expected)) in found.iter().zip(COMMANDS) {
        let printed = run(command, directory.path());
        let expected = expected(&lines);
        match about.as_str() {
            "slowest statements by total time, with their 95th percentile in ms" => {
                let whole = |line: &String| line.split(['.', '\t']).next().unwrap().to_owned();
                assert_eq!(
                    printed.iter().map(whole).collect::<Vec<_>>(),
                    expected,
                    "{command}"
                );
            }
            "connections with retransmits or resets" => {
                assert_eq!(printed.len(), expected.len(), "{command}");
            }
            "milliseconds by class over the whole trace" => {
                let printed: Value = serde_json::from_str(&printed.concat()).unwrap();
                assert_eq!(printed.to_string(), expected.concat(), "{command}");
            }
            _ => assert_eq!(printed, expected, "{command}"),
        }
    }
}
