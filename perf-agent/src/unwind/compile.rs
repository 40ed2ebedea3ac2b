//! From `.eh_frame` and `.debug_frame` to rows: which rule holds from which address on.

use std::collections::HashMap;

use gimli::{
    BaseAddresses, CfaRule, CommonInformationEntry, DebugFrame, EhFrame, Encoding, EndianSlice,
    NativeEndian, Operation, Register, RegisterRule, UnwindContext, UnwindExpression, UnwindOffset,
    UnwindSection, UnwindTableRow,
};
use perf_ebpf_common::signals::unwind::{Rule, cfa, fp};

type Slice<'a> = EndianSlice<'a, NativeEndian>;

// DWARF numbers of the registers that are followed.
#[cfg(target_arch = "x86_64")]
mod registers {
    pub const FP: u16 = 6;
    pub const SP: u16 = 7;
    pub const IP: u16 = 16;
}
#[cfg(not(target_arch = "x86_64"))]
mod registers {
    pub const FP: u16 = 29;
    pub const SP: u16 = 31;
    /// No number of its own; the return address stands in the link register.
    pub const IP: u16 = 32;
}

/// Code between two functions shorter than this is padding: nothing runs there, so that the rule
/// before may stand for it (a row less for most functions).
const PADDING: u64 = 16;

/// Unwind information of one object, as its sections hold it.
#[derive(Default)]
pub struct Frames<'a> {
    /// `.eh_frame`, and the address it is linked at.
    pub eh_frame: &'a [u8],
    pub eh_frame_address: u64,
    pub text_address: u64,
    pub got_address: u64,
    /// `.debug_frame`, for functions that `.eh_frame` does not have: of a program built without it the
    /// C library's start code still has some.
    pub debug_frame: &'a [u8],
}

/// What was compiled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// Functions with rows.
    pub functions: usize,
    /// Functions whose information is malformed, from where on its rows are
    /// [`cfa::UNSUPPORTED`], and one for a section that ends in the middle.
    pub malformed: usize,
}

/// Compiles an object, handing each row (address, rule) to `row`, by rising address. Rows that say
/// what the one before said are among them.
///
/// # Errors
/// What `row` returns.
pub fn compile<E>(
    frames: &Frames<'_>,
    row: impl FnMut(u64, Rule) -> Result<(), E>,
) -> Result<Compiled, E> {
    let bases = BaseAddresses::default()
        .set_eh_frame(frames.eh_frame_address)
        .set_text(frames.text_address)
        .set_got(frames.got_address);
    let mut eh = EhFrame::new(frames.eh_frame, NativeEndian);
    eh.set_address_size(8);
    let mut debug = DebugFrame::new(frames.debug_frame, NativeEndian);
    debug.set_address_size(8);
    let mut eh = Section::new(&eh, &bases);
    let mut debug = Section::new(&debug, &bases);
    let mut functions = debug.functions(Origin::Debug);
    functions.extend(eh.functions(Origin::Eh));
    functions.sort_by_key(|f| (f.address, f.origin));
    rows(&functions, row, |function, limit, row| {
        match function.origin {
            Origin::Debug => debug.function(function, limit, row),
            Origin::Eh => eh.function(function, limit, row),
        }
    })
    .map(|functions| Compiled {
        functions,
        malformed: eh.malformed + debug.malformed,
    })
}

/// Rows of all functions, and none between them; how many functions those are. Where two begin at one
/// address the later counts.
fn rows<E, R: FnMut(u64, Rule) -> Result<(), E>>(
    functions: &[Function],
    mut row: R,
    mut rows_of: impl FnMut(&Function, u64, &mut R) -> Result<u64, E>,
) -> Result<usize, E> {
    let (mut end, mut count) = (0u64, 0);
    for (i, function) in functions.iter().enumerate() {
        let limit = functions.get(i + 1).map_or(u64::MAX, |next| next.address);
        if limit == function.address {
            continue;
        }
        if function.address > end.saturating_add(PADDING - 1) && end != 0 {
            row(end, Rule::default())?;
        }
        end = rows_of(function, limit, &mut row)?;
        count += 1;
    }
    if end != 0 {
        row(end, Rule::default())?;
    }
    Ok(count)
}

/// The section that describes a function. That of the last is taken where both do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    Debug,
    Eh,
}

/// A function: its address, and where its information is.
struct Function {
    address: u64,
    origin: Origin,
    offset: usize,
}

struct Section<'a, S: UnwindSection<Slice<'a>>> {
    section: &'a S,
    bases: &'a BaseAddresses,
    cies: HashMap<usize, CommonInformationEntry<Slice<'a>>>,
    context: UnwindContext<usize>,
    /// See [`Compiled::malformed`].
    malformed: usize,
}

