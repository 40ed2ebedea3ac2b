//! Runs the agent as its users do, and holds every line it prints against the schema it ships.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use jsonschema::Validator;
use serde_json::Value;

use crate::traced::Traced;
use crate::{PATIENCE, servers};

/// The agent under test: `PERF_AGENT_BIN`, or the release build of this workspace.
pub fn binary() -> PathBuf {
    let path = std::env::var_os("PERF_AGENT_BIN").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/perf-agent"),
        PathBuf::from,
    );
    assert!(
        path.is_file(),
        "there is no agent at {}: build it with `cargo xtask build` or set PERF_AGENT_BIN",
        path.display()
    );
    path
}

/// A running agent. Killed when dropped.
pub struct Agent {
    child: Child,
    output: Arc<Output>,
    readers: Vec<JoinHandle<()>>,
    arguments: Vec<String>,
}

#[derive(Default)]
struct Output {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: Vec<String>,
    errors: String,
    closed: bool,
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an agent that has ended left.
#[derive(Debug)]
pub struct Run {
    pub status: ExitStatus,
    /// Every line of standard output, each valid against the schema.
    pub lines: Vec<Value>,
    /// Standard output as it was.
    pub text: String,
    /// Standard error as it was.
    pub errors: String,
}

impl Run {
    /// All lines of one type.
    pub fn of_type<'a>(&'a self, kind: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
        let kind = kind.to_owned();
        self.lines.iter().filter(move |line| line["type"] == *kind)
    }

    /// The one line of a type that comes once.
    ///
    /// # Panics
    /// Where there is none or more than one.
    pub fn the(&self, kind: &str) -> &Value {
        let found: Vec<&Value> = self.of_type(kind).collect();
        assert_eq!(found.len(), 1, "{kind} lines in {}", self.text);
        found[0]
    }

    /// Sum of a number over all lines of a type.
    pub fn sum(&self, kind: &str, pointer: &str) -> u64 {
        self.of_type(kind)
            .filter_map(|line| line.pointer(pointer).and_then(Value::as_u64))
            .sum()
    }

    /// Demands exit code 0, `hello` first, `bye` last with this reason, and between them ledgers,
    /// which add up in every line, those of requests too, and their coverage.
    ///
    /// # Panics
    /// Where one of these does not hold.
    pub fn ended_well(&self, reason: &str) -> &Self {
        assert!(self.status.success(), "{}\n{}", self.status, self.errors);
        assert_eq!(self.lines[0]["type"], "hello", "{}", self.text);
        let bye = self.the("bye");
        assert_eq!(&self.lines[self.lines.len() - 1], bye, "{}", self.text);
        assert_eq!(bye["reason"], reason, "{}", self.text);
        for kind in ["ledger", "coverage"] {
            assert!(
                self.of_type(kind).next().is_some(),
                "no {kind}: {}",
                self.text
            );
        }
        for line in self.of_type("ledger") {
            if let Err(e) = crate::truth::closes(line) {
                panic!("{e:#}\nin {line}");
            }
        }
        for line in self.of_type("requests") {
            line["requests"]
                .as_array()
                .into_iter()
                .flatten()
                .for_each(requests_close);
        }
        self
    }

    /// Demands that CPU and run queue time agree with the scheduler's own figures for the same
    /// threads, within 1 % and 2 ms a thread, and what was `stolen` from them or from the machine.
    ///
    /// # Panics
    /// With both figures.
    pub fn agrees_with_schedstat(&self, stolen: Duration) -> &Self {
        let mut threads: BTreeMap<u64, u64> = BTreeMap::new();
        for line in self.of_type("ledger") {
            let most = threads
                .entry(line["pid"].as_u64().unwrap_or(0))
                .or_default();
            *most = (*most).max(line["schedstat"]["threads"].as_u64().unwrap_or(0));
        }
        for what in ["cpu", "runq"] {
            let ledger = self.sum("ledger", &format!("/schedstat/ledger_{what}_ns"));
            let kernel = self.sum("ledger", &format!("/schedstat/kernel_{what}_ns"));
            let of_threads = 2_000_000 * threads.values().sum::<u64>();
            let allowed = kernel / 100 + of_threads + stolen.as_nanos() as u64;
            assert!(
                ledger.abs_diff(kernel) <= allowed,
                "{what}: ledger {ledger} ns, scheduler {kernel} ns, {allowed} ns allowed"
            );
        }
        self
    }

