//! See `gil_contention.py`.

use super::row::{ENGINEER, Program, Row, nothing};

pub const ROW: Row = Row {
    name: "Python GIL contention",
    unit: "request",
    category: "lock_contention",
    about: "(GIL)",
    delegate: ENGINEER,
    realtime: true,
    program: Program::Python("gil_contention.py"),
    stage: nothing,
};