impl<'a, S: UnwindSection<Slice<'a>>> Section<'a, S> {
    fn new(section: &'a S, bases: &'a BaseAddresses) -> Self {
        Section {
            section,
            bases,
            cies: HashMap::new(),
            context: UnwindContext::new(),
            malformed: 0,
        }
    }

    /// All functions, in the order of the section.
    fn functions(&mut self, origin: Origin) -> Vec<Function> {
        let mut functions = Vec::new();
        let mut entries = self.section.entries(self.bases);
        loop {
            match entries.next() {
                Ok(Some(gimli::CieOrFde::Fde(partial))) => {
                    let cies = &mut self.cies;
                    match partial.parse(|section, bases, offset| cie(cies, section, bases, offset))
                    {
                        // The linker leaves functions it has thrown away at address 0, or at the last.
                        Ok(fde) if fde.initial_address() == 0 || fde.len() == 0 => {}
                        Ok(fde) if fde.initial_address().checked_add(fde.len()).is_none() => {}
                        Ok(fde) => functions.push(Function {
                            address: fde.initial_address(),
                            origin,
                            offset: partial.offset(),
                        }),
                        Err(_) => self.malformed += 1,
                    }
                }
                Ok(Some(gimli::CieOrFde::Cie(_))) => {}
                Ok(None) => break,
                // Where the next one begins is not known.
                Err(_) => {
                    self.malformed += 1;
                    break;
                }
            }
        }
        functions
    }

    /// Rows of one function; where it ends.
    fn function<E>(
        &mut self,
        function: &Function,
        limit: u64,
        row: &mut impl FnMut(u64, Rule) -> Result<(), E>,
    ) -> Result<u64, E> {
        let cies = &mut self.cies;
        let fde = self.section.fde_from_offset(
            self.bases,
            S::Offset::from(function.offset),
            |section, bases, offset| cie(cies, section, bases, offset),
        );
        // It was read before.
        let Ok(fde) = fde else {
            return Ok(function.address);
        };
        let end = fde.end_address().min(limit);
        let mut next = function.address;
        if let Ok(mut rows) = fde.rows(self.section, self.bases, &mut self.context) {
            let reader = Reader {
                section: self.section,
                encoding: fde.cie().encoding(),
                return_address: fde.cie().return_address_register(),
                signal: fde.is_signal_trampoline(),
            };
            loop {
                match rows.next_row() {
                    Ok(Some(r)) if r.start_address() < end => {
                        // Rows of a function rise; where they do not, the later one holds.
                        let address = r.start_address().max(next);
                        row(address, reader.rule(r))?;
                        next = address;
                    }
                    Ok(_) => return Ok(end),
                    Err(_) => break,
                }
            }
        }
        self.malformed += 1;
        row(next, UNSUPPORTED)?;
        Ok(end)
    }
}

/// A CIE, parsed once: thousands of functions share each.
fn cie<'a, S: UnwindSection<Slice<'a>>>(
    cies: &mut HashMap<usize, CommonInformationEntry<Slice<'a>>>,
    section: &S,
    bases: &BaseAddresses,
    offset: S::Offset,
) -> gimli::Result<CommonInformationEntry<Slice<'a>>> {
    let key = UnwindOffset::into(offset);
    if let Some(cie) = cies.get(&key) {
        return Ok(cie.clone());
    }
    let cie = section.cie_from_offset(bases, offset)?;
    cies.insert(key, cie.clone());
    Ok(cie)
}

/// What stands where the information cannot be followed.
pub const UNSUPPORTED: Rule = Rule {
    cfa: cfa::UNSUPPORTED,
    fp: 0,
    cfa_offset: 0,
    fp_offset: 0,
    extra: 0,
};

/// What stands where a stack begins.
pub const END: Rule = Rule {
    cfa: cfa::END,
    fp: 0,
    cfa_offset: 0,
    fp_offset: 0,
    extra: 0,
};

/// Turns a row of DWARF into a rule.
struct Reader<'s, S> {
    section: &'s S,
    encoding: Encoding,
    return_address: Register,
    signal: bool,
}

