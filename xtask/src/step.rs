//! One child process that may take long: named, its output passed on line by line, a sign of life
//! where it is silent, and a failure that says which step it was.

use std::{
    io::{self, BufRead as _, BufReader, IsTerminal as _, Read, Write as _},
    process::{Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// How long a child may be silent before a line says that it still runs.
const HEARTBEAT: Duration = Duration::from_secs(20);

/// Which stream of the child a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Out,
    Err,
}

/// Runs a command to its end, its output passed on to standard error.
///
/// # Errors
/// Where it cannot be started or does not succeed.
pub fn run(label: &str, command: &mut Command) -> Result<()> {
    let status = run_lines(label, command, |_, line| {
        let _ = writeln!(io::stderr(), "{line}");
    })?;
    if !status.success() {
        bail!("{label}: {status}\n  command: {}", show(command));
    }
    Ok(())
}

/// Runs a command to its end and hands each line of its output to `on_line`.
///
/// # Errors
/// Where it cannot be started or waited for. Its own failure is in the status.
pub fn run_lines(
    label: &str,
    command: &mut Command,
    on_line: impl FnMut(Stream, &str),
) -> Result<ExitStatus> {
    run_lines_for(label, command, HEARTBEAT, on_line)
}

fn run_lines_for(
    label: &str,
    command: &mut Command,
    heartbeat: Duration,
    mut on_line: impl FnMut(Stream, &str),
) -> Result<ExitStatus> {
    if io::stderr().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{label}: starting {}", show(command)))?;
    let (sender, lines) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        forward(stdout, Stream::Out, sender.clone());
    }
    if let Some(stderr) = child.stderr.take() {
        forward(stderr, Stream::Err, sender.clone());
    }
    drop(sender);

    let started = Instant::now();
    loop {
        match lines.recv_timeout(heartbeat) {
            Ok((stream, line)) => on_line(stream, &line),
            Err(RecvTimeoutError::Timeout) => {
                // A program that it left behind may keep its output open for ever.
                if let Ok(Some(status)) = child.try_wait() {
                    eprintln!("    {label}: a process that it started still runs");
                    return Ok(status);
                }
                eprintln!("    ... {label}: {} s", started.elapsed().as_secs());
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    child.wait().with_context(|| format!("{label}: waiting"))
}

fn forward(
    source: impl Read + Send + 'static,
    stream: Stream,
    sender: mpsc::Sender<(Stream, String)>,
) {
    thread::spawn(move || {
        let mut reader = BufReader::new(source);
        let mut bytes = Vec::new();
        while matches!(reader.read_until(b'\n', &mut bytes), Ok(n) if n > 0) {
            let line = String::from_utf8_lossy(&bytes);
            let sent = sender.send((stream, line.trim_end_matches(['\n', '\r']).to_owned()));
            bytes.clear();
            if sent.is_err() {
                return;
            }
        }
    });
}

/// Standard output of a short command, where it succeeds.
pub fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Whether a short command succeeds; its output is dropped.
pub fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The command as it would be typed.
pub fn show(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        let argument = argument.to_string_lossy();
        if argument.is_empty() || argument.contains([' ', '"', '\'', '$']) {
            text.push_str(&format!("'{}'", argument.replace('\'', r"'\''")));
        } else {
            text.push_str(&argument);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_both_streams_arrive_with_the_status() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; printf two >&2; exit 3"]);
        let mut seen = Vec::new();
        let status = run_lines("both", &mut command, |stream, line| {
            seen.push((stream, line.to_owned()));
        })
        .expect("sh runs");
        seen.sort_by(|a, b| a.1.cmp(&b.1));
        assert_eq!(
            seen,
            [
                (Stream::Out, "one".to_owned()),
                (Stream::Err, "two".to_owned())
            ]
        );
        assert_eq!(status.code(), Some(3));
    }

    #[test]
    fn what_a_step_leaves_running_is_not_waited_for() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & echo $!; exit 3"]);
        let mut left = None;
        let heartbeat = Duration::from_millis(50);
        let status = run_lines_for("leaves", &mut command, heartbeat, |_, line| {
            left = line.parse::<i32>().ok();
        })
        .expect("sh runs");
        assert_eq!(status.code(), Some(3));
        let left = left.expect("its number");
        // SAFETY: a signal to the process that was started above.
        assert_eq!(
            unsafe { libc::kill(left, libc::SIGKILL) },
            0,
            "it still ran"
        );
    }

    #[test]
    fn a_failing_step_is_named_with_its_command() {
        let error = run("the step", Command::new("sh").args(["-c", "exit 1"]))
            .expect_err("exit 1 is a failure");
        let text = format!("{error:#}");
        assert!(text.starts_with("the step: "), "{text}");
        assert!(text.contains("sh -c 'exit 1'"), "{text}");
    }
}
