//! The text of the summary: the answer first, then what it rests on.

use std::collections::BTreeMap;

use perf_ebpf_common::signals::python;

use super::findings;
use super::peers;
use super::requests;
use super::sections;
use super::state::{FindingSum, ProcessSum, State, is_idle};
use crate::sink::text::{Align, Span, Style, Table, Text, plain};
use crate::sink::units;

/// Processes with a section of their own.
const SECTIONS: usize = 3;
/// Processes in the table of the others.
const OTHERS: usize = 20;

/// The summary of what `state` holds. `live`: it is of the last window and will be drawn over.
pub fn render(state: &State, live: bool) -> Text {
    let mut text = Text::default();
    let top = top_finding(state);
    text.line(answer(state, top.as_ref()));
    if let Some(step) = top.as_ref().and_then(next_step) {
        text.line([plain(step)]);
    }
    text.line([(Style::Dim, about(state, live))]);
    for signal in off_signals(state) {
        text.line([(Style::Dim, signal)]);
    }
    let ranked = state.ranked();
    state.requests.section(&mut text);
    state.peers.statements(&mut text, state.wall_ns);
    state.peers.connections(&mut text);
    for process in ranked.iter().take(SECTIONS) {
        section(&mut text, state, process, live);
    }
    others(&mut text, state, &ranked);
    text.gap();
    for line in coverage(state) {
        text.line(line);
    }
    text
}

/// The finding worth most. Where processes of one program share it (PostgreSQL's backends, workers of a
/// server), it is worth what it is in all of them.
struct Top<'a> {
    /// Where it is worth most.
    process: &'a ProcessSum,
    finding: &'a FindingSum,
    score: f64,
    /// Those that have it.
    processes: usize,
    bound_ns_per_s: u64,
}

fn top_finding(state: &State) -> Option<Top<'_>> {
    let mut tops: BTreeMap<&str, Top> = BTreeMap::new();
    for process in state.processes.values() {
        let ranked = process.ranked_findings().into_iter();
        for (finding, _) in ranked.filter(|(_, depth)| *depth == 0) {
            let score = finding.score();
            let top = tops.entry(&finding.peak.id).or_insert(Top {
                process,
                finding,
                score: 0.0,
                processes: 0,
                bound_ns_per_s: 0,
            });
            if score > top.finding.score() {
                (top.process, top.finding) = (process, finding);
            }
            top.score += score;
            top.processes += 1;
            top.bound_ns_per_s += finding.bound_ns_per_s(state.wall_ns);
        }
    }
    let tops = tops.into_values();
    tops.max_by(|a, b| a.score.total_cmp(&b.score))
}

