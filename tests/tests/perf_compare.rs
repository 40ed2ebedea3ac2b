//! Stacks on the CPU against an independent unwinder: `perf record --call-graph dwarf` copies the stack of
//! each sample and walks it afterwards, with a library of its own. Both sample one process at the same time.
//!
//! Compared are user stacks of samples in user mode: of samples in the kernel perf is not asked, because
//! what it says of them depends on what the host lets it see. Debian's servers are stripped, so
//! functions are told apart by where they begin, which `readelf` reads out of the unwind information (a
//! part that the compiler put elsewhere, `.cold`, is one of its own), and not by name.
//!
//! Each side has some 10,000 samples or more. Two shares of p of so many differ by chance with a standard
//! deviation of √(2·p·(1-p)/10,000): 0.6 percentage points at p = 0.25, 0.7 at most, so that three points
//! are more than four deviations. In fact the largest difference was 0.8 points.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::Path;
use std::process::Command;

use perf_agent::drain::codec::Reader;
use perf_agent::drain::{Frame, MapId};
use perf_agent::signals::entries;
use perf_agent::signals::records::{self, Record};
use perf_agent::unwind::mappings::{self, Mapping};
use perf_agent_tests::agent::Agent;
use perf_agent_tests::{PATIENCE, alone, servers};
use perf_ebpf_common::class;
use perf_ebpf_common::signals::ledger::{SiteKey, SiteTotals};
use perf_ebpf_common::signals::unwind::EXACT;

/// How long, and how often a second. Some is left out at either end, where only one of them samples.
const SECONDS: &str = "10";
const HZ: &str = "1999";
/// Fewest samples of each side: three points are three deviations of a share of a half still.
const SAMPLES: u64 = 5_000;
/// Most that two shares may differ.
const APART: f64 = 0.03;
const HOTTEST: usize = 10;

/// Where a function begins: file, address in it.
type Function = (String, u64);

/// A stack, innermost first, and how often it was seen.
type Counted = (Vec<Function>, u64);

/// What addresses of one process mean.
struct Functions {
    mappings: Vec<Mapping>,
    /// By file: difference of address and offset of its code, and its functions' ranges.
    files: HashMap<String, (u64, BTreeMap<u64, u64>)>,
}

fn readelf(option: &str, file: &str) -> String {
    let output = Command::new("readelf").args([option, "-W", file]).output();
    let output = output.unwrap_or_else(|e| panic!("readelf: {e}"));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).ok()
}

impl Functions {
    fn of(pid: u32) -> Functions {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let mappings = mappings::parse(&maps);
        let names = mappings.iter().map(|m| &m.name);
        let names = names.filter(|name| Path::new(name).is_file());
        let files = names.map(|name| (name.clone(), ranges(name))).collect();
        Functions { mappings, files }
    }

    /// The function at an offset of a file. Code outside any is one function for each file.
    fn at(&self, file: &str, offset: u64) -> Function {
        let start = self.files.get(file).and_then(|(bias, functions)| {
            let address = offset.wrapping_add(*bias);
            let (start, end) = functions.range(..=address).next_back()?;
            (address < *end).then_some(*start)
        });
        (file.to_owned(), start.unwrap_or(0))
    }

    /// The function that an address of the process is in.
    fn mapped_at(&self, address: u64) -> Function {
        let mut mappings = self.mappings.iter();
        match mappings.find(|m| (m.start..m.end).contains(&address)) {
            Some(m) => self.at(&m.name, address - m.start + m.offset),
            None => ("[unknown]".to_owned(), 0),
        }
    }

    /// A stack of the address that was executed and of return addresses, which stand behind the call.
    fn stack(&self, addresses: &[u64]) -> Vec<Function> {
        let addresses = addresses.iter().enumerate();
        let at = addresses.map(|(i, address)| match address & EXACT {
            0 => address - u64::from(i > 0),
            _ => address & !EXACT,
        });
        at.map(|address| self.mapped_at(address)).collect()
    }
}

