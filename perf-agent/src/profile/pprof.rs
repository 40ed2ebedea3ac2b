//! For pprof: `profile.proto` of github.com/google/pprof, gzipped. Two values a sample: how many,
//! and nanoseconds; of allocations those of Go's heap profiles. Labels: `class`, `process`, `pid`, `syscall`, and `on`, what was waited for
//! (`pprof -tagroot class,process`, `-tagfocus class=lock`).

use std::{
    collections::HashMap,
    io::{self, Write as _},
};

use flate2::{Compression, write::GzEncoder};
use perf_ebpf_common::signals::allocations::OBJECT_PARTS;
use prost::Message as _;

use super::{
    coverage,
    folded::NO_STACK,
    speedscope::split_line,
    stacks::{Amount, LIVE, Place, Stacks},
};
use crate::cli::Mode;

/// The parts of `profile.proto` that are written, by its numbers. What is `int64` there and named
/// for a text is an index into the table of strings.
mod message {
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Profile {
        #[prost(message, repeated, tag = "1")]
        pub sample_type: Vec<ValueType>,
        #[prost(message, repeated, tag = "2")]
        pub sample: Vec<Sample>,
        #[prost(message, repeated, tag = "3")]
        pub mapping: Vec<Mapping>,
        #[prost(message, repeated, tag = "4")]
        pub location: Vec<Location>,
        #[prost(message, repeated, tag = "5")]
        pub function: Vec<Function>,
        #[prost(string, repeated, tag = "6")]
        pub string_table: Vec<String>,
        #[prost(int64, tag = "9")]
        pub time_nanos: i64,
        #[prost(int64, tag = "10")]
        pub duration_nanos: i64,
        #[prost(int64, repeated, tag = "13")]
        pub comment: Vec<i64>,
        #[prost(int64, tag = "14")]
        pub default_sample_type: i64,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct ValueType {
        #[prost(int64, tag = "1")]
        pub r#type: i64,
        #[prost(int64, tag = "2")]
        pub unit: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Sample {
        /// Innermost first.
        #[prost(uint64, repeated, tag = "1")]
        pub location_id: Vec<u64>,
        #[prost(int64, repeated, tag = "2")]
        pub value: Vec<i64>,
        #[prost(message, repeated, tag = "3")]
        pub label: Vec<Label>,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct Label {
        #[prost(int64, tag = "1")]
        pub key: i64,
        #[prost(int64, tag = "2")]
        pub str: i64,
        #[prost(int64, tag = "3")]
        pub num: i64,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct Mapping {
        #[prost(uint64, tag = "1")]
        pub id: u64,
        #[prost(int64, tag = "5")]
        pub filename: i64,
        #[prost(bool, tag = "7")]
        pub has_functions: bool,
        #[prost(bool, tag = "8")]
        pub has_filenames: bool,
        #[prost(bool, tag = "9")]
        pub has_line_numbers: bool,
        #[prost(bool, tag = "10")]
        pub has_inline_frames: bool,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Location {
        #[prost(uint64, tag = "1")]
        pub id: u64,
        #[prost(uint64, tag = "2")]
        pub mapping_id: u64,
        /// What is inlined comes before what it is inlined into.
        #[prost(message, repeated, tag = "4")]
        pub line: Vec<Line>,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct Line {
        #[prost(uint64, tag = "1")]
        pub function_id: u64,
        #[prost(int64, tag = "2")]
        pub line: i64,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct Function {
        #[prost(uint64, tag = "1")]
        pub id: u64,
        #[prost(int64, tag = "2")]
        pub name: i64,
        #[prost(int64, tag = "3")]
        pub system_name: i64,
        #[prost(int64, tag = "4")]
        pub filename: i64,
    }
}

/// A compressed profile.
///
/// # Errors
/// None: it is written to memory.
pub fn write(stacks: &Stacks) -> io::Result<Vec<u8>> {
    let mut builder = Builder::new();
    for (place, amount) in stacks.in_order() {
        builder.sample(stacks, place, amount);
    }
    builder.frame_of_profile(stacks);
    let mut out = GzEncoder::new(Vec::new(), Compression::default());
    out.write_all(&builder.profile.encode_to_vec())?;
    out.finish()
}

const TIME_TYPES: &[(&str, &str)] = &[("samples", "count"), ("time", "nanoseconds")];
/// The names that Go's heap profiles have.
const ALLOCATION_TYPES: &[(&str, &str)] = &[
    ("alloc_objects", "count"),
    ("alloc_space", "bytes"),
    ("inuse_objects", "count"),
    ("inuse_space", "bytes"),
];

fn values(mode: Mode, place: &Place, amount: Amount) -> Vec<i64> {
    let weight = amount.weight as i64;
    if mode != Mode::Alloc {
        return vec![amount.count as i64, weight];
    }
    let objects = (amount.count / OBJECT_PARTS) as i64;
    match place.class.as_str() {
        LIVE => vec![objects, weight, objects, weight],
        _ => vec![objects, weight, 0, 0],
    }
}

/// A profile while it is put together.
struct Builder {
    profile: message::Profile,
    strings: HashMap<String, i64>,
    mappings: HashMap<String, u64>,
    functions: HashMap<(i64, i64), u64>,
    /// By the frames that are one place in the code: a function and what is inlined in it.
    locations: HashMap<Vec<u32>, u64>,
}

impl Builder {
    fn new() -> Builder {
        let mut builder = Builder {
            profile: message::Profile::default(),
            strings: HashMap::new(),
            mappings: HashMap::new(),
            functions: HashMap::new(),
            locations: HashMap::new(),
        };
        // The format wants the empty string to be number 0.
        builder.string("");
        builder
    }

    fn string(&mut self, text: &str) -> i64 {
        if let Some(at) = self.strings.get(text) {
            return *at;
        }
        let at = self.profile.string_table.len() as i64;
        self.profile.string_table.push(text.to_owned());
        self.strings.insert(text.to_owned(), at);
        at
    }

    /// What is said once.
    fn frame_of_profile(&mut self, stacks: &Stacks) {
        let types: &[(&str, &str)] = match stacks.shown.mode {
            Mode::Alloc => ALLOCATION_TYPES,
            Mode::Cpu | Mode::Off | Mode::Wall => TIME_TYPES,
        };
        for (name, unit) in types {
            let value = message::ValueType {
                r#type: self.string(name),
                unit: self.string(unit),
            };
            self.profile.sample_type.push(value);
            // The last is what is shown first.
            self.profile.default_sample_type = value.r#type;
        }
        let comments = [coverage::title(stacks), coverage::text(stacks)];
        self.profile.comment = comments.iter().map(|text| self.string(text)).collect();
        let basis = &stacks.basis;
        self.profile.time_nanos = basis.realtime_ns as i64;
        self.profile.duration_nanos = basis.end_ns.saturating_sub(basis.start_ns) as i64;
    }

    fn sample(&mut self, stacks: &Stacks, place: &Place, amount: Amount) {
        let mut location_id = Vec::new();
        // Innermost first; a run of inlined frames belongs to the one they are inlined into.
        let mut one = Vec::new();
        for id in place.stack.iter().rev() {
            one.push(*id);
            if !stacks.frames[*id as usize].frame.inlined {
                location_id.push(self.location(stacks, std::mem::take(&mut one)));
            }
        }
        if !one.is_empty() {
            location_id.push(self.location(stacks, one));
        }
        if location_id.is_empty() {
            location_id.push(self.location(stacks, Vec::new()));
        }
        let process = &stacks.processes[place.process as usize];
        let texts = [
            ("class", Some(place.class.as_str())),
            ("process", Some(process.comm.as_str())),
            ("syscall", place.syscall.as_deref()),
            ("on", place.on.as_deref()),
        ];
        let mut label = Vec::new();
        for (key, text) in texts {
            if let Some(text) = text {
                let (key, str) = (self.string(key), self.string(text));
                label.push(message::Label { key, str, num: 0 });
            }
        }
        label.push(message::Label {
            key: self.string("pid"),
            str: 0,
            num: process.pid.into(),
        });
        self.profile.sample.push(message::Sample {
            location_id,
            value: values(stacks.shown.mode, place, amount),
            label,
        });
    }

    /// A location of one function and those inlined in it, innermost first; of none: no stack.
    fn location(&mut self, stacks: &Stacks, frames: Vec<u32>) -> u64 {
        if let Some(id) = self.locations.get(&frames) {
            return *id;
        }
        let mut line = Vec::new();
        let mut mapping_id = 0;
        for at in &frames {
            let frame = &stacks.frames[*at as usize].frame;
            let (file, number) = frame.source.as_deref().map_or(("", 0), split_line);
            let function_id = self.function(&frame.name, file);
            line.push(message::Line {
                function_id,
                line: number,
            });
            if let Some(module) = &frame.module {
                mapping_id = self.mapping(module, frame);
            }
        }
        if line.is_empty() {
            let function_id = self.function(NO_STACK, "");
            line.push(message::Line {
                function_id,
                line: 0,
            });
        }
        let id = self.profile.location.len() as u64 + 1;
        self.profile.location.push(message::Location {
            id,
            mapping_id,
            line,
        });
        self.locations.insert(frames, id);
        id
    }

    fn function(&mut self, name: &str, file: &str) -> u64 {
        let (name, filename) = (self.string(name), self.string(file));
        let next = self.profile.function.len() as u64 + 1;
        let id = *self.functions.entry((name, filename)).or_insert(next);
        if id == next {
            self.profile.function.push(message::Function {
                id,
                name,
                system_name: name,
                filename,
            });
        }
        id
    }

    fn mapping(&mut self, module: &str, frame: &crate::model::Frame) -> u64 {
        let filename = self.string(module);
        let next = self.profile.mapping.len() as u64 + 1;
        let id = *self.mappings.entry(module.to_owned()).or_insert(next);
        if id == next {
            self.profile.mapping.push(message::Mapping {
                id,
                filename,
                // Names are final: pprof is not to look for the file.
                has_functions: true,
                ..message::Mapping::default()
            });
        }
        let mapping = &mut self.profile.mapping[id as usize - 1];
        mapping.has_filenames |= frame.source.is_some();
        mapping.has_line_numbers |= frame.source.is_some();
        mapping.has_inline_frames |= frame.inlined;
        id
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Read as _, path::Path};

    use prost_reflect::{DescriptorPool, DynamicMessage, ReflectMessage as _, Value};

    use super::*;
    use crate::{
        cli::Mode,
        profile::fixtures::{report, shown, stacks},
    };

    /// Reads by the published description of the format, which knows nothing of [`message`].
    fn read(bytes: &[u8]) -> DynamicMessage {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/pprof");
        let files = protox::compile(["profile.proto"], [folder]).unwrap();
        let pool = DescriptorPool::from_file_descriptor_set(files).unwrap();
        let kind = pool.get_message_by_name("perftools.profiles.Profile");
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(bytes)
            .read_to_end(&mut plain)
            .unwrap();
        let profile = DynamicMessage::decode(kind.unwrap(), plain.as_slice()).unwrap();
        // Nothing was written that the description does not have.
        let unknown = |m: &DynamicMessage| m.unknown_fields().count();
        assert_eq!(unknown(&profile), 0);
        for field in profile.descriptor().fields().filter(|f| f.is_list()) {
            for item in list(&profile, field.name()) {
                assert_eq!(item.as_message().map_or(0, unknown), 0, "{}", field.name());
            }
        }
        profile
    }

    fn list(message: &DynamicMessage, field: &str) -> Vec<Value> {
        message
            .get_field_by_name(field)
            .unwrap()
            .as_list()
            .unwrap()
            .to_vec()
    }

    fn number(message: &DynamicMessage, field: &str) -> i64 {
        let value = message.get_field_by_name(field);
        match *value.unwrap_or_else(|| panic!("no {field} in {message:?}")) {
            Value::I64(n) => n,
            Value::U64(n) => n as i64,
            ref other => panic!("{field}: {other:?}"),
        }
    }

    fn text(profile: &DynamicMessage, at: i64) -> String {
        list(profile, "string_table")[at as usize]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// A sample's labels, its functions (innermost first) and values.
    type Sample = (BTreeMap<String, String>, Vec<(String, i64)>, Vec<i64>);

    fn samples(profile: &DynamicMessage) -> Vec<Sample> {
        let (locations, functions) = (list(profile, "location"), list(profile, "function"));
        let at = |list: &[Value], id: i64| list[id as usize - 1].as_message().unwrap().clone();
        list(profile, "sample")
            .iter()
            .map(|sample| {
                let sample = sample.as_message().unwrap();
                let mut frames = Vec::new();
                for id in list(sample, "location_id") {
                    let location = at(&locations, id.as_u64().unwrap() as i64);
                    for line in list(&location, "line") {
                        let line = line.as_message().unwrap();
                        let function = at(&functions, number(line, "function_id"));
                        let name = text(profile, number(&function, "name"));
                        frames.push((name, number(line, "line")));
                    }
                }
                let labels = list(sample, "label").into_iter().map(|label| {
                    let label = label.as_message().unwrap().clone();
                    let value = match number(&label, "str") {
                        0 => number(&label, "num").to_string(),
                        str => text(profile, str),
                    };
                    (text(profile, number(&label, "key")), value)
                });
                let values = list(sample, "value");
                let values = values.iter().map(|v| v.as_i64().unwrap()).collect();
                (labels.collect(), frames, values)
            })
            .collect()
    }

    #[test]
    fn a_reader_of_the_published_format_finds_the_ledger() {
        let bytes = write(&stacks(shown(Mode::Wall, true))).unwrap();
        let profile = read(&bytes);
        let mut sums: BTreeMap<String, u64> = BTreeMap::new();
        for (labels, _, values) in samples(&profile) {
            *sums.entry(labels["class"].clone()).or_default() += values[1] as u64;
            assert_eq!(labels["pid"], "77");
        }
        assert_eq!(sums, report().processes[0].ledger.process.classes);
        let types: Vec<String> = list(&profile, "sample_type")
            .iter()
            .flat_map(|t| {
                let t = t.as_message().unwrap();
                ["type", "unit"].map(|field| text(&profile, number(t, field)))
            })
            .collect();
        assert_eq!(types, ["samples", "count", "time", "nanoseconds"]);
        assert_eq!(text(&profile, 0), "");
        assert_eq!(number(&profile, "duration_nanos"), 1_000_000_000);
        assert_eq!(number(&profile, "time_nanos"), 1_700_000_000_000_000_000);
    }

    #[test]
    fn stacks_are_innermost_first_with_lines_and_what_was_waited_for() {
        let profile = read(&write(&stacks(shown(Mode::Wall, true))).unwrap());
        let all = samples(&profile);
        let locks: Vec<&Sample> = all.iter().filter(|s| s.0["class"] == "lock").collect();
        let on: Vec<&str> = locks.iter().map(|s| s.0["on"].as_str()).collect();
        assert_eq!(on, ["0x1000", "0x2000"]);
        assert_eq!(locks[0].0["syscall"], "futex");
        let names = |s: &Sample| -> Vec<String> { s.1.iter().map(|(n, _)| n.clone()).collect() };
        assert_eq!(
            names(locks[0]),
            ["futex_wait", "app::update", "app::work", "main"]
        );
        assert_eq!(locks[0].1[1].1, 12, "the line of main.c:12");
        assert_eq!(locks.iter().map(|s| s.2[0]).sum::<i64>(), 6, "waits");
        let runq = all.iter().find(|s| s.0["class"] == "runq").unwrap();
        assert_eq!(names(runq), [NO_STACK]);
    }

    #[test]
    fn an_inlined_function_is_a_line_of_the_location_it_is_in() {
        let profile = read(&write(&stacks(shown(Mode::Cpu, false))).unwrap());
        let lines: Vec<usize> = list(&profile, "location")
            .iter()
            .map(|l| list(l.as_message().unwrap(), "line").len())
            .collect();
        assert_eq!(lines.iter().filter(|n| **n == 2).count(), 1, "{lines:?}");
        let user: Vec<Sample> = samples(&profile)
            .into_iter()
            .filter(|s| s.1[0].0 == "app::hash")
            .collect();
        assert_eq!(user[0].1[1].0, "app::work");
    }
}
