//! Writes the root file system a kernel of the matrix boots into: a cpio archive ("newc").
//!
//! Uncompressed, because QEMU maps it as it is and a kernel under software emulation would spend
//! seconds unpacking it. Written here, because device nodes then need no privilege.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use anyhow::{Context as _, Result};

const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const TRAILER: &str = "TRAILER!!!";

/// An archive that is being written.
pub struct Initramfs<W: Write> {
    out: W,
    next_inode: u32,
}

/// Fields of an entry that are not zero for all.
#[derive(Default)]
struct Header {
    mode: u32,
    device_major: u32,
    device_minor: u32,
}

impl<W: Write> Initramfs<W> {
    pub fn new(out: W) -> Self {
        Initramfs { out, next_inode: 1 }
    }

    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, &mode(DIRECTORY | 0o755), &[])
    }

    pub fn file(&mut self, path: &str, permissions: u32, bytes: &[u8]) -> io::Result<()> {
        self.entry(path, &mode(REGULAR | permissions), bytes)
    }

    /// An executable copied from the host.
    ///
    /// # Errors
    /// Where it cannot be read or written.
    pub fn program(&mut self, path: &str, source: &Path) -> Result<()> {
        let bytes = fs::read(source).with_context(|| format!("reading {}", source.display()))?;
        self.file(path, 0o755, &bytes)
            .with_context(|| format!("writing {path} into the initramfs"))
    }

    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, &mode(SYMLINK | 0o777), target.as_bytes())
    }

    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) -> io::Result<()> {
        let header = Header {
            mode: CHARACTER_DEVICE | 0o600,
            device_major: major,
            device_minor: minor,
        };
        self.entry(path, &header, &[])
    }

    /// Ends the archive.
    pub fn finish(mut self) -> io::Result<()> {
        self.entry(TRAILER, &Header::default(), &[])?;
        self.out.flush()
    }

    fn entry(&mut self, path: &str, header: &Header, bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len())
            .map_err(|_| io::Error::other(format!("{path} has 4 GiB or more")))?;
        let name_length = u32::try_from(path.len() + 1)
            .map_err(|_| io::Error::other("a path of 4 GiB or more"))?;
        let fields = [
            self.next_inode,
            header.mode,
            0, // owner
            0, // group
            1, // links
            0, // time
            length,
            0, // device the file lies on, major
            0, // and minor
            header.device_major,
            header.device_minor,
            name_length,
            0, // checksum, unused in this form
        ];
        self.next_inode += 1;
        let mut record = b"070701".to_vec();
        for field in fields {
            write!(record, "{field:08x}")?;
        }
        record.extend_from_slice(path.as_bytes());
        record.push(0);
        pad(&mut record);
        record.extend_from_slice(bytes);
        pad(&mut record);
        self.out.write_all(&record)
    }
}

fn mode(mode: u32) -> Header {
    Header {
        mode,
        ..Header::default()
    }
}

/// Header with name, and contents, each end on a multiple of four bytes.
fn pad(record: &mut Vec<u8>) {
    record.resize(record.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_laid_out_as_the_kernel_reads_them() {
        let mut bytes = Vec::new();
        let mut archive = Initramfs::new(&mut bytes);
        archive.file("init", 0o755, b"hello").expect("in memory");
        archive.finish().expect("in memory");
        assert_eq!(&bytes[..6], b"070701");
        let field = |index: usize| {
            let text = std::str::from_utf8(&bytes[6 + 8 * index..14 + 8 * index]).expect("ASCII");
            u32::from_str_radix(text, 16).expect("hexadecimal")
        };
        assert_eq!(field(1), 0o100_755, "mode");
        assert_eq!(field(6), 5, "length");
        assert_eq!(field(11), 5, "length of the name with its end");
        // 110 bytes of header and 5 of the name end at 115; the contents begin at 116.
        assert_eq!(&bytes[110..121], b"init\0\0hello");
        // 121 is padded to 124, where the trailer begins.
        assert_eq!(&bytes[124..130], b"070701");
        assert!(bytes.ends_with(b"TRAILER!!!\0\0\0\0"));
        assert_eq!(bytes.len() % 4, 0);
    }
}