/// Address less offset of the executable segment, and the functions of a file.
fn ranges(file: &str) -> (u64, BTreeMap<u64, u64>) {
    let segments = readelf("-l", file);
    let executable = segments.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let code = words.first() == Some(&"LOAD") && line.contains("R E");
        code.then(|| Some(hex(words[2])?.wrapping_sub(hex(words[1])?)))
    });
    let bias = executable.flatten();
    let bias = bias.unwrap_or_else(|| panic!("{file} has no code:\n{segments}"));
    let frames = readelf("--debug-dump=frames-interp", file);
    let range = |line: &str| {
        let (start, end) = line
            .split_once(" FDE ")?
            .1
            .split_once("pc=")?
            .1
            .split_once("..")?;
        Some((hex(start)?, hex(end)?))
    };
    (bias, frames.lines().filter_map(range).collect())
}

/// The agent's samples in user mode.
fn of_agent(recording: &Path, functions: &Functions) -> Vec<Counted> {
    let mut reader = Reader::new(File::open(recording).unwrap()).unwrap();
    let (mut stacks, mut sites) = (HashMap::new(), HashMap::new());
    while let Some(frame) = reader.frame().unwrap() {
        match frame {
            Frame::Record(bytes) => {
                if let Some(Record::Stack(record, addresses, _)) = records::parse(&bytes) {
                    stacks.insert(record.id, functions.stack(&addresses));
                }
            }
            // Cumulative: the last counts.
            Frame::Map(MapId::Sites, bytes) => {
                sites.extend(entries::<SiteKey, SiteTotals>(&bytes));
            }
            _ => {}
        }
    }
    let in_user_mode = |key: &SiteKey| key.class == class::CPU && key.nr == 0;
    sites
        .into_iter()
        .filter(|(key, _)| in_user_mode(key))
        .map(|(key, totals)| {
            let stack = stacks.get(&key.user_stack).cloned();
            (stack.unwrap_or_default(), totals.count)
        })
        .collect()
}

/// perf's samples.
fn of_perf(data: &Path, functions: &Functions) -> Vec<Counted> {
    let mut command = Command::new("perf");
    command
        .args(["script", "--no-inline", "-F", "ip,dso", "-i"])
        .arg(data);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let samples = text.split("\n\n").filter(|s| !s.trim().is_empty());
    let mut stacks = BTreeMap::<Vec<Function>, u64>::new();
    // `offset (file)`; a return address is one less already.
    let frame = |line: &str| {
        let (offset, file) = line.trim().split_once(' ')?;
        let file = file.strip_prefix('(')?.strip_suffix(')')?;
        Some(functions.at(file, hex(offset)?))
    };
    for sample in samples {
        let stack = sample
            .lines()
            .filter(|line| !line.is_empty())
            .map(|line| frame(line).unwrap_or_else(|| panic!("{line:?}")));
        *stacks.entry(stack.collect()).or_default() += 1;
    }
    stacks.into_iter().collect()
}

/// Shares of all samples, by a part of the stack.
struct Shares<'a>(BTreeMap<&'a [Function], f64>);

impl<'a> Shares<'a> {
    fn of(stacks: &'a [Counted], part: impl Fn(&[Function]) -> &[Function]) -> Self {
        let all: u64 = stacks.iter().map(|(_, count)| count).sum();
        let mut shares = BTreeMap::new();
        for (stack, count) in stacks {
            *shares.entry(part(stack)).or_default() += *count as f64 / all as f64;
        }
        Shares(shares)
    }

    fn get(&self, part: &[Function]) -> f64 {
        self.0.get(part).copied().unwrap_or(0.0)
    }

    fn hottest(&self) -> Vec<&'a [Function]> {
        let mut parts: Vec<_> = self.0.iter().collect();
        parts.sort_by(|a, b| b.1.total_cmp(a.1));
        let parts = parts.into_iter().take(HOTTEST);
        parts.map(|(part, _)| *part).collect()
    }
}

/// Three standard deviations of the difference of two shares of about `share`.
fn by_chance(share: f64, samples: [u64; 2]) -> f64 {
    let variance = |n: u64| share * (1.0 - share) / n as f64;
    3.0 * (variance(samples[0]) + variance(samples[1])).sqrt()
}

