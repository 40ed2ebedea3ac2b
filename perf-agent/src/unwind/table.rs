//! Writes the tables of all objects into the kernel side's maps, as they are compiled.
//!
//! The maps are the only place where they are: the agent holds one block and, of the object under
//! way, the index.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
};

use perf_ebpf_common::signals::python::Python;
use perf_ebpf_common::signals::unwind::{
    BLOCK_WORDS, Block, MAX_OBJECTS, MAX_RULES, Object, Range, Rule, SEGMENT_BYTES, row,
};

use super::compile::UNSUPPORTED;

/// The kernel side's maps, or what stands for them in a test.
pub trait Maps {
    /// Room for words, in blocks.
    fn blocks(&self) -> u32;
    fn read_block(&self, number: u32) -> io::Result<Block>;
    fn write_block(&self, number: u32, block: &Block) -> io::Result<()>;
    fn write_object(&self, number: u32, object: &Object) -> io::Result<()>;
    fn write_rule(&self, number: u32, rule: &Rule) -> io::Result<()>;
    /// Replaces the mappings of a space, and the interpreter in it.
    fn write_space(&self, number: u32, ranges: &[Range], python: Python) -> io::Result<()>;
    /// Gives a process its space; `None` takes it away.
    fn set_process(&self, pid: u32, space: Option<u32>) -> io::Result<()>;
    /// Space of each process that has one.
    fn processes(&self) -> io::Result<Vec<(u32, u32)>>;
}

/// Why an object has no table.
#[derive(Debug)]
pub enum Refused {
    /// The maps have no room left.
    Full,
    /// It covers more than 4 GiB of addresses.
    TooWide,
    /// It has no unwind information.
    Nothing,
    Maps(io::Error),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Refused::Maps(error)
    }
}

/// Tables written so far.
pub struct Tables<M> {
    pub maps: M,
    rules: HashMap<Rule, u16>,
    objects: u32,
    /// Words used.
    position: u32,
    block: Box<Block>,
}

/// Number of the rule that stands for those that cannot be expressed.
const UNSUPPORTED_NUMBER: u16 = 1;

impl<M: Maps> Tables<M> {
    /// Tables without an object.
    ///
    /// # Errors
    /// The maps cannot be written.
    pub fn new(maps: M) -> io::Result<Self> {
        maps.write_rule(UNSUPPORTED_NUMBER.into(), &UNSUPPORTED)?;
        Ok(Tables {
            maps,
            rules: HashMap::from([(Rule::default(), 0), (UNSUPPORTED, UNSUPPORTED_NUMBER)]),
            objects: 0,
            position: 0,
            block: Box::new(Block {
                words: [0; BLOCK_WORDS],
            }),
        })
    }

    /// Bytes of the maps in use.
    pub fn bytes(&self) -> u64 {
        u64::from(self.position) * 4
    }

    /// How many objects have a table.
    pub fn objects(&self) -> u32 {
        self.objects
    }

    /// Adds an object: `rows` hands over its rows by rising address. Its number, and the address
    /// its table begins at.
    ///
    /// # Errors
    /// [`Refused`]; nothing of it is kept then.
    pub fn add(
        &mut self,
        rows: impl FnOnce(&mut Writer<'_, M>) -> Result<(), Refused>,
    ) -> Result<(u32, u64), Refused> {
        if self.objects + 1 >= MAX_OBJECTS {
            return Err(Refused::Full);
        }
        let start = self.position;
        let mut writer = Writer {
            tables: self,
            begin: 0,
            rows: 0,
            index: Vec::new(),
            pending: None,
            last: 0,
        };
        let written = rows(&mut writer).and_then(|()| writer.finish(start));
        match written {
            Ok((object, begin)) => {
                self.objects += 1;
                self.maps.write_object(self.objects, &object)?;
                Ok((self.objects, begin))
            }
            Err(refused) => {
                self.position = start;
                if !(start as usize).is_multiple_of(BLOCK_WORDS) {
                    *self.block = self.maps.read_block(start / BLOCK_WORDS as u32)?;
                }
                Err(refused)
            }
        }
    }

    fn number(&mut self, rule: Rule) -> io::Result<u16> {
        let next = self.rules.len();
        match self.rules.entry(rule) {
            Entry::Occupied(entry) => Ok(*entry.get()),
            Entry::Vacant(_) if next >= MAX_RULES as usize => Ok(UNSUPPORTED_NUMBER),
            Entry::Vacant(entry) => {
                self.maps.write_rule(next as u32, &rule)?;
                Ok(*entry.insert(next as u16))
            }
        }
    }

    fn word(&mut self, word: u32) -> Result<(), Refused> {
        let (block, at) = (
            self.position / BLOCK_WORDS as u32,
            self.position as usize % BLOCK_WORDS,
        );
        if block >= self.maps.blocks() {
            return Err(Refused::Full);
        }
        self.block.words[at] = word;
        self.position += 1;
        if at + 1 == BLOCK_WORDS {
            self.maps.write_block(block, &self.block)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if !(self.position as usize).is_multiple_of(BLOCK_WORDS) {
            self.maps
                .write_block(self.position / BLOCK_WORDS as u32, &self.block)?;
        }
        Ok(())
    }
}

/// Takes the rows of one object.
pub struct Writer<'t, M> {
    tables: &'t mut Tables<M>,
    begin: u64,
    rows: u32,
    index: Vec<u32>,
    /// The last row, which one of the same address may yet replace.
    pending: Option<(u64, u16)>,
    /// Rule of the last row written.
    last: u16,
}

impl<M: Maps> Writer<'_, M> {
    /// From `address` on, `rule` holds.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn row(&mut self, address: u64, rule: Rule) -> Result<(), Refused> {
        let number = self.tables.number(rule)?;
        match self.pending {
            Some((last, _)) if last == address => {}
            Some((last, number)) => self.write(last, number)?,
            None if self.rows == 0 => {
                self.begin = address & !(SEGMENT_BYTES - 1);
                // There always is a row before.
                self.rows = 1;
                self.tables.word(row(self.begin, 0))?;
            }
            None => {}
        }
        self.pending = Some((address, number));
        Ok(())
    }

    fn write(&mut self, address: u64, number: u16) -> Result<(), Refused> {
        if number == self.last {
            return Ok(());
        }
        self.fill_index(address)?;
        self.tables.word(row(address, number))?;
        self.rows += 1;
        self.last = number;
        Ok(())
    }

    /// The index up to the segment of an address.
    fn fill_index(&mut self, address: u64) -> Result<(), Refused> {
        let segment = (address - self.begin) / SEGMENT_BYTES;
        if segment > u64::from(u32::MAX) / SEGMENT_BYTES {
            return Err(Refused::TooWide);
        }
        if self.index.len() as u64 <= segment {
            self.index.resize(segment as usize + 1, self.rows);
        }
        Ok(())
    }

    fn finish(mut self, start: u32) -> Result<(Object, u64), Refused> {
        let Some((last, number)) = self.pending.take() else {
            return Err(Refused::Nothing);
        };
        self.write(last, number)?;
        self.fill_index(last)?;
        self.index.push(self.rows);
        let object = Object {
            rows: start,
            index: self.tables.position,
            segments: self.index.len() as u32 - 1,
            pad: 0,
        };
        for word in std::mem::take(&mut self.index) {
            self.tables.word(word)?;
        }
        self.tables.flush()?;
        Ok((object, self.begin))
    }
}
