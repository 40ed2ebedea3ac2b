//! Sockets and commands, with readers that are late, slow, dead or gone.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::*;
use crate::fixtures::{full_finding, full_lines};
use crate::model::{Bye, Coverage, Finding, State, Window};

/// Longer than any test waits for what happens.
const LONG: Duration = Duration::from_secs(60);

fn limits(queue_bytes: usize, patience: Duration) -> Limits {
    Limits {
        queue_bytes,
        patience,
    }
}

/// Takes all there is, however slow the reader.
fn patient() -> Limits {
    limits(QUEUE_BYTES, LONG)
}

fn hello() -> Line {
    let mut lines = full_lines().into_iter();
    lines.find(|l| matches!(l.body, Body::Hello(_))).unwrap()
}

fn bye() -> Line {
    let mut lines = full_lines().into_iter();
    let line = lines.find(|l| matches!(l.body, Body::Bye(_))).unwrap();
    let Body::Bye(bye) = line.body else {
        panic!("just found");
    };
    Line::new(Body::Bye(Bye {
        streams: Vec::new(),
        ..bye
    }))
}

fn coverage(window: u64) -> Line {
    Line::new(Body::Coverage(Coverage {
        window: span(window),
        ..Coverage::default()
    }))
}

fn span(window: u64) -> Window {
    Window {
        start_ns: window * 100,
        end_ns: (window + 1) * 100,
    }
}

fn finding(id: &str, window: u64, state: State) -> Line {
    Line::new(Body::Finding(Finding {
        id: id.into(),
        window: span(window),
        state,
        delegate_to: "dba".into(),
        ..full_finding()
    }))
}

fn give(socket: &Socket, line: &Line) {
    socket.line(line, &queue::text(line).unwrap());
}

fn feed(exec: &Exec, line: &Line) {
    exec.line(line, &queue::text(line).unwrap());
}

fn at(directory: &tempfile::TempDir, name: &str) -> PathBuf {
    directory.path().join(name)
}

/// Type of each line, with id or window where it has one.
fn kinds(text: &str) -> Vec<String> {
    let kind = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap();
        let kind = value["type"].as_str().unwrap().to_owned();
        match kind.as_str() {
            "finding" => format!(
                "{}@{}",
                value["id"].as_str().unwrap(),
                value["window"]["start_ns"]
            ),
            "coverage" => format!("coverage@{}", value["window"]["start_ns"]),
            _ => kind,
        }
    };
    text.lines().map(kind).collect()
}

/// Lines received, and lines that the reader was told are missing; `hello` is not counted.
fn tally(text: &str) -> (u64, u64) {
    let lines = text
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).unwrap());
    lines.fold((0, 0), |(lines, dropped), line| {
        match line["type"].as_str() {
            Some("hello") => (lines, dropped),
            Some("dropped") => (lines, dropped + line["lines"].as_u64().unwrap()),
            _ => (lines + 1, dropped),
        }
    })
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn joined(socket: &Socket, path: &Path) -> UnixStream {
    let before = socket.coverage().readers;
    let stream = UnixStream::connect(path).unwrap();
    until("joined", || socket.coverage().readers == before + 1);
    stream
}

#[test]
fn who_comes_late_gets_hello_what_is_open_and_the_newest_window() {
    let directory = tempfile::tempdir().unwrap();
    let path = at(&directory, "s");
    let socket = Socket::open(&path, patient()).unwrap();
    let mut first = joined(&socket, &path);
    for line in [
        hello(),
        finding("a", 0, State::New),
        finding("b", 0, State::New),
        coverage(0),
        finding("a", 1, State::Ongoing),
        coverage(1),
        finding("a", 2, State::Ongoing),
    ] {
        give(&socket, &line);
    }
    // `b` is missing in window 1 and not resolved yet.
    let mut late = joined(&socket, &path);
    for line in [finding("b", 2, State::Resolved), coverage(2)] {
        give(&socket, &line);
    }
    let mut latest = joined(&socket, &path);
    give(&socket, &bye());
    socket.close();
    socket.wait(Instant::now() + LONG);
    let text = |stream: &mut UnixStream| {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        kinds(&text)
    };
    assert_eq!(
        text(&mut first),
        [
            "hello",
            "a@0",
            "b@0",
            "coverage@0",
            "a@100",
            "coverage@100",
            "a@200",
            "b@200",
            "coverage@200",
            "bye"
        ]
    );
    assert_eq!(
        text(&mut late),
        [
            "hello",
            "b@0",
            "a@100",
            "coverage@100",
            "a@200",
            "b@200",
            "coverage@200",
            "bye"
        ]
    );
    assert_eq!(
        text(&mut latest),
        ["hello", "a@200", "b@200", "coverage@200", "bye"]
    );
}