/// Demands of the ten hottest of each side that the other has them, with a share that is not three percentage
/// points from it, and among its own ten, but for those that change places by chance.
fn agree(what: &str, perf: &Shares<'_>, agent: &Shares<'_>, samples: [u64; 2]) {
    for (side, one, other) in [("perf", perf, agent), ("the agent", agent, perf)] {
        let (hottest, others) = (one.hottest(), other.hottest());
        // Of what has fewer than ten, those that are not there are among them, with nothing.
        let least = others.get(HOTTEST - 1).map_or(0.0, |part| other.get(part));
        println!("{what}, the hottest by {side}:");
        for part in hottest {
            let (a, b) = (one.get(part), other.get(part));
            let names: Vec<String> = part.iter().map(|(f, at)| format!("{f}+{at:#x}")).collect();
            let names = names.join(" <- ");
            println!("  {:6.2} % {:6.2} %  {names}", a * 100.0, b * 100.0);
            assert!((a - b).abs() <= APART, "{what}: {names}: {a} and {b}");
            assert!(
                others.contains(&part) || b + by_chance(a, samples) >= least,
                "{what}: {names}: {a} by {side}, {b} is not among the other's ten"
            );
        }
    }
}

/// Samples a process with both for some seconds.
fn compare(pid: u32) {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let (data, recording) = (at("perf.data"), at("agent.parec"));
    let mut perf = Command::new("perf");
    perf.args(["record", "-q", "-e", "cpu-clock:u", "-F", HZ, "-p"])
        .args([&pid.to_string(), "--call-graph", "dwarf,16384", "-o"])
        .arg(&data)
        .args(["--", "sleep", SECONDS]);
    let arguments = [
        "record",
        recording.to_str().unwrap(),
        "-p",
        &pid.to_string(),
    ];
    let options = ["--frequency", HZ, "--sockets", "off", "--syscalls", "off"];
    let agent = Agent::start(arguments.into_iter().chain(options));
    servers::to_end(perf);
    agent.interrupt();
    let run = agent.finish(PATIENCE);
    assert!(run.status.success(), "{}", run.errors);

    let functions = Functions::of(pid);
    let perf = of_perf(&data, &functions);
    let agent = of_agent(&recording, &functions);
    let sum = |side: &[Counted]| -> u64 { side.iter().map(|(_, count)| count).sum() };
    let samples = [sum(&perf), sum(&agent)];
    println!("samples of perf and of the agent: {samples:?}");
    assert!(samples.iter().all(|n| *n >= SAMPLES), "{samples:?}");
    for (what, part) in [
        (
            "leaf",
            (|stack| &stack[..stack.len().min(1)]) as fn(&[Function]) -> &[Function],
        ),
        ("leaf and its caller", |stack| &stack[..stack.len().min(2)]),
        ("three innermost", |stack| &stack[..stack.len().min(3)]),
        ("outermost", |stack| &stack[stack.len().saturating_sub(1)..]),
    ] {
        let [perf, agent] = [&perf, &agent].map(|stacks| Shares::of(stacks, part));
        agree(what, &perf, &agent, samples);
    }
}

#[test]
fn of_redis_under_redis_benchmark_the_hottest_functions_are_those_of_perf() {
    let _alone = alone();
    let (mut server, port) = servers::redis();
    // Pipelines, so that it is in user mode most of the time.
    let mut load = Command::new("redis-benchmark");
    load.args([
        "-p",
        &port.to_string(),
        "-P",
        "16",
        "-c",
        "16",
        "-r",
        "10000",
    ])
    .args(["-t", "set", "-n", "1000000000", "-q"]);
    let mut load = servers::start(load, "redis-benchmark");
    compare(server.pid());
    assert!(server.runs() && load.runs());
}

/// The same work over and over, in the interpreter's loop and in its C code.
const PYTHON: &str = "\
import json, re
WORDS = [f'word{i * 7919 % 1000}' for i in range(300)]
TEXT = ' '.join(WORDS)
PATTERN = re.compile(r'w\\w+?([0-9]{2})\\b')
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
def parse(): return json.loads(json.dumps({word: [len(word)] * 3 for word in WORDS}))
def search(): return sum(int(found) for found in PATTERN.findall(TEXT))
def order(): return sorted(WORDS, key=lambda word: word[::-1])
def work():
    fib(14); parse(); search(); order()
print('READY', flush=True)
while True: work()
";

#[test]
fn of_python_the_hottest_functions_are_those_of_perf() {
    let _alone = alone();
    let mut python = Command::new("/usr/bin/python3");
    python.args(["-c", PYTHON]);
    let mut python = servers::start(python, "python3");
    compare(python.pid());
    assert!(python.runs());
}
