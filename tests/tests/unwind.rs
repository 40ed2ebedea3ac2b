//! User stacks of code without frame pointers: a known call chain in programs built in several
//! ways, and real servers as they are installed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use perf_agent_tests::agent::{self, Agent, Run};
use perf_agent_tests::servers::{self, Mariadb, Nginx, Postgres};
use perf_agent_tests::traced::{GoProgram, Traced};
use perf_agent_tests::{PATIENCE, alone};
use serde_json::Value;
use tempfile::TempDir;

/// From the inside out; what computes or sleeps is below.
const CHAIN: [&str; 5] = ["leaf", "inner", "middle", "outer", "main"];

/// A program that was built for a test, in a directory of its own.
struct Built {
    program: PathBuf,
    _directory: TempDir,
}

fn build(compiler: &str, source: &str, flags: &[&str]) -> Built {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("chain");
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/chain")
        .join(source);
    let mut command = Command::new(compiler);
    command.args(flags).arg("-o").arg(&program).arg(&source);
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    Built {
        program,
        _directory: directory,
    }
}

fn trace(built: &Built, arguments: &[&str]) -> Run {
    let mut command = Command::new(&built.program);
    command.args(arguments);
    let mut program = Traced::start(command, "chain");
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

fn names(site: &Value) -> Vec<&str> {
    let frames = site["user_stack"].as_array().unwrap();
    frames.iter().map(|f| f["name"].as_str().unwrap()).collect()
}

/// What is expected of a program.
struct Expected<'a> {
    /// Links of the chain, from the inside out.
    chain: &'a [&'a str],
    /// Frames of something else allowed between the first link and the second.
    between: usize,
    /// What calls the first link, in a few samples not yet: its names.
    callers: &'a [&'a str],
    /// Whether the second link goes on behind the first for a while: a few samples have the chain without it.
    goes_on: bool,
    /// Where walks may end.
    ends: &'a [&'a str],
}

const PLAIN: Expected<'_> = Expected {
    chain: &CHAIN,
    between: 0,
    callers: &[],
    goes_on: false,
    ends: &["complete"],
};

impl Expected<'_> {
    /// Whether the links stand in the stack in their order.
    fn is_in(&self, site: &Value) -> bool {
        self.stands_in(self.chain[0], site)
    }

    /// Whether all but the first do, below what calls it.
    fn is_about_to_be(&self, site: &Value) -> bool {
        let mut callers = self.callers.iter();
        callers.any(|caller| self.stands_in(caller, site))
    }

    /// Whether all but the first do, and may.
    fn was_in(&self, site: &Value) -> bool {
        let chain = &self.chain[1..];
        self.goes_on && Expected { chain, ..*self }.is_in(site)
    }

    fn stands_in(&self, innermost: &str, site: &Value) -> bool {
        let names = names(site);
        // Rust puts the crate before a name, GCC `.cold` behind the part of a function that
        // handles exceptions.
        let is = |at: usize, link: &str| {
            names.get(at).is_some_and(|name| {
                let name = name.rsplit("::").next().unwrap_or(name);
                name.strip_suffix(".cold").unwrap_or(name) == link
            })
        };
        (0..names.len()).any(|first| {
            is(first, innermost)
                && (first + 1..=first + 1 + self.between).any(|second| {
                    let mut rest = self.chain[1..].iter().enumerate();
                    rest.all(|(i, link)| is(second + i, link))
                })
        })
    }
}

/// Demands the chain in at least 995 of 1,000 samples on the CPU and blocks off it.
fn chain_is_whole(run: &Run, expected: &Expected<'_>) {
    for (class, least) in [("cpu.user", 100), ("timer", 300)] {
        let sites: Vec<&Value> = run
            .of_type("profile")
            .flat_map(|line| line["sites"].as_array().unwrap())
            .filter(|site| site["class"] == class)
            .collect();
        let sum = |sites: &[&Value]| -> u64 {
            let counts = sites.iter().map(|s| s["count"].as_u64().unwrap());
            counts.sum()
        };
        let all = sum(&sites);
        let (good, others): (Vec<&Value>, Vec<&Value>) =
            sites.into_iter().partition(|site| expected.is_in(site));
        let (early, bad): (Vec<&Value>, Vec<&Value>) = others
            .into_iter()
            .partition(|site| expected.is_about_to_be(site) || expected.was_in(site));
        assert!(all >= least, "{class}: {all} samples");
        assert!(sum(&early) * 20 <= all, "{} of {all} early", sum(&early));
        let all = all - sum(&early);
        // A single one is not five of a thousand: of some 190 samples on the CPU one was in `free` below
        // `middle`, which has the exception by then, and so was right.
        assert!(
            sum(&good) * 1000 >= all * 995 || sum(&bad) == 1,
            "{class}: {} of {all} have the chain; others:\n{:?}",
            sum(&good),
            bad.iter().map(|s| names(s)).collect::<Vec<_>>()
        );
        // What the lines leave out may not hide any: it is less than what may be wrong.
        let rest: u64 = run
            .of_type("profile")
            .filter_map(|line| line["rest"][class].as_u64())
            .sum();
        let time = run.sum("ledger", &format!("/process/classes/{class}"));
        assert!(
            rest * 200 <= time,
            "{class}: {rest} ns of {time} ns are not shown"
        );
    }
    walks_are_whole(run, expected.ends, 5);
}

