//! See `gil_contention.py`.

use super::row::{ENGINEER, Program, Row, Worth, nothing};

pub const ROW: Row = Row {
    name: "Python GIL contention",
    unit: "request",
    category: "lock_contention",
    about: "(GIL)",
    delegate: ENGINEER,
    worth: Worth::Time,
    realtime: true,
    program: Program::Python("gil_contention.py"),
    stage: nothing,
};
