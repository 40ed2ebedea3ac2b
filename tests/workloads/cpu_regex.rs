//! See `cpu_regex.py`.

use super::row::{ENGINEER, Program, Row, Worth, nothing};

pub const ROW: Row = Row {
    name: "CPU-bound regex",
    unit: "batch of texts",
    category: "cpu_bound",
    about: "check_texts",
    delegate: ENGINEER,
    worth: Worth::Time,
    realtime: true,
    program: Program::Python("cpu_regex.py"),
    stage: nothing,
};