impl<'a, S: UnwindSection<Slice<'a>>> Reader<'_, S> {
    fn rule(&self, row: &UnwindTableRow<usize>) -> Rule {
        self.try_rule(row).unwrap_or(UNSUPPORTED)
    }

    fn try_rule(&self, row: &UnwindTableRow<usize>) -> Option<Rule> {
        if self.signal {
            // Where the kernel puts the interrupted registers is part of its binary interface; the
            // expressions that lead there say the same.
            return Some(Rule {
                cfa: cfa::SIGNAL,
                ..Rule::default()
            });
        }
        let return_address = row.register(self.return_address);
        if return_address == Some(RegisterRule::Undefined) {
            return Some(END);
        }
        let mut rule = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => Rule {
                cfa: match register.0 {
                    registers::SP => cfa::SP,
                    registers::FP => cfa::FP,
                    _ => return None,
                },
                cfa_offset: words(*offset)?,
                ..Rule::default()
            },
            CfaRule::Expression(expression) => self.cfa_expression(expression)?,
        };
        match return_address {
            Some(RegisterRule::Offset(offset)) if matches!(rule.cfa, cfa::SP | cfa::FP) => {
                rule.extra = words(offset)?;
                if registers::IP == 16 && rule.extra != -1 {
                    return None;
                }
            }
            Some(RegisterRule::Offset(-8)) => {}
            // arm64: it still is in the link register.
            None | Some(RegisterRule::SameValue) if registers::IP != 16 => {}
            _ => return None,
        }
        match row.register(Register(registers::FP)) {
            None | Some(RegisterRule::SameValue) => {}
            Some(RegisterRule::Offset(offset)) => {
                rule.fp = fp::AT_CFA;
                rule.fp_offset = words(offset)?;
            }
            Some(RegisterRule::Expression(expression)) => {
                match self.operations(&expression)?.as_slice() {
                    [
                        Operation::RegisterOffset {
                            register, offset, ..
                        },
                    ] if register.0 == registers::FP => {
                        rule.fp = fp::AT_FP;
                        rule.fp_offset = words(*offset)?;
                    }
                    _ => rule.fp = fp::LOST,
                }
            }
            Some(_) => rule.fp = fp::LOST,
        }
        Some(rule)
    }

    /// The kinds of expressions that are met: a linkage table (binutils), a saved stack pointer
    /// (GCC's realigned frames, OpenSSL's assembler code), a plain sum.
    fn cfa_expression(&self, expression: &UnwindExpression<usize>) -> Option<Rule> {
        let operations = self.operations(expression)?;
        let [
            Operation::RegisterOffset {
                register, offset, ..
            },
            rest @ ..,
        ] = operations.as_slice()
        else {
            return None;
        };
        let at_sp = match register.0 {
            registers::SP => true,
            registers::FP => false,
            _ => return None,
        };
        let kind = |sp, fp| if at_sp { sp } else { fp };
        let deref = |added: i64| {
            Some(Rule {
                cfa: kind(cfa::DEREF_SP, cfa::DEREF_FP),
                cfa_offset: words(*offset)?,
                extra: words(added)?,
                ..Rule::default()
            })
        };
        match rest {
            [] => Some(Rule {
                cfa: kind(cfa::SP, cfa::FP),
                cfa_offset: words(*offset)?,
                ..Rule::default()
            }),
            [Operation::Deref { size: 8, .. }] => deref(0),
            [
                Operation::Deref { size: 8, .. },
                Operation::PlusConstant { value },
            ] => deref(i64::try_from(*value).ok()?),
            // (ip & 15 >= N) << 3 + sp + 8: the entry's second instruction pushes a word.
            [
                Operation::RegisterOffset {
                    register: Register(registers::IP),
                    offset: 0,
                    ..
                },
                Operation::UnsignedConstant { value: 15 },
                Operation::And,
                Operation::UnsignedConstant { value: from },
                Operation::Ge,
                Operation::UnsignedConstant { value: 3 },
                Operation::Shl,
                Operation::Plus,
            ] if at_sp => Some(Rule {
                cfa: cfa::PLT,
                cfa_offset: words(*offset)?,
                extra: i16::try_from(*from).ok()?,
                ..Rule::default()
            }),
            _ => None,
        }
    }

    fn operations(
        &self,
        expression: &UnwindExpression<usize>,
    ) -> Option<Vec<Operation<Slice<'a>>>> {
        /// Longer than any that is understood.
        const MOST: usize = 16;
        let mut operations = expression.get(self.section).ok()?.operations(self.encoding);
        let mut read = Vec::new();
        while let Some(operation) = operations.next().ok()? {
            if read.len() == MOST {
                return None;
            }
            read.push(operation);
        }
        Some(read)
    }
}

/// Bytes as words of eight, where they are whole words and few enough.
fn words(bytes: i64) -> Option<i16> {
    (bytes % 8 == 0)
        .then(|| i16::try_from(bytes / 8).ok())
        .flatten()
}
