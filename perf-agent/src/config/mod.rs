//! The config file, `perf-agent.toml`: names of delegates, thresholds of rules, targets.
//!
//! `--config FILE`, else the first there is of `$XDG_CONFIG_HOME/perf-agent/perf-agent.toml` (without
//! that variable `~/.config/…`) and `/etc/perf-agent.toml`. Not the working directory: the agent runs
//! as root, in directories of others. `perf-agent.example.toml` has every key.

mod file;
#[cfg(test)]
mod tests;

use std::{
    env, fmt, fs, io,
    path::{Path, PathBuf},
};

use crate::detect::settings::Settings;

/// For the whole host.
const SYSTEM_FILE: &str = "/etc/perf-agent.toml";

/// What a config file says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    pub settings: Settings,
    /// Names of delegates that are replaced, and by what.
    pub delegates: Vec<(String, String)>,
}

/// Why a config file cannot be used: its name, the line, and what is wrong there.
#[derive(Debug, PartialEq, Eq)]
pub struct Error {
    file: String,
    line: Option<usize>,
    text: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.text),
            None => write!(f, "{}: {}", self.file, self.text),
        }
    }
}

impl std::error::Error for Error {}

/// Reads the file named, or the one in a usual place, or none.
///
/// # Errors
/// The file named is not there; a file cannot be read, or has something wrong in it.
pub fn load(named: Option<&Path>) -> Result<Config, Error> {
    if let Some(path) = named {
        return read(path)?.ok_or_else(|| Error {
            file: path.display().to_string(),
            line: None,
            text: "there is no such file".to_owned(),
        });
    }
    for path in usual_places(|name| env::var_os(name).map(PathBuf::from)) {
        if hidden(&path) {
            tracing::info!("config: {} cannot be looked for", path.display());
            continue;
        }
        if let Some(config) = read(&path)? {
            return Ok(config);
        }
    }
    tracing::info!("no config file: defaults");
    Ok(Config::default())
}

/// In a folder that may not be looked into: the home of another user, as `sudo -u` may leave it set.
fn hidden(path: &Path) -> bool {
    fs::metadata(path).is_err_and(|e| e.kind() == io::ErrorKind::PermissionDenied)
}

fn usual_places(variable: impl Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    // As the XDG specification has it: a relative path is to be ignored.
    let set = |name| variable(name).filter(|path| path.is_absolute());
    let own = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")));
    let own = own.map(|folder| folder.join("perf-agent/perf-agent.toml"));
    own.into_iter().chain([SYSTEM_FILE.into()]).collect()
}

/// `None` where there is no such file.
fn read(path: &Path) -> Result<Option<Config>, Error> {
    let file = path.display().to_string();
    match fs::read_to_string(path) {
        Ok(text) => {
            tracing::info!("config: {file}");
            parse(&file, &text).map(Some)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error {
            file,
            line: None,
            text: format!("cannot read it: {e}"),
        }),
    }
}

/// Makes a config of a file's text.
///
/// # Errors
/// The first thing that is wrong: no TOML, an unknown key, a value of another type or out of range.
pub fn parse(file: &str, text: &str) -> Result<Config, Error> {
    file::parse(text).map_err(|e| Error {
        file: file.to_owned(),
        line: e.span().map(|span| line_of(text, span.start)),
        text: explained(e.message()),
    })
}

/// Number of the line that a byte is in.
fn line_of(text: &str, at: usize) -> usize {
    let before = text.as_bytes().get(..at).unwrap_or(text.as_bytes());
    before.iter().filter(|b| **b == b'\n').count() + 1
}

/// Adds the nearest right name to what serde says of an unknown key.
fn explained(message: &str) -> String {
    let message = message.split('\n').collect::<Vec<_>>().join("; ");
    let mut quoted = message.split('`').skip(1).step_by(2);
    match (message.starts_with("unknown field"), quoted.next()) {
        (true, Some(key)) => format!("there is no key `{key}` here{}", nearest(key, quoted)),
        _ => message,
    }
}

/// `: did you mean …?` where a name is near enough to be meant, else all names.
pub fn nearest<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> String {
    // What clap uses for its own suggestions.
    const NEAR: f64 = 0.7;
    let names: Vec<&str> = names.collect();
    let scored = names.iter().map(|name| (strsim::jaro(wrong, name), name));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0));
    match best {
        Some((score, name)) if score >= NEAR => format!(": did you mean `{name}`?"),
        _ if names.is_empty() => String::new(),
        _ => format!(": there are {}", names.join(", ")),
    }
}
