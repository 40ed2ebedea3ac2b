//! CPython: where an interpreter is in an object that is mapped, where things are in its memory, and
//! what its frames are called.
//!
//! An interpreter is known by what it exports: `_PyRuntime`, where its threads are found, and
//! `_PyEval_EvalFrameDefault`, the loop that runs Python code. Offsets are those of the headers of
//! each minor version, within which they do not change; 3.13 tells its own.

pub mod code;
mod layout;
mod lines;
pub mod merge;

use object::ReadRef;
use perf_ebpf_common::signals::python::Python;

pub use self::layout::{CodeLayout, LineFormat};
use crate::unwind::object::Image;

/// An interpreter in an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interpreter {
    /// Of 3.x.
    pub minor: u8,
    /// Offsets, and addresses as linked.
    linked: Python,
    pub code: CodeLayout,
}

impl Interpreter {
    /// Looks for an interpreter of a version whose offsets are known.
    pub fn of<'a, R: ReadRef<'a>>(image: &Image<'a, R>) -> Option<Interpreter> {
        let [eval, runtime, version, iter_send, get_back] = image
            .exported([
                "_PyEval_EvalFrameDefault",
                "_PyRuntime",
                "Py_Version",
                "PyIter_Send",
                "PyFrame_GetBack",
            ])
            .ok()?;
        let (eval, runtime) = (eval?, runtime?);
        let minor = match version {
            Some(version) => {
                let bytes = image.bytes_at(version.address, 8)?;
                let number = u64::from_le_bytes(bytes.try_into().ok()?);
                (number >> 24 == 3).then_some((number >> 16) as u8)?
            }
            // 3.11 began to export its version, 3.10 and 3.9 one function each.
            None if iter_send.is_some() => 10,
            None if get_back.is_some() => 9,
            None => return None,
        };
        let own_offsets = || image.bytes_at(runtime.address, layout::DEBUG_OFFSETS_BYTES);
        let (mut linked, code) = layout::of_version(minor, own_offsets)?;
        linked.eval_start = eval.address;
        linked.eval_length = eval.size;
        linked.runtime = runtime.address;
        Some(Interpreter {
            minor,
            linked,
            code,
        })
    }

    /// Offset in a code object of what tells it from others.
    pub fn names_at(&self) -> usize {
        self.linked.code_names.into()
    }

    /// As mapped: `bias` is what addresses are in memory more than linked.
    pub fn at(&self, bias: u64) -> Python {
        Python {
            runtime: self.linked.runtime.wrapping_add(bias),
            eval_start: self.linked.eval_start.wrapping_add(bias),
            ..self.linked
        }
    }
}