    /// Demands that nothing was lost, in any window and over all.
    ///
    /// # Panics
    /// Names what was lost.
    pub fn lost_nothing(&self) -> &Self {
        for line in self.of_type("coverage").chain(self.of_type("bye")) {
            let lost = line["lost"].as_object();
            assert!(lost.is_some_and(serde_json::Map::is_empty), "lost: {line}");
        }
        self
    }
}

impl Agent {
    /// Starts the agent with NDJSON on its standard output.
    pub fn start<I: IntoIterator<Item = S>, S: Into<String>>(arguments: I) -> Self {
        let arguments: Vec<String> = arguments.into_iter().map(Into::into).collect();
        let mut command = Command::new(binary());
        command.args(&arguments);
        Self::start_command(command, arguments)
    }

    /// Starts a prepared command in the same way.
    pub fn start_command(mut command: Command, arguments: Vec<String>) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("starting {command:?}: {e}"));
        let output = Arc::new(Output::default());
        let mut readers = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            let output = output.clone();
            readers.push(thread::spawn(move || read_lines(stdout, &output)));
        }
        if let Some(stderr) = child.stderr.take() {
            let output = output.clone();
            readers.push(thread::spawn(move || read_errors(stderr, &output)));
        }
        Agent {
            child,
            output,
            readers,
            arguments,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until everything is attached, which is when the first line comes.
    pub fn attached(&self) -> Value {
        self.wait_for("hello", |line| line["type"] == "hello")
    }

    /// Waits for a line, or returns it at once where it came before.
    ///
    /// # Panics
    /// Where the agent ends or [`PATIENCE`] does.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.output.lock();
        let mut seen = 0;
        loop {
            while seen < state.lines.len() {
                let line = parse(&state.lines[seen]);
                seen += 1;
                if wanted(&line) {
                    return line;
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !state.closed && !left.is_zero(),
                "no {what} from perf-agent {:?}:\n{}\n{}",
                self.arguments,
                state.lines.join("\n"),
                state.errors
            );
            let woken = self.output.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub fn interrupt(&self) {
        self.signal(libc::SIGINT);
    }

    pub fn terminate(&self) {
        self.signal(libc::SIGTERM);
    }

    fn signal(&self, signal: i32) {
        // SAFETY: a child of this process that has not been waited for, so the id is still its own.
        let sent = unsafe { libc::kill(self.child.id() as i32, signal) };
        assert_eq!(sent, 0, "signal {signal} to {}", self.child.id());
    }

    /// Waits for the end of the agent and validates everything it printed.
    ///
    /// # Panics
    /// Where it does not end within `patience`, or a line is not valid.
    pub fn finish(mut self, patience: Duration) -> Run {
        let deadline = Instant::now() + patience;
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
                other => {
                    let state = self.output.lock();
                    panic!(
                        "perf-agent {:?} does not end ({other:?}):\n{}\n{}",
                        self.arguments,
                        state.lines.join("\n"),
                        state.errors
                    );
                }
            }
        };
        // Not joined blindly: something the agent left behind could keep its output open.
        while self.readers.iter().any(|reader| !reader.is_finished()) {
            assert!(
                Instant::now() < deadline + PATIENCE,
                "perf-agent {:?} ended ({status}) and left its output open:\n{}",
                self.arguments,
                self.output.lock().errors
            );
            thread::sleep(Duration::from_millis(5));
        }
        let state = std::mem::take(&mut *self.output.lock());
        let lines: Vec<Value> = state.lines.iter().map(|line| parse(line)).collect();
        lines.iter().for_each(validate);
        Run {
            status,
            lines,
            text: state.lines.concat(),
            errors: state.errors,
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Fails only where it has ended already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Demands of a row of `requests` that the ledgers of its slowest requests, each by itself, and of all
/// together sum to their latency within 1 % and 50 µs a request.
fn requests_close(row: &Value) {
    let close = |ledger: &Value, requests: u64| {
        let ns = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{value} in {row}"));
        let classes = ledger["classes"].as_object().into_iter().flatten();
        let sum: u64 = classes.map(|(_, time)| ns(time)).sum();
        let latency = ns(&ledger["latency_ns"]);
        assert!(
            sum.abs_diff(latency) <= latency / 100 + 50_000 * requests,
            "{sum} ns of {latency} ns in {ledger} of {row}"
        );
    };
    close(&row["ledger"], row["attributed"].as_u64().unwrap_or(0));
    let slowest = row["slowest"].as_array().into_iter().flatten();
    for ledger in slowest.filter_map(|request| request.get("ledger")) {
        close(ledger, 1);
    }
}

/// Value of a figure in the evidence of a finding.
///
/// # Panics
/// Where it has none of that name.
pub fn figure(finding: &Value, name: &str) -> f64 {
    let mut figures = finding["evidence"].as_array().into_iter().flatten();
    let figure = figures.find(|figure| figure["name"] == name);
    let value = figure.and_then(|figure| figure["value"].as_f64());
    value.unwrap_or_else(|| panic!("no {name} in {finding}"))
}

/// Runs the agent to its end.
pub fn run<I: IntoIterator<Item = S>, S: Into<String>>(arguments: I, patience: Duration) -> Run {
    Agent::start(arguments).finish(patience)
}

/// Traces a process while a command runs to its end.
///
/// # Panics
/// Where either fails.
pub fn trace_during(pid: u32, command: Command) -> Run {
    let agent = Agent::start(["trace", "-p", &pid.to_string()]);
    agent.attached();
    servers::to_end(command);
    agent.interrupt();
    agent.finish(PATIENCE)
}

/// Traces the work of a program that stays when it is done, as nothing is known any more of the memory of one
/// that is gone; and what the program says of its work.
///
/// # Panics
/// Where either does not end well.
pub fn trace_work(program: &mut Traced, options: &[&str]) -> (Run, Value) {
    let pid = program.pid().to_string();
    let agent = Agent::start(["trace", "-p", &pid].iter().chain(options).copied());
    agent.attached();
    program.go();
    let done = program.done(PATIENCE);
    agent.interrupt();
    let run = agent.finish(PATIENCE);
    run.ended_well("interrupt");
    (run, done)
}

/// Traces a command from its first instruction, in one window.
///
/// # Panics
/// Where the agent cannot be started or does not end.
pub fn trace_command(command: &Command) -> Run {
    trace_command_with(&["trace"], command)
}

/// As [`trace_command`], with options behind the subcommand.
///
/// # Panics
/// As [`trace_command`].
pub fn trace_command_with(options: &[&str], command: &Command) -> Run {
    let mut words: Vec<String> = options.iter().map(|&word| word.to_owned()).collect();
    words.extend(["--interval", "100s", "--"].map(str::to_owned));
    words.push(command.get_program().to_string_lossy().into_owned());
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    let mut agent = Command::new(binary());
    agent.args(&words);
    for (name, value) in command.get_envs() {
        agent.env(name, value.unwrap_or_default());
    }
    if let Some(directory) = command.get_current_dir() {
        agent.current_dir(directory);
    }
    Agent::start_command(agent, words).finish(4 * PATIENCE)
}

/// Lines keep their end, so that half a line at the end of the output is noticed.
fn read_lines(stdout: impl Read, output: &Output) {
    let mut reader = BufReader::new(stdout);
    loop {
        let mut line = String::new();
        let read = reader.read_line(&mut line);
        let mut state = output.lock();
        match read {
            Ok(0) => {
                state.closed = true;
                output.changed.notify_all();
                return;
            }
            Ok(_) => state.lines.push(line),
            Err(e) => {
                state.lines.push(format!("unreadable: {e}"));
                state.closed = true;
            }
        }
        output.changed.notify_all();
        if state.closed {
            return;
        }
    }
}

fn read_errors(stderr: impl Read, output: &Output) {
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    while matches!(reader.read_until(b'\n', &mut line), Ok(n) if n > 0) {
        output.lock().errors += &String::from_utf8_lossy(&line);
        line.clear();
    }
}

fn parse(line: &str) -> Value {
    assert!(line.ends_with('\n'), "half a line: {line:?}");
    serde_json::from_str(line).unwrap_or_else(|e| panic!("not JSON ({e}): {line}"))
}

/// The schema the agent prints, compiled once.
pub fn schema() -> &'static Validator {
    static SCHEMA: OnceLock<Validator> = OnceLock::new();
    SCHEMA.get_or_init(|| {
        let output = Command::new(binary())
            .arg("schema")
            .output()
            .unwrap_or_else(|e| panic!("perf-agent schema: {e}"));
        assert!(output.status.success(), "perf-agent schema: {output:?}");
        let schema: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("the schema is not JSON: {e}"));
        jsonschema::validator_for(&schema).unwrap_or_else(|e| panic!("not a schema: {e}"))
    })
}

/// Demands that a line is valid.
///
/// # Panics
/// With the line and everything that is wrong with it.
pub fn validate(line: &Value) {
    let wrong: Vec<String> = schema()
        .iter_errors(line)
        .map(|e| format!("{}: {e}", e.instance_path))
        .collect();
    assert!(wrong.is_empty(), "not valid:\n{}\n{line}", wrong.join("\n"));
}