#[test]
fn a_reader_that_does_not_read_delays_nobody_and_misses_exactly_what_it_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = at(&directory, "s");
    let socket = Socket::open(&path, limits(10_000, Duration::ZERO)).unwrap();
    let mut slow = joined(&socket, &path);
    give(&socket, &hello());
    // Some ten times what the queue and the socket's buffers hold.
    let lines = 20_000;
    for n in 0..lines {
        give(&socket, &coverage(n));
    }
    give(&socket, &bye());
    let sum = socket.coverage();
    assert!(sum.dropped > lines / 2, "{sum:?}");
    assert_eq!(sum.lines, lines + 2);
    socket.close();
    let mut text = String::new();
    slow.read_to_string(&mut text).unwrap();
    socket.wait(Instant::now() + LONG);
    assert_eq!(tally(&text), (lines + 1 - sum.dropped, sum.dropped));
    assert_eq!(kinds(&text).last().unwrap(), "bye");
}

#[test]
fn at_the_end_a_reader_that_does_not_read_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let path = at(&directory, "s");
    let socket = Socket::open(&path, limits(QUEUE_BYTES, Duration::ZERO)).unwrap();
    let slow = joined(&socket, &path);
    for n in 0..20_000 {
        give(&socket, &coverage(n));
    }
    socket.close();
    socket.wait(Instant::now());
    // Its thread was woken and has gone.
    until("left", || socket.coverage().readers == 0);
    drop(slow);
}

#[test]
fn a_reader_that_leaves_is_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let path = at(&directory, "s");
    let socket = Socket::open(&path, patient()).unwrap();
    give(&socket, &hello());
    drop(joined(&socket, &path));
    until("gone", || {
        give(&socket, &coverage(0));
        socket.coverage().readers == 0
    });
    assert!(socket.coverage().lines >= 1);
}

#[test]
fn too_many_readers_are_turned_away_and_counted() {
    let directory = tempfile::tempdir().unwrap();
    let path = at(&directory, "s");
    let socket = Socket::open(&path, patient()).unwrap();
    let readers: Vec<UnixStream> = (0..16).map(|_| joined(&socket, &path)).collect();
    let mut one_more = UnixStream::connect(&path).unwrap();
    assert_eq!(one_more.read(&mut [0]).unwrap(), 0);
    let now = socket.coverage();
    assert_eq!((now.readers, now.refused), (readers.len() as u64, 1));
}

#[test]
fn only_a_socket_that_nobody_listens_on_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = at(&directory, "s");
    // Nobody listens on it once the listener is dropped; the file stays.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let socket = Socket::open(&path, patient()).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let refused = |path: &Path| match Socket::open(path, patient()) {
        Ok(_) => panic!("{} was taken", path.display()),
        Err(e) => format!("{e:#}"),
    };
    let error = refused(&path);
    assert!(error.ends_with("another process does already"), "{error}");
    UnixStream::connect(&path).unwrap();
    socket.close();
    assert!(!path.exists());

    fs::write(&path, "text").unwrap();
    let error = refused(&path);
    assert!(
        error.ends_with("there is something that is no socket"),
        "{error}"
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), "text");
    refused(&at(&directory, "no/such/folder"));
}

#[test]
fn at_the_end_no_file_is_removed_but_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let path = at(&directory, "s");
    let socket = Socket::open(&path, patient()).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "another's").unwrap();
    socket.close();
    assert_eq!(fs::read_to_string(&path).unwrap(), "another's");
}

#[test]
fn a_command_gets_its_delegates_findings_and_no_others() {
    let directory = tempfile::tempdir().unwrap();
    let out = at(&directory, "out");
    let command = format!("cat > {}", out.display());
    let exec = Exec::open("dba", &command, patient()).unwrap();
    let other = Line::new(Body::Finding(full_finding()));
    for line in [
        hello(),
        finding("a", 0, State::New),
        other,
        coverage(0),
        finding("a", 1, State::Ongoing),
        bye(),
    ] {
        feed(&exec, &line);
    }
    exec.close();
    exec.wait(Instant::now() + LONG);
    let text = fs::read_to_string(out).unwrap();
    assert_eq!(kinds(&text), ["hello", "a@0", "a@100", "bye"]);
    let row = exec.coverage();
    assert_eq!(
        (row.lines, row.dropped, row.restarts, row.readers),
        (3, 0, 0, 0)
    );
}

#[test]
fn a_command_that_dies_is_started_again_and_what_it_left_unread_is_counted() {
    let directory = tempfile::tempdir().unwrap();
    let out = at(&directory, "out");
    // Reads byte by byte, so that it takes whole lines and no more: the greeting and two others.
    let command = format!(
        "i=0; while [ $i -lt 3 ] && read -r line; do echo \"$line\" >> {}; i=$((i+1)); done",
        out.display()
    );
    let exec = Exec::open("dba", &command, patient()).unwrap();
    feed(&exec, &hello());
    let lines = 12;
    for n in 0..lines {
        feed(&exec, &finding(&format!("f{n}"), n, State::New));
        // In pieces, so that it dies more than once.
        if n % 4 == 3 {
            until("started again", || exec.coverage().restarts > n / 4);
        }
    }
    feed(&exec, &bye());
    exec.close();
    exec.wait(Instant::now() + LONG);
    let text = fs::read_to_string(out).unwrap();
    let (received, told) = tally(&text);
    let row = exec.coverage();
    assert_eq!(row.lines, lines + 1);
    assert_eq!(received + row.dropped, row.lines, "{row:?}\n{text}");
    // Each life began with the greeting, and what was lost was told where another life followed.
    let greetings = kinds(&text).iter().filter(|k| *k == "hello").count() as u64;
    assert_eq!(greetings, row.restarts + 1, "{text}");
    assert!(told > 0 && told <= row.dropped, "{row:?}\n{text}");
}