/// Demands that at most so many of 1,000 walks ended anywhere else.
fn walks_are_whole(run: &Run, ends: &[&str], most: u64) {
    let mut reasons = std::collections::BTreeMap::<&str, u64>::new();
    for line in run.of_type("coverage") {
        for (reason, count) in line["stack_walks"].as_object().unwrap() {
            *reasons.entry(reason).or_default() += count.as_u64().unwrap();
        }
    }
    let all: u64 = reasons.values().sum();
    let whole: u64 = ends.iter().filter_map(|end| reasons.get(end)).sum();
    assert!(all > 20, "{reasons:?}");
    assert!((all - whole) * 1000 <= all * most, "{reasons:?}");
}

const WITHOUT: &str = "-fomit-frame-pointer";

#[test]
fn c_without_frame_pointers() {
    let _alone = alone();
    let built = build("gcc", "chain.c", &["-O2", WITHOUT]);
    chain_is_whole(&trace(&built, &[]), &PLAIN);
}

#[test]
fn c_with_frame_pointers() {
    let _alone = alone();
    let built = build("gcc", "chain.c", &["-O2", "-fno-omit-frame-pointer"]);
    chain_is_whole(&trace(&built, &[]), &PLAIN);
}

#[test]
fn c_linked_statically_at_a_fixed_address() {
    let _alone = alone();
    let built = build("gcc", "chain.c", &["-O2", WITHOUT, "-static", "-no-pie"]);
    chain_is_whole(&trace(&built, &[]), &PLAIN);
}

/// Its own functions are in `.debug_frame` alone; `.eh_frame` has those of the C library's start code.
#[test]
fn c_with_nothing_but_debug_information() {
    let _alone = alone();
    let flags = ["-O2", WITHOUT, "-g", "-fno-asynchronous-unwind-tables"];
    let built = build("gcc", "chain.c", &flags);
    chain_is_whole(&trace(&built, &[]), &PLAIN);
}

#[test]
fn c_below_a_signal_handler() {
    let _alone = alone();
    let built = build("gcc", "chain.c", &["-O2", WITHOUT]);
    // The handler, the trampoline, and the C library's own way of raising the signal, which two of 210 samples
    // were in.
    let expected = Expected {
        between: 8,
        // Where libc has its symbols, and where it is stripped.
        callers: &["__GI_raise", "gsignal"],
        ..PLAIN
    };
    chain_is_whole(&trace(&built, &["signal"]), &expected);
}

#[test]
fn cpp_with_an_exception_in_flight() {
    let _alone = alone();
    let built = build("g++", "chain.c", &["-x", "c++", "-O2", WITHOUT]);
    let run = trace(&built, &[]);
    // Some samples are of the throwing itself, below `inner`.
    let expected = Expected {
        chain: &CHAIN[1..],
        // Who catches it: two of 234 samples were below its handler.
        goes_on: true,
        ..PLAIN
    };
    chain_is_whole(&run, &expected);
    // The others are below the landing pad's destructor.
    let in_leaf = ["leaf", "Guard::~Guard()", "inner.cold", "middle"];
    let deep = run
        .of_type("profile")
        .flat_map(|line| line["sites"].as_array().unwrap())
        .any(|site| names(site).windows(4).any(|frames| frames == in_leaf));
    assert!(deep, "{}", run.text);
}

