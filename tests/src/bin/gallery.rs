//! `gallery [--only NAME]...` runs the gallery of sick programs and their healthy twins under the agent,
//! and prints what was found as a Markdown table; it fails where a row is not as it should be.
//! `gallery --work NAME sick|healthy [ARGUMENT]...` is one of the programs.

use std::io;
use std::process::ExitCode;

use perf_agent_tests::rows::ROWS;
use perf_agent_tests::rows::row::{Health, Job, Program, Row, Servers, Worth};
use perf_agent_tests::{alone, gallery};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.first().map(String::as_str) {
        Some("--work") => work(&arguments[1..]).map(|()| true),
        _ => wanted(&arguments).map(|rows| show(&rows)),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

fn named(name: &str) -> io::Result<&'static Row> {
    let names = || ROWS.iter().map(|row| row.name).collect::<Vec<_>>();
    let row = ROWS.iter().find(|row| row.name == name);
    row.ok_or_else(|| {
        io::Error::other(format!("no row {name:?}; there are {}", names().join(", ")))
    })
}

fn work(arguments: &[String]) -> io::Result<()> {
    let [name, health, rest @ ..] = arguments else {
        return Err(io::Error::other("--work needs a row, and sick or healthy"));
    };
    let job = Job {
        health: match health.as_str() {
            "sick" => Health::Sick,
            "healthy" => Health::Healthy,
            other => {
                return Err(io::Error::other(format!(
                    "{other:?} is neither sick nor healthy"
                )));
            }
        },
        arguments: rest.to_vec(),
    };
    match named(name)?.program {
        Program::Rust(run) => run(&job),
        Program::Python(script) => Err(io::Error::other(format!(
            "{name} is run by Python: {script}"
        ))),
    }
}

fn wanted(arguments: &[String]) -> io::Result<Vec<&'static Row>> {
    let mut rows = Vec::new();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match (argument.as_str(), arguments.next()) {
            ("--only", Some(name)) => rows.push(named(name)?),
            (other, _) => return Err(io::Error::other(format!("unknown option {other}"))),
        }
    }
    match rows.is_empty() {
        true => Ok(ROWS.iter().collect()),
        false => Ok(rows),
    }
}

/// Runs the rows and prints the table; whether all are right.
fn show(rows: &[&'static Row]) -> bool {
    let _alone = alone();
    let mut servers = Servers::default();
    let outcomes: Vec<_> = rows
        .iter()
        .map(|row| {
            eprintln!("==> {}", row.name);
            let outcome = gallery::run(row, &mut servers);
            let (sick, healthy) = outcome.per_unit;
            let took = |amount: f64| match outcome.worth {
                Worth::Time => format!("{:.2} ms", amount / 1e6),
                Worth::Memory => format!("{:.1} KiB", amount / 1024.0),
            };
            eprintln!(
                "    one {}: {} sick, {} healthy",
                outcome.unit,
                took(sick),
                took(healthy)
            );
            for (whose, found) in [("sick", &outcome.sick), ("twin", &outcome.healthy)] {
                for f in found {
                    let under = if f.follows { "└ " } else { "" };
                    eprintln!(
                        "    {whose}: {under}{} {}: {}",
                        f.impact, f.category, f.title
                    );
                }
            }
            for wrong in &outcome.wrong {
                eprintln!("    wrong: {wrong}");
            }
            outcome
        })
        .collect();
    print!("{}", gallery::table(&outcomes));
    outcomes.iter().all(|outcome| outcome.wrong.is_empty())
}
