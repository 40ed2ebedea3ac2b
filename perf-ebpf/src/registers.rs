//! The user registers a task saved when it entered the kernel: they name the system call it sits
//! in and its arguments, with no hook on system calls.

use aya_ebpf::{
    bindings::task_struct,
    helpers::generated::{bpf_get_current_task, bpf_get_current_task_btf, bpf_task_pt_regs},
};
use perf_ebpf_common::sys;

use crate::prelude::*;

/// What a walk of a user stack starts from.
#[derive(Clone, Copy)]
pub struct UserRegisters {
    pub ip: u64,
    pub sp: u64,
    pub fp: u64,
    /// The link register, where the architecture has one.
    pub link: u64,
}

/// Where a task's saved registers are.
#[derive(Clone, Copy)]
pub struct Registers {
    typed: Typed,
    address: u64,
}

impl Registers {
    /// The registers of a task that is blocked, or of the current one.
    #[inline(always)]
    pub fn of(task: Typed) -> Registers {
        if setting!(has_task_pt_regs) != 0 {
            // SAFETY: `task` is a typed task pointer, which the verifier checks.
            let regs = unsafe { bpf_task_pt_regs(task.cast_mut().cast::<task_struct>()) };
            Registers {
                typed: regs as Typed,
                address: 0,
            }
        } else {
            // Kernels before 5.15: the registers sit at the end of the kernel stack.
            let stack: u64 = field(task, offset!(task_stack));
            Registers {
                typed: core::ptr::null(),
                address: stack + setting!(regs_from_stack) as u64,
            }
        }
    }

    /// The registers a system call tracepoint hands over.
    #[inline(always)]
    pub fn at(regs: Typed) -> Registers {
        Registers {
            typed: regs,
            address: regs as u64,
        }
    }

    /// The registers the current task had when it entered the kernel.
    #[inline(always)]
    pub fn of_current() -> Registers {
        if setting!(has_task_pt_regs) != 0 {
            // SAFETY: no arguments.
            return Registers::of(unsafe { bpf_get_current_task_btf() } as Typed);
        }
        // SAFETY: no arguments.
        let task = unsafe { bpf_get_current_task() };
        let stack: u64 = kernel(task + offset!(task_stack) as u64).unwrap_or(0);
        Registers {
            typed: core::ptr::null(),
            address: stack + setting!(regs_from_stack) as u64,
        }
    }

    #[inline(always)]
    fn read(&self, offset: u32) -> u64 {
        if setting!(has_task_pt_regs) != 0 {
            field(self.typed, offset)
        } else {
            kernel(self.address + offset as u64).unwrap_or(0)
        }
    }

    /// System call number, [`sys::NR_NONE`] outside a system call. The slot is a `long` on x86-64
    /// and an `int` on arm64; its low half serves both.
    #[inline(always)]
    pub fn nr(&self) -> u16 {
        let nr = self.read(offset!(regs_nr)) as u32 as i32;
        if nr < 0 || nr >= sys::NR_NONE as i32 {
            sys::NR_NONE
        } else {
            nr as u16
        }
    }

    #[inline(always)]
    pub fn ip(&self) -> u64 {
        self.read(offset!(regs_ip))
    }

    #[inline(always)]
    pub fn sp(&self) -> u64 {
        self.read(offset!(regs_sp))
    }

    /// What a walk of the user stack starts from.
    #[inline(always)]
    pub fn user(&self) -> UserRegisters {
        const NUMBERED: u32 = if cfg!(bpf_target_arch = "aarch64") {
            29 * 8
        } else {
            0
        };
        let fp = offset!(regs_fp) + NUMBERED;
        UserRegisters {
            ip: self.ip(),
            sp: self.sp(),
            fp: self.read(fp),
            link: if cfg!(bpf_target_arch = "aarch64") {
                self.read(fp + 8)
            } else {
                0
            },
        }
    }

    /// Argument 0 to 3 of the system call.
    #[inline(always)]
    pub fn arg0(&self) -> u64 {
        self.read(setting!(regs_args[0]))
    }

    #[inline(always)]
    pub fn arg1(&self) -> u64 {
        self.read(setting!(regs_args[1]))
    }

    #[inline(always)]
    pub fn arg2(&self) -> u64 {
        self.read(setting!(regs_args[2]))
    }

    #[inline(always)]
    pub fn arg3(&self) -> u64 {
        self.read(setting!(regs_args[3]))
    }
}