/// What a category's time is called, and which classes it is in; `None` where it is not a part of the
/// threads' time.
fn phrase(category: &str) -> Option<(&'static str, &'static [&'static str])> {
    Some(match category {
        "cpu_bound" => ("computing", &["cpu.user", "cpu.kernel"]),
        "run_queue" => ("waiting for a CPU", &["runq"]),
        "lock_contention" => ("waiting for a lock", &["lock"]),
        "disk_wait" => ("waiting for the disk", &["disk"]),
        "page_faults" => ("in page faults", &["fault"]),
        "network_wait" | "chatty" => ("waiting for a peer", &["net."]),
        "syscall_storm" | "error_storm" => ("in the kernel", &["cpu.kernel"]),
        "sleep_poll" => ("asleep or waking up for nothing", &["timer"]),
        _ => return None,
    })
}

fn time_in(process: &ProcessSum, classes: &[&str]) -> u64 {
    let matches = |class: &str| {
        classes
            .iter()
            .any(|c| class == *c || c.ends_with('.') && class.starts_with(c))
    };
    let times = process.classes.iter().filter(|(class, _)| matches(class));
    times.map(|(_, ns)| ns).sum()
}

fn named(process: &ProcessSum) -> String {
    format!("{} (pid {})", process.who.comm, process.who.pid)
}

/// The first line: the top finding in words, or where the time went.
fn answer(state: &State, top: Option<&Top>) -> Vec<Span> {
    if let Some(top) = top {
        let (process, finding) = (top.process, top.finding);
        let bound = units::duration_per_s(top.bound_ns_per_s);
        let (name, of_all) = match top.processes {
            1 => (named(process), ""),
            n => (
                format!("{} and {} like it", named(process), n - 1),
                " in all of them",
            ),
        };
        let gain = format!("; a fix gains at most {bound}{of_all}");
        let name = (Style::Bold, name);
        let Some((doing, classes)) = phrase(&finding.peak.category) else {
            let title = (Style::Bold, finding.peak.title.clone());
            return vec![name, plain(": "), title, plain(gain)];
        };
        return vec![
            name,
            plain(format!(
                ": {} of {} thread time {doing} — ",
                units::percent(time_in(process, classes), process.lifetime_ns),
                units::duration(process.lifetime_ns),
            )),
            (Style::Bold, finding.peak.subject.clone()),
            plain(gain),
        ];
    }
    let Some(process) = state.ranked().first().copied() else {
        return vec![plain("No thread of the target was seen")];
    };
    let lifetime = process.lifetime_ns;
    let idle: u64 = process
        .lifetime_ns
        .saturating_sub(process.busy_ns() + process.residual_ns);
    let busy = process.classes.iter().filter(|(class, _)| !is_idle(class));
    let most = match busy.max_by_key(|(_, ns)| **ns) {
        Some((class, ns)) => format!(
            ", most of the rest in {class} ({})",
            units::percent(*ns, lifetime)
        ),
        None => String::new(),
    };
    vec![
        (Style::Bold, named(process)),
        plain(format!(
            ": no bottleneck above 1 %; {} of {} thread time idle or asleep{most}",
            units::percent(idle, lifetime),
            units::duration(lifetime),
        )),
    ]
}

/// The second line: what to do about the first, and who should.
fn next_step(top: &Top) -> Option<String> {
    let finding = &top.finding.peak;
    let first = finding.recommendations.first()?;
    Some(format!("→ {first} · for {}", finding.delegate_to))
}

fn about(state: &State, live: bool) -> String {
    let mut parts = Vec::new();
    if live {
        parts.push(format!(
            "last {} (Ctrl-C ends)",
            units::duration(state.wall_ns)
        ));
    } else {
        let plural = if state.windows == 1 { "" } else { "s" };
        let wall = units::duration(state.wall_ns);
        parts.push(format!("{wall} in {} window{plural}", state.windows));
        parts.extend(
            state
                .ended
                .as_ref()
                .map(|reason| format!("ended by {reason}")),
        );
    }
    if let Some(hello) = &state.hello {
        parts.push(format!("Linux {} {}", hello.kernel, hello.arch));
        parts.push(format!("{} CPUs", hello.cpus));
        parts.push(format!("perf-agent {}", hello.agent));
    }
    parts.join(" · ")
}

/// What is off and may be missed: TLS, which must be asked for, only where the target speaks it.
fn off_signals(state: &State) -> Vec<String> {
    let encrypted = state.coverage.sockets.tls_unreadable_bytes > 0;
    let signals = state.hello.iter().flat_map(|hello| &hello.signals);
    signals
        .filter(|signal| !signal.on && (signal.name != "tls" || encrypted))
        .map(|signal| format!("signal {} is off: {}", signal.name, signal.reason))
        .collect()
}

fn section(text: &mut Text, state: &State, process: &ProcessSum, live: bool) {
    let wall_ns = state.wall_ns;
    text.gap();
    let cores = time_in(process, &["cpu."]) as f64 / wall_ns.max(1) as f64;
    let threads = process.threads.len();
    let plural = if threads == 1 { "" } else { "s" };
    text.line([
        (Style::Cyan, named(process)),
        plain(format!(
            ": {threads} thread{plural}, {} thread time, {cores:.2} CPUs used",
            units::duration(process.lifetime_ns)
        )),
    ]);
    findings::findings(text, process, state, live);
    sections::ledger(text, process);
    sections::threads(text, process);
    sections::sites(text, process);
    sections::locks(text, process);
    sections::syscalls(text, process, wall_ns);
    sections::block_io(text, process);
    sections::facts(text, process, wall_ns);
}

/// One line each for the processes without a section.
fn others(text: &mut Text, state: &State, ranked: &[&ProcessSum]) {
    if ranked.len() <= SECTIONS {
        return;
    }
    text.gap();
    let others = &ranked[SECTIONS..];
    text.line([(Style::Cyan, format!("{} other processes", others.len()))]);
    let mut table = Table::new(&[
        ("pid", Align::Right),
        ("name", Align::Left),
        ("busy", Align::Right),
        ("share", Align::Right),
        ("most in", Align::Left),
    ]);
    for process in others.iter().take(OTHERS) {
        let busy = process.classes.iter().filter(|(class, _)| !is_idle(class));
        let most = busy
            .max_by_key(|(_, ns)| **ns)
            .map(|(class, _)| class.clone());
        table.row(vec![
            plain(process.who.pid.to_string()),
            plain(process.who.comm.clone()),
            plain(units::duration(process.busy_ns())),
            plain(units::percent(process.busy_ns(), process.lifetime_ns)),
            plain(most.unwrap_or_default()),
        ]);
    }
    table.put(text);
    let rest = others.len().saturating_sub(OTHERS) as u64 + state.given_up;
    if rest > 0 {
        text.line([(Style::Dim, format!("    … and {rest} more"))]);
    }
}

/// What the figures rest on, in one line; a second one where something was lost.
fn coverage(state: &State) -> Vec<Vec<Span>> {
    let c = &state.coverage;
    let lost: u64 = c.lost.values().sum();
    let rate = |ns: u64| {
        let per_s = ns as f64 * 1e9 / state.wall_ns.max(1) as f64;
        units::duration_per_s(per_s as u64)
    };
    let lost_text = match lost {
        0 => (Style::Plain, "lost 0".to_owned()),
        _ => {
            let reasons: Vec<String> = c.lost.iter().map(|(k, n)| format!("{k} {n}")).collect();
            (
                Style::Yellow,
                format!("lost {lost} ({})", reasons.join(", ")),
            )
        }
    };
    let memo = &c.stack_memo;
    let given_up = state.processes.values().map(|p| p.given_up).sum::<u64>()
        + state.peers.given_up
        + state.requests.given_up;
    let mut line = vec![
        (Style::Bold, "coverage".to_owned()),
        plain(format!(
            ": {} thread time, {} of it unexplained · ",
            units::duration(c.lifetime_ns),
            units::percent(c.residual_ns, c.lifetime_ns),
        )),
        lost_text,
        plain(format!(
            " · {} of {} frames without a symbol",
            units::count(c.unsymbolized_frames),
            units::count(c.frames),
        )),
    ];
    if memo.hits + memo.walks > 0 {
        line.push(plain(format!(
            " · {} of {} remembered stacks checked were wrong",
            units::count(memo.mismatched),
            units::count(memo.checked),
        )));
    }
    if let Some(sockets) = peers::coverage(&c.sockets, c.bytes_seen, c.bytes_decoded) {
        line.push(plain(format!(" · {sockets}")));
    }
    if let Some(requests) = requests::coverage(&c.requests) {
        line.push(plain(format!(" · {requests}")));
    }
    let python_ends = python::Stop::ALL.map(python::Stop::name);
    let walks: u64 = c.stack_walks.values().sum();
    let whole = c.stack_walks.get("complete").copied().unwrap_or(0);
    if walks > 0 {
        line.push(plain(format!(
            " · {} of {} stack walks incomplete",
            units::count(walks - whole),
            units::count(walks),
        )));
    }
    let python: u64 = python_ends
        .iter()
        .filter_map(|end| c.python_walks.get(*end))
        .sum();
    let whole = c.python_walks.get("complete").copied().unwrap_or(0);
    if python > 0 {
        line.push(plain(format!(
            " · {} of {} Python stacks incomplete",
            units::count(python - whole),
            units::count(python),
        )));
    }
    line.push(plain(format!(
        " · agent {} CPU, {} in kernel programs, {}",
        rate(c.agent.cpu_ns),
        rate(c.agent.bpf_ns),
        units::bytes(c.agent.rss_bytes),
    )));
    let mut lines = Vec::new();
    if given_up > 0 {
        lines.push(vec![(
            Style::Yellow,
            format!("{given_up} small rows were left out of this summary; the NDJSON has them"),
        )]);
    }
    lines.push(line);
    lines
}
