//! `perf-agent explain`: what a finding means, in the rule's own words, with the thresholds in effect
//! and, of a finding in a file, its own numbers.

use std::{
    fmt::Write as _,
    fs::File,
    io::{BufRead, BufReader, stdin},
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{
    cli::ExplainArgs,
    commands::Misuse,
    config,
    detect::{RULES, Rule, settings::Settings},
    sink::units,
};

/// The text that is asked for.
///
/// # Errors
/// A name or id that is not there; a file that cannot be read; a config file with something wrong.
pub fn run(args: &ExplainArgs) -> Result<String> {
    let settings = config::load(args.config.as_deref())?.settings;
    let Some(what) = &args.what else {
        return Ok(categories());
    };
    if let Some(rule) = RULES.iter().find(|rule| rule.name == what) {
        return Ok(of_rule(rule, &settings));
    }
    if !is_id(what) {
        let near = config::nearest(what, RULES.iter().map(|rule| rule.name));
        let text = format!("`{what}` is neither a category nor the id of a finding{near}");
        return Err(Misuse(text).into());
    }
    let Some(file) = &args.from else {
        let text = format!(
            "the id says nothing by itself; name the lines it is in: perf-agent explain {what} --from FILE"
        );
        return Err(Misuse(text).into());
    };
    let finding = find(what, file)?;
    let category = finding["category"].as_str().unwrap_or_default();
    let rule = RULES.iter().find(|rule| rule.name == category);
    let rule = rule.with_context(|| format!("no rule is called `{category}` in this version"))?;
    Ok(of_finding(&finding, rule) + "\n" + &of_rule(rule, &settings))
}

fn is_id(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The newest line of a finding; one that is not just the word that it is gone.
fn find(id: &str, file: &Path) -> Result<Value> {
    let name = file.display();
    let input: Box<dyn BufRead> = match file == Path::new("-") {
        true => Box::new(stdin().lock()),
        false => {
            let file = File::open(file).with_context(|| format!("cannot read {name}"))?;
            Box::new(BufReader::new(file))
        }
    };
    let mut found = None;
    for line in input.lines() {
        let line = line.with_context(|| format!("cannot read {name}"))?;
        // A look before the parsing, which costs more: lines are long.
        if !line.contains(id) {
            continue;
        }
        let Ok(value) = serde_json::from_str::<Value>(&line) else {
            continue;
        };
        let newer = value["state"] != "resolved" || found.is_none();
        if value["type"] == "finding" && value["id"] == *id && newer {
            found = Some(value);
        }
    }
    match found {
        Some(value) => Ok(value),
        None => bail!("there is no finding {id} in {name}"),
    }
}

/// All of them, a line each.
fn categories() -> String {
    let mut out = String::new();
    for rule in RULES {
        let _ = writeln!(out, "{:20} {}", rule.name, rule.explain.looks_at);
    }
    out
}

fn of_rule(rule: &Rule, settings: &Settings) -> String {
    let mut out = format!("{}\n\nLooks at {}.\n", rule.name, rule.explain.looks_at);
    out += "\nNumbers\n";
    for (name, meaning) in rule.explain.numbers {
        let _ = writeln!(out, "  {name:24} {meaning}");
    }
    let _ = writeln!(out, "\nGains at most\n  {}", rule.explain.bound);
    let _ = writeln!(out, "\nConfidence\n  {}", rule.explain.confidence);
    let all = settings.rules.list();
    let own = all.iter().find(|(name, _)| *name == rule.name);
    let general = settings.general.list();
    let _ = writeln!(out, "\nThresholds");
    for threshold in own.iter().flat_map(|(_, list)| list).chain(&general) {
        let default = match threshold.value == threshold.default {
            true => "default".to_owned(),
            false => format!("set; the default is {}", threshold.default),
        };
        let _ = writeln!(
            out,
            "  {} = {}  ({default})",
            threshold.key, threshold.value
        );
        for line in threshold.about {
            let _ = writeln!(out, "     {line}");
        }
    }
    if settings.off.iter().any(|off| off.0 == rule.name) {
        out += "  This rule is off.\n";
    }
    let _ = writeln!(out, "\nNext\n  {}", rule.explain.next);
    out
}

fn of_finding(finding: &Value, rule: &Rule) -> String {
    let text = |name: &str| finding[name].as_str().unwrap_or_default().to_owned();
    let mut out = format!("{}\n\n", text("title"));
    let _ = writeln!(out, "  process     {} ({})", text("comm"), finding["pid"]);
    let _ = writeln!(out, "  about       {}", text("subject"));
    let _ = writeln!(
        out,
        "  state       {}, since {}, this is of {}",
        text("state"),
        text("since"),
        text("ts")
    );
    let gain = finding["gain_bound_ns_per_s"].as_u64().unwrap_or(0);
    let _ = writeln!(out, "  gain        at most {}", units::duration_per_s(gain));
    let confidence = finding["confidence"].as_f64().unwrap_or(0.0) * 100.0;
    let _ = writeln!(
        out,
        "  impact      {}, effort {}, confidence {confidence:.0} %",
        text("impact"),
        text("effort")
    );
    let _ = writeln!(out, "  for         {}\n", text("delegate_to"));
    for evidence in finding["evidence"].as_array().into_iter().flatten() {
        let name = evidence["name"].as_str().unwrap_or_default();
        let value = evidence["value"].as_f64().unwrap_or(0.0);
        let unit = evidence["unit"].as_str().unwrap_or_default();
        let meaning = rule.explain.number(name).unwrap_or_default();
        let shown = figure(value, unit);
        let _ = writeln!(
            out,
            "  {name:24} {shown:>12}  {meaning} ({} samples)",
            evidence["samples"]
        );
    }
    let advice = finding["recommendations"].as_array();
    for (i, line) in advice.into_iter().flatten().enumerate() {
        let line = line.as_str().unwrap_or_default();
        let gap = if i == 0 { "\n" } else { "" };
        let _ = writeln!(out, "{gap}  {}. {line}", i + 1);
    }
    // Names in it are of files and threads, which can hold anything.
    out.replace(|c: char| c.is_control() && c != '\n', "?")
}

/// A figure with its unit, for people.
fn figure(value: f64, unit: &str) -> String {
    match unit {
        "ns" => units::duration(value as u64),
        "ns/s" => units::duration_per_s(value as u64),
        "bytes" => units::bytes(value as u64),
        "count" => units::count(value as u64),
        "1/s" => format!("{}/s", units::count(value as u64)),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{full_finding, full_lines};
    use std::path::PathBuf;

    fn explain(
        what: Option<&str>,
        from: Option<PathBuf>,
        config: Option<PathBuf>,
    ) -> Result<String> {
        run(&ExplainArgs {
            what: what.map(str::to_owned),
            from,
            config,
        })
    }

    fn written(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn empty_config() -> tempfile::NamedTempFile {
        written("")
    }

    fn with_defaults(what: Option<&str>, from: Option<PathBuf>) -> Result<String> {
        let config = empty_config();
        explain(what, from, Some(config.path().to_owned()))
    }

    #[test]
    fn every_category_has_its_line_and_its_text() {
        let list = with_defaults(None, None).unwrap();
        assert_eq!(list.lines().count(), RULES.len());
        for (rule, line) in RULES.iter().zip(list.lines()) {
            assert!(line.starts_with(rule.name), "{line}");
            let text = with_defaults(Some(rule.name), None).unwrap();
            for part in [
                "Looks at",
                "Numbers",
                "Gains at most",
                "Confidence",
                "Thresholds",
                "min_gain = 0.01",
                "Next",
            ] {
                assert!(text.contains(part), "no {part} in:\n{text}");
            }
        }
    }

    #[test]
    fn thresholds_are_those_in_effect() {
        let config = written("rules.cpu_bound.busy = 0.75\nfindings.off = ['cpu_bound']");
        let path = Some(config.path().to_owned());
        let text = explain(Some("cpu_bound"), None, path).unwrap();
        assert!(
            text.contains("busy = 0.75  (set; the default is 0.5)"),
            "{text}"
        );
        assert!(text.contains("hot = 0.2  (default)"), "{text}");
        assert!(text.contains("This rule is off."), "{text}");
    }

    #[test]
    fn a_finding_is_explained_with_its_own_numbers() {
        let mut text = String::from("no JSON\n");
        for line in full_lines() {
            text += &serde_json::to_string(&line).unwrap();
            text.push('\n');
        }
        let file = written(&text);
        let id = full_finding().id;
        let text = with_defaults(Some(&id), Some(file.path().to_owned())).unwrap();
        for part in [
            "Threads wait for a lock\n",
            "server (4242)",
            "gain        at most 420 ms/s",
            "wait                         420 ms/s  thread time spent waiting for it, a second (12 samples)",
            "1. Hold it for less time",
            "lock_contention\n\nLooks at",
        ] {
            assert!(text.contains(part), "no `{part}` in:\n{text}");
        }
        let other = with_defaults(Some("ffffffffffffffff"), Some(file.path().to_owned()));
        let error = other.unwrap_err().to_string();
        assert!(
            error.starts_with("there is no finding ffffffffffffffff in "),
            "{error}"
        );
    }

    #[test]
    fn what_cannot_be_explained_says_what_to_type() {
        for (what, expected) in [
            ("lock_contenton", "did you mean `lock_contention`?"),
            (
                "0123456789abcdef",
                "perf-agent explain 0123456789abcdef --from FILE",
            ),
        ] {
            let error = with_defaults(Some(what), None).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert_eq!(crate::commands::exit_code(&error), 2);
        }
    }
}
