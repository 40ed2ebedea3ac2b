//! Boots one kernel with one initramfs and collects what it sends.
//!
//! The console goes to one file and data through a second serial line to another, so that kernel
//! messages never fall into the data. Files inside the data stand between a line that begins and
//! one that ends them, the latter after a line's end of its own and with the exit code of the command
//! that made the file.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};

/// How often the data is looked at while the machine runs.
const POLL: Duration = Duration::from_millis(100);
/// How long a machine may send nothing before a line says that it still runs.
const HEARTBEAT: Duration = Duration::from_secs(20);
/// A CPU that hangs ends the machine, with the stacks of all of them on the console: a deadlock in
/// the kernel is what tracing it must never bring about.
const APPEND: &str = "console=ttyS0 panic=-1 loglevel=5 softlockup_panic=1 \
                      softlockup_all_cpu_backtrace=1";
const BEGIN: &str = "<<<begin ";
const END: &str = "<<<end ";
/// Last line of the data: everything was sent.
const DONE: &str = "<<<done>>>";

/// What to boot, and for how long at most.
pub struct Machine<'a> {
    pub kernel: &'a Path,
    pub initramfs: &'a Path,
    /// `tcg` (software emulation) or `kvm`.
    pub accelerator: &'a str,
    pub limit: Duration,
    /// Where console and data are kept.
    pub directory: &'a Path,
    pub label: &'a str,
}

/// A file the machine sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    pub text: String,
    /// Exit code of the command that made it.
    pub code: i32,
}

/// What came out of a machine.
#[derive(Debug)]
pub struct Outcome {
    /// From the start of QEMU to the first line of the initramfs's own program.
    pub boot: Duration,
    pub files: BTreeMap<String, Sent>,
}

/// Kills the machine where the task ends before the machine does.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Machine<'_> {
    /// Boots, waits until the machine powers itself off, and reads what it sent.
    ///
    /// # Errors
    /// Where QEMU cannot be started, the time limit passes, or the data is not complete; the
    /// message has the end of the console.
    pub fn run(&self) -> Result<Outcome> {
        let console = self.directory.join("console.log");
        let data = self.directory.join("data.log");
        for stale in [&console, &data] {
            let _ = fs::remove_file(stale);
        }
        let started = Instant::now();
        let mut command = self.command(&console, &data);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", crate::step::show(&command)))?;
        let boot = self.wait(Guard(child), started, &data);
        let boot = boot.map_err(|error| anyhow!("{error:#}\n{}", console_end(&console)))?;
        let text = String::from_utf8_lossy(
            &fs::read(&data).with_context(|| format!("reading {}", data.display()))?,
        )
        .into_owned();
        if !text.lines().any(|line| line == DONE) {
            bail!(
                "the machine went down before it had sent everything\n{}",
                console_end(&console)
            );
        }
        Ok(Outcome {
            boot: boot.context("the machine never came up")?,
            files: parse(&text),
        })
    }

    fn command(&self, console: &Path, data: &Path) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        let accelerator = match self.accelerator {
            // With a thread for each CPU, QEMU 7.2 at times goes on running a breakpoint that the
            // kernel put into its own code while attaching a tracepoint and has long taken out.
            "tcg" => "tcg,thread=single",
            other => other,
        };
        command
            .args(["-nodefaults", "-no-reboot", "-display", "none"])
            .args(["-accel", accelerator, "-cpu", "max"])
            .args(["-smp", "2", "-m", "1536"])
            .arg("-serial")
            .arg(prefixed("file:", console))
            .arg("-serial")
            .arg(prefixed("file:", data))
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initramfs)
            .args(["-append", APPEND]);
        command
    }

    /// Waits for the machine's end; when the first line came, where one did.
    fn wait(&self, mut guard: Guard, started: Instant, data: &Path) -> Result<Option<Duration>> {
        let mut boot = None;
        let mut spoke = started;
        loop {
            if boot.is_none() && fs::metadata(data).is_ok_and(|file| file.len() > 0) {
                boot = Some(started.elapsed());
            }
            if let Some(status) = guard.0.try_wait().context("waiting for QEMU")? {
                if status.success() {
                    return Ok(boot);
                }
                let mut complaint = String::new();
                if let Some(mut stderr) = guard.0.stderr.take() {
                    let _ = std::io::Read::read_to_string(&mut stderr, &mut complaint);
                }
                bail!("QEMU: {status}: {}", complaint.trim());
            }
            if started.elapsed() > self.limit {
                bail!("not finished after {} s", self.limit.as_secs());
            }
            if spoke.elapsed() > HEARTBEAT {
                spoke = Instant::now();
                eprintln!("    ... {}: {} s", self.label, started.elapsed().as_secs());
            }
            thread::sleep(POLL);
        }
    }
}

fn prefixed(prefix: &str, path: &Path) -> std::ffi::OsString {
    let mut text = std::ffi::OsString::from(prefix);
    text.push(path);
    text
}

fn console_end(console: &Path) -> String {
    let text = fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let end = lines[lines.len().saturating_sub(15)..].join("\n  ");
    format!("end of {}:\n  {end}", console.display())
}

/// Splits the data into its files. A file without an end line is left out.
fn parse(data: &str) -> BTreeMap<String, Sent> {
    let mut files = BTreeMap::new();
    let mut open: Option<(&str, String)> = None;
    for line in data.lines() {
        if let Some(name) = marker(line, BEGIN) {
            open = Some((name, String::new()));
        } else if let Some((name, code)) = marker(line, END).and_then(|end| end.rsplit_once(' ')) {
            if let (Some((opened, mut text)), Ok(code)) = (open.take(), code.parse())
                && opened == name
            {
                text.pop();
                files.insert(name.to_owned(), Sent { text, code });
            }
        } else if let Some((_, text)) = &mut open {
            text.push_str(line);
            text.push('\n');
        }
    }
    files
}

fn marker<'a>(line: &'a str, kind: &str) -> Option<&'a str> {
    line.strip_prefix(kind)?.strip_suffix(">>>")
}

/// Where the files of a run are kept.
pub fn save(directory: &Path, files: &BTreeMap<String, Sent>) -> Result<Vec<PathBuf>> {
    files
        .iter()
        .map(|(name, sent)| {
            let path = directory.join(name);
            fs::write(&path, &sent.text).with_context(|| format!("writing {}", path.display()))?;
            Ok(path)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_taken_apart_with_their_exit_codes() {
        let data = "<<<up>>>\n<<<begin a.txt>>>\none\ntwo\n\n<<<end a.txt 0>>>\n\
                    <<<begin b>>>\n\n<<<end b 3>>>\n<<<begin c>>>\ncut\n<<<end c 0>>>\n<<<done>>>\n";
        let files = parse(data);
        assert_eq!(files.len(), 3);
        assert_eq!(files["a.txt"].text, "one\ntwo\n");
        assert_eq!(files["a.txt"].code, 0);
        assert_eq!(files["b"].text, "");
        assert_eq!(files["b"].code, 3);
        assert_eq!(files["c"].text, "cut");
    }

    #[test]
    fn a_file_that_was_cut_is_not_a_file() {
        assert!(parse("<<<begin a>>>\none\n").is_empty());
        assert!(parse("<<<begin a>>>\none\n<<<end b 0>>>\n").is_empty());
    }
}
