//! For <https://www.speedscope.app>: its JSON format, a profile for each process, the one with the
//! most time first. The outermost frame is the class.

use std::{collections::HashMap, io};

use serde_json::{Value, json};

use super::{coverage, folded::NO_STACK, stacks::Stacks};
use crate::cli::Mode;

/// One profile while it is put together.
#[derive(Default)]
struct Samples {
    samples: Vec<Vec<usize>>,
    weights: Vec<u64>,
}

/// Frames by what speedscope tells them apart by.
#[derive(Default)]
struct Frames {
    ids: HashMap<(String, Option<String>), usize>,
    list: Vec<Value>,
}

impl Frames {
    fn id(&mut self, name: &str, file: Option<&str>) -> usize {
        let key = (name.to_owned(), file.map(str::to_owned));
        *self.ids.entry(key).or_insert_with(|| {
            self.list.push(match file {
                Some(file) => json!({"name": name, "file": file}),
                None => json!({"name": name}),
            });
            self.list.len() - 1
        })
    }
}

/// JSON on one line.
///
/// # Errors
/// None.
pub fn write(stacks: &Stacks) -> io::Result<Vec<u8>> {
    let mut frames = Frames::default();
    let mut profiles: Vec<Samples> = Vec::new();
    profiles.resize_with(stacks.processes.len().max(1), Samples::default);
    for (place, amount) in stacks.in_order() {
        if amount.weight == 0 {
            continue;
        }
        let mut sample = vec![frames.id(&format!("[{}]", place.class), None)];
        for id in &place.stack {
            let frame = &stacks.frames[*id as usize].frame;
            // The line would make one function several.
            let file = match &frame.source {
                Some(source) => Some(split_line(source).0),
                None => frame.module.as_deref(),
            };
            sample.push(frames.id(&frame.name, file));
        }
        if place.stack.is_empty() {
            sample.push(frames.id(NO_STACK, None));
        }
        let profile = &mut profiles[place.process as usize];
        profile.samples.push(sample);
        profile.weights.push(amount.weight);
    }
    let unit = match stacks.shown.mode {
        Mode::Alloc => "bytes",
        Mode::Cpu | Mode::Off | Mode::Wall => "nanoseconds",
    };
    let total = |s: &Samples| s.weights.iter().sum::<u64>();
    let mut order: Vec<usize> = (0..profiles.len()).collect();
    order.sort_by_key(|at| std::cmp::Reverse(total(&profiles[*at])));
    let profiles: Vec<Value> = order
        .into_iter()
        .map(|at| {
            let name = match stacks.processes.get(at) {
                Some(process) => format!("{} (pid {})", process.comm, process.pid),
                None => "nobody".to_owned(),
            };
            json!({
                "type": "sampled",
                "name": name,
                "unit": unit,
                "startValue": 0,
                "endValue": total(&profiles[at]),
                "samples": profiles[at].samples,
                "weights": profiles[at].weights,
            })
        })
        .collect();
    let file = json!({
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "name": format!("{} · {}", coverage::title(stacks), coverage::short(stacks)),
        "exporter": concat!("perf-agent ", env!("CARGO_PKG_VERSION")),
        "activeProfileIndex": 0,
        "shared": {"frames": frames.list},
        "profiles": profiles,
    });
    let mut bytes = serde_json::to_vec(&file)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// File and line of `file:line`.
pub fn split_line(source: &str) -> (&str, i64) {
    match source.rsplit_once(':') {
        Some((file, line)) => match line.parse() {
            Ok(line) => (file, line),
            Err(_) => (source, 0),
        },
        None => (source, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::Mode,
        profile::fixtures::{report, shown, stacks},
    };

    /// Everything the published schema says is wrong.
    fn errors(value: &Value) -> Vec<String> {
        let schema = include_str!("../../../tests/speedscope/file-format-schema.json");
        let schema: Value = serde_json::from_str(schema).unwrap();
        jsonschema::draft7::new(&schema)
            .unwrap()
            .iter_errors(value)
            .map(|error| format!("{}: {error}", error.instance_path))
            .collect()
    }

    fn profile(stacks: &Stacks) -> Value {
        serde_json::from_slice(&write(stacks).unwrap()).unwrap()
    }

    #[test]
    fn the_file_is_valid_by_the_published_schema() {
        let mut value = profile(&stacks(shown(Mode::Wall, true)));
        assert_eq!(errors(&value), [""; 0]);
        assert_eq!(
            errors(&profile(&Stacks::new(shown(Mode::Cpu, false)))),
            [""; 0]
        );
        value["profiles"][0]["unit"] = json!("ns");
        assert_ne!(errors(&value), [""; 0]);
    }

    #[test]
    fn weights_are_nanoseconds_and_every_stack_begins_with_its_class() {
        let mut two = stacks(shown(Mode::Wall, false));
        let mut other = report();
        other.processes[0].ledger.who.pid += 1;
        two.window(other);
        two.window(report());
        let value = profile(&two);
        let profiles = value["profiles"].as_array().unwrap();
        assert_eq!(profiles.len(), 2);
        assert_eq!(profiles[0]["endValue"], 18_000, "the largest first");
        let frames = value["shared"]["frames"].as_array().unwrap();
        let mut locks = 0;
        for (sample, weight) in profiles[1]["samples"]
            .as_array()
            .unwrap()
            .iter()
            .zip(profiles[1]["weights"].as_array().unwrap())
        {
            let names: Vec<&str> = sample
                .as_array()
                .unwrap()
                .iter()
                .map(|id| {
                    frames[id.as_u64().unwrap() as usize]["name"]
                        .as_str()
                        .unwrap()
                })
                .collect();
            if names[0] == "[lock]" {
                assert_eq!(
                    names[1..],
                    ["main", "app::work", "app::update", "futex_wait"]
                );
                locks += weight.as_u64().unwrap();
            }
        }
        assert_eq!(locks, 3_000);
        assert!(
            frames
                .iter()
                .any(|f| f["name"] == "main" && f["file"] == "main.c")
        );
    }

    #[test]
    fn a_line_is_split_off_a_source_and_a_drive_is_not() {
        assert_eq!(split_line("/src/main.c:12"), ("/src/main.c", 12));
        assert_eq!(split_line("/src/main.c"), ("/src/main.c", 0));
        assert_eq!(split_line("C:\\x.c"), ("C:\\x.c", 0));
    }
}