/// Whether it ends before it was given everything or after.
#[test]
fn what_a_command_leaves_unread_at_the_end_is_counted() {
    let directory = tempfile::tempdir().unwrap();
    let (first, go) = (at(&directory, "first"), at(&directory, "go"));
    let command = format!(
        "read -r hello; read -r line; echo > {}; while [ ! -e {} ]; do sleep 0.01; done",
        first.display(),
        go.display()
    );
    let exec = Exec::open("dba", &command, patient()).unwrap();
    for line in [
        hello(),
        finding("a", 0, State::New),
        finding("b", 1, State::New),
        finding("c", 2, State::New),
        bye(),
    ] {
        feed(&exec, &line);
    }
    exec.close();
    until("one was read", || first.exists());
    fs::write(go, "").unwrap();
    exec.wait(Instant::now() + LONG);
    let row = exec.coverage();
    assert_eq!((row.lines, row.dropped, row.restarts), (4, 3, 0));
}

#[test]
fn a_command_that_does_not_end_is_asked_to() {
    let directory = tempfile::tempdir().unwrap();
    let (up, out) = (at(&directory, "up"), at(&directory, "out"));
    let command = format!(
        "trap 'echo asked > {}; exit' TERM; echo > {}; while :; do read -r line || sleep 0.01; done",
        out.display(),
        up.display()
    );
    let exec = Exec::open("dba", &command, patient()).unwrap();
    until("started", || up.exists());
    exec.close();
    exec.wait(Instant::now());
    assert_eq!(fs::read_to_string(out).unwrap(), "asked\n");
}

#[test]
fn a_command_that_is_just_being_started_is_asked_to_end_as_well() {
    let exec = Exec::open("dba", "sleep 1000", patient()).unwrap();
    exec.close();
    exec.wait(Instant::now());
    until("ended", || exec.coverage().readers == 0);
}

#[test]
fn a_command_that_does_not_read_costs_only_its_own_lines() {
    let exec = Exec::open("dba", "sleep 1000", limits(10_000, Duration::ZERO)).unwrap();
    feed(&exec, &hello());
    for n in 0..2_000 {
        feed(&exec, &finding("a", n, State::Ongoing));
    }
    let row = exec.coverage();
    assert_eq!(row.lines, 2_000);
    assert!(row.dropped > 1_000, "{row:?}");
    exec.close();
    // SIGTERM ends it.
    exec.wait(Instant::now());
    until("ended", || exec.coverage().readers == 0);
}

#[test]
fn what_streams_were_given_is_in_the_coverage_and_in_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let (path, out) = (at(&directory, "s"), at(&directory, "out"));
    let file = tempfile::NamedTempFile::new().unwrap();
    let inner = crate::sink::open(&crate::cli::OutputOptions {
        format: crate::cli::Format::Ndjson,
        output: Some(file.path().to_owned()),
        rotate: None,
    });
    let options = StreamOptions {
        listen: Some(path.clone()),
        execs: vec![("dba".into(), format!("cat > {}", out.display()))],
        queue_bytes: None,
    };
    let mut sink = open(inner.unwrap(), &options, true).unwrap();
    let mut reader = BufReader::new(UnixStream::connect(&path).unwrap());
    sink.line(&hello()).unwrap();
    let mut line = String::new();
    // Joined, now.
    reader.read_line(&mut line).unwrap();
    for line in [finding("a", 0, State::New), coverage(0), coverage(1), bye()] {
        sink.line(&line).unwrap();
    }
    sink.finish().unwrap();
    let text = fs::read_to_string(file.path()).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let rows = |line: &Value| {
        let of = |row: &Value| (row["stream"].clone(), row["lines"].as_u64().unwrap());
        let rows = line["streams"].as_array().unwrap();
        rows.iter().map(of).collect::<Vec<_>>()
    };
    let (listen, exec) = (Value::from("listen"), Value::from("exec"));
    // Hello and the finding; the coverage before; all but the bye itself.
    assert_eq!(rows(&lines[2]), [(listen.clone(), 2), (exec.clone(), 1)]);
    assert_eq!(rows(&lines[3]), [(listen.clone(), 1), (exec.clone(), 0)]);
    assert_eq!(rows(&lines[4]), [(listen, 4), (exec, 1)]);
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    // Every reader has the same bytes.
    assert_eq!(line + &rest, text);
    assert_eq!(
        kinds(&fs::read_to_string(out).unwrap()),
        ["hello", "a@0", "bye"]
    );
    assert!(!path.exists());
}