#[test]
fn rust_that_aborts_on_panic() {
    let _alone = alone();
    let flags = [
        "--edition=2024",
        "-O",
        "-Cpanic=abort",
        "-Cforce-frame-pointers=no",
    ];
    let built = build("rustc", "chain.rs", &flags);
    // The C function `main` that rustc makes around Rust's has no unwind information in such a
    // program: walks end there, behind everything that is the program's own.
    let expected = Expected {
        ends: &["complete", "no_row"],
        ..PLAIN
    };
    chain_is_whole(&trace(&built, &[]), &expected);
}

/// Calls that only a return address tells apart are told apart in each block, remembered or not:
/// each was blocked as often as the program counts. A tracer that comes and goes meanwhile changes
/// nothing that is remembered.
#[test]
fn calls_of_one_function_are_told_apart() {
    let _alone = alone();
    let built = build("gcc", "callers.c", &["-O2", WITHOUT]);
    let mut program = Traced::start(Command::new(&built.program), "callers");
    let agent = Agent::start(["trace", "-p", &program.pid().to_string()]);
    agent.attached();
    program.go();
    let pid = program.pid().to_string();
    agent::run(["trace", "-p", &pid, "--duration", "1s"], PATIENCE).ended_well("duration");
    let done = program.done(PATIENCE);
    program.go();
    let run = agent.finish(PATIENCE);
    assert!(program.end(PATIENCE).success());
    run.ended_well("target_exit").lost_nothing();
    let mut blocks = BTreeMap::<&str, u64>::new();
    for line in run.of_type("profile") {
        for site in line["sites"].as_array().unwrap() {
            if site["class"] != "timer" {
                continue;
            }
            let stack = names(site);
            let doze = stack.iter().position(|name| *name == "doze");
            let caller = stack[doze.unwrap_or_else(|| panic!("{stack:?}")) + 1];
            *blocks.entry(caller).or_default() += site["count"].as_u64().unwrap();
        }
    }
    assert_eq!(serde_json::json!(blocks), done);
    let memo = |field: &str| run.sum("coverage", &format!("/stack_memo/{field}"));
    assert!(
        memo("checked") > 0 && memo("mismatched") == 0,
        "{}",
        run.text
    );
    assert!(
        memo("hits") > 4 * memo("walks"),
        "the memo was not put to the test: {} hits, {} walks",
        memo("hits"),
        memo("walks")
    );
}

/// Traces a server in the middle of its work: fewer than 1 % of its walks fail, and fewer than
/// 0.5 % of the remembered stacks were wrong, of which all are checked here.
fn server_is_walked(pid: u32) -> Run {
    server_is_walked_often(pid, 100)
}

/// As [`server_is_walked`], with at least so many remembered stacks checked.
fn server_is_walked_often(pid: u32, least: u64) -> Run {
    let pid = pid.to_string();
    let mut arguments = vec!["trace", "-p", &pid, "--duration", "4s"];
    // What these servers send in a second is more than is read of sockets in one.
    arguments.extend(["--sockets", "off", "--memo-check-one-in", "1"]);
    let run = agent::run(arguments, PATIENCE);
    run.ended_well("duration").lost_nothing();
    walks_are_whole(&run, &["complete"], 10);
    let memo = |field: &str| run.sum("coverage", &format!("/stack_memo/{field}"));
    let (checked, mismatched) = (memo("checked"), memo("mismatched"));
    println!("{mismatched} of {checked} remembered stacks were wrong");
    assert!(checked >= least, "{checked} remembered stacks checked");
    assert!(mismatched * 200 <= checked, "{mismatched} of {checked}");
    run
}

#[test]
fn redis_is_walked_to_its_main() {
    let _alone = alone();
    let (mut server, port) = servers::redis();
    let _load = servers::redis_load(port);
    let run = server_is_walked(server.pid());
    assert!(server.runs());
    let waits: Vec<Vec<&str>> = run
        .of_type("profile")
        .flat_map(|line| line["sites"].as_array().unwrap())
        .filter(|site| site["syscall"] == "epoll_wait")
        .map(names)
        .collect();
    assert!(!waits.is_empty(), "{}", run.text);
    for wait in waits {
        assert!(
            wait.contains(&"main") && wait.contains(&"aeMain"),
            "{wait:?}"
        );
    }
}

#[test]
fn postgres_is_walked_to_its_main() {
    let _alone = alone();
    let mut postgres = Postgres::start();
    let _load = postgres.load();
    let _run = server_is_walked(postgres.server.pid());
    assert!(postgres.server.runs());
}

