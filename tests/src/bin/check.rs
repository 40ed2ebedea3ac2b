//! `check LINES TRUTH`: compares the ledger lines of an NDJSON file with the measurements of the
//! traced program, prints the table and ends with 1 where a figure is further off than allowed.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use perf_agent_tests::truth::{self, Demands};
use serde_json::Value;

const USAGE: &str = "\
check NDJSON_FILE TRUTH_FILE [options]
  --tolerance-percent P      of a lifetime or a blocked class (2)
  --tolerance-ms M           and so much more (2)
  --cpu-tolerance-percent P  of CPU and run queue time (1)
  --cpu-tolerance-ms M       and so much more (2)
  --residual-percent P       of a thread's lifetime (0.5)";

fn main() -> ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether everything holds.
fn run(mut arguments: impl Iterator<Item = String>) -> Result<bool> {
    let mut demands = Demands::default();
    let mut files = Vec::new();
    while let Some(argument) = arguments.next() {
        let target = match argument.as_str() {
            "--tolerance-percent" => &mut demands.classes.percent,
            "--tolerance-ms" => &mut demands.classes.ms,
            "--cpu-tolerance-percent" => &mut demands.cpu.percent,
            "--cpu-tolerance-ms" => &mut demands.cpu.ms,
            "--residual-percent" => &mut demands.residual_percent,
            option if option.starts_with('-') => bail!("unknown option {option}\n{USAGE}"),
            _ => {
                files.push(argument);
                continue;
            }
        };
        let value = arguments.next().unwrap_or_default();
        *target = value
            .parse()
            .with_context(|| format!("{argument} {value:?}: not a number"))?;
    }
    let [lines, truth] = &files[..] else {
        bail!("{USAGE}");
    };
    let lines = read(lines)?
        .lines()
        .enumerate()
        .map(|(i, line)| {
            serde_json::from_str(line).with_context(|| format!("{lines}: line {}", i + 1))
        })
        .collect::<Result<Vec<Value>>>()?;
    let measured = truth::measured(&serde_json::from_str(&read(truth)?)?)?;
    let mut rows = truth::compare(&measured, &truth::booked(&lines)?, demands);
    rows.extend(truth::compare_holds(&measured, &lines, demands));
    print!("{}", truth::table(&rows));
    let failed = rows.iter().filter(|row| !row.holds()).count();
    println!("{} figures compared, {failed} out of tolerance", rows.len());
    Ok(failed == 0 && !rows.is_empty())
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {path}"))
}