#[test]
fn python_is_walked_to_its_main() {
    let _alone = alone();
    let (mut server, _directory) = servers::python();
    let _run = server_is_walked(server.pid());
    assert!(server.runs());
}

#[test]
fn nginx_is_walked_to_its_main() {
    let _alone = alone();
    let mut nginx = Nginx::start();
    let _loads = [
        nginx.load(&format!("http://127.0.0.1:{}/small", nginx.http)),
        nginx.load(&format!("https://127.0.0.1:{}/small", nginx.https)),
    ];
    // Under two loads it hardly ever blocks: 52 were checked once.
    let _run = server_is_walked_often(nginx.server.pid(), 20);
    assert!(nginx.server.runs());
}

#[test]
fn mariadb_is_walked_to_its_threads_beginning() {
    let _alone = alone();
    let mut mariadb = Mariadb::start();
    let _load = mariadb.load();
    let _run = server_is_walked(mariadb.server.pid());
    assert!(mariadb.server.runs());
}

#[test]
fn memcached_is_walked_to_its_threads_beginning() {
    let _alone = alone();
    let (mut server, port) = servers::memcached();
    let _load = servers::memcached_load(port);
    let _run = server_is_walked(server.pid());
    assert!(server.runs());
}

#[test]
fn a_rust_program_is_walked_to_its_threads_beginning() {
    let _alone = alone();
    let mut program = Traced::workload(&["lockfight", "--seconds", "30"]);
    program.go();
    let _run = server_is_walked(program.pid());
}

/// Go's functions have frame pointers and no unwind information that is read (their `.debug_frame` is
/// compressed). A stack ends where the runtime goes to the thread's own: what a goroutine waits for, no
/// thread waits for.
#[test]
fn a_go_program_is_walked_to_the_beginning_of_its_stacks() {
    let _alone = alone();
    let built = GoProgram::build("chain.go");
    // Goroutines let go of the CPU at calls alone in the second run: by `morestack`, which is rare otherwise.
    for preempted in ["asyncpreemptoff=0", "asyncpreemptoff=1"] {
        let mut chain = Command::new(built.path());
        chain.env("GODEBUG", preempted);
        let mut chain = Traced::start(chain, "chain");
        chain.go();
        go_stacks_are_whole(&server_is_walked(chain.pid()));
    }
}

fn go_stacks_are_whole(run: &Run) {
    let sites: Vec<&Value> = run
        .of_type("profile")
        .flat_map(|line| line["sites"].as_array().unwrap())
        .collect();
    let count = |sites: &mut dyn Iterator<Item = &&Value>| -> u64 {
        sites.map(|site| site["count"].as_u64().unwrap()).sum()
    };
    // On the CPU it is in the chain, but for what the runtime does itself. `compute` has no frame, and so
    // no frame pointer of its own: `leaf`, which calls it, is not there.
    let chain = Expected {
        chain: &["main.inner", "main.middle", "main.outer", "main.main"],
        ..PLAIN
    };
    let on_cpu = |site: &&&Value| site["class"] == "cpu.user";
    let (all, good) = (
        count(&mut sites.iter().filter(on_cpu)),
        count(&mut sites.iter().filter(on_cpu).filter(|site| chain.is_in(site))),
    );
    assert!(all >= 100 && good * 100 >= all * 90, "{good} of {all}");
    // Threads wait for work, in the runtime's scheduler, and none for the mutex.
    let (blocked, without): (Vec<&&Value>, Vec<&&Value>) = sites
        .iter()
        .filter(|site| site["syscall"] == "futex")
        .partition(|site| !names(site).is_empty());
    // One wait of 6 µs, among all of one run, had no stack; of a thread that waited when the trace began
    // nothing tells it, but that it was one of these was not seen.
    let (waits, untold) = (
        count(&mut blocked.iter().copied()),
        count(&mut without.iter().copied()),
    );
    assert!(
        waits > 0 && untold * 100 <= waits,
        "{untold}, {waits} with a stack"
    );
    for site in blocked {
        assert_eq!(names(site).first(), Some(&"runtime.futex"), "{site}");
        assert!(
            !names(site).iter().any(|name| name.contains("sync.")),
            "{site}"
        );
        let morestack = names(site)
            .iter()
            .position(|name| *name == "runtime.morestack");
        assert!(
            morestack.is_none_or(|at| at + 1 == names(site).len()),
            "{site}"
        );
    }
}
