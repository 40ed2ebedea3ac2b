//! NDJSON in files of bounded size: FILE is the newest, FILE.1 the one before, and so on. Each begins
//! with the `hello` line, so that it can be read alone.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{Destination, Sink};
use crate::model::{Body, Line};

/// Files kept beside the newest unless told otherwise.
const KEEP: u32 = 5;

/// When a new file is begun, and how many old ones are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// No file is longer, unless `hello` and one line are.
    pub bytes: u64,
    pub keep: u32,
}

impl Rotation {
    /// `100MB`, `1GiB,3`: size, and how many old files are kept.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Rotation, String> {
        let (size, keep) = text.split_once(',').unzip();
        let keep = match keep {
            Some(keep) => keep
                .parse()
                .map_err(|_| format!("no number of files: `{keep}`"))?,
            None => KEEP,
        };
        let bytes = parse_size(size.unwrap_or(text))?;
        Ok(Rotation { bytes, keep })
    }
}

/// `500kB`, `100MB`, `1GiB`; a bare number is bytes. More than zero.
///
/// # Errors
/// What is wrong with it.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => {
            return Err(format!(
                "no unit of size: `{unit}` (use kB, MB, GB, KiB, MiB, GiB)"
            ));
        }
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "no size: use a number and a unit, as in 100MB".to_owned())?;
    match number.checked_mul(factor) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        Some(_) => Err("must be more than zero".to_owned()),
        None => Err("more than any file can hold".to_owned()),
    }
}

/// The sink.
struct Rotating {
    path: PathBuf,
    rotation: Rotation,
    out: Destination,
    /// Bytes in `out`, and those of them that are `hello`.
    size: u64,
    hello: Vec<u8>,
    buffer: Vec<u8>,
}

/// The sink over a file that is empty yet.
///
/// # Errors
/// It is no file that can be renamed.
pub fn open(out: Destination, path: &Path, rotation: Rotation) -> io::Result<Box<dyn Sink>> {
    if !out.file.metadata()?.is_file() {
        return Err(io::Error::other("only a regular file can be rotated"));
    }
    Ok(Box::new(Rotating {
        path: path.to_owned(),
        rotation,
        out,
        size: 0,
        hello: Vec::new(),
        buffer: Vec::new(),
    }))
}

impl Rotating {
    fn numbered(&self, n: u32) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(format!(".{n}"));
        path.into()
    }

    /// Moves every file on by one and begins a new one.
    fn rotate(&mut self) -> io::Result<()> {
        let keep = self.rotation.keep;
        for n in (1..keep).rev() {
            rename(&self.numbered(n), &self.numbered(n + 1))?;
        }
        match keep {
            0 => fs::remove_file(&self.path)
                .map_err(|e| in_words(&e, format!("cannot remove {}", self.path.display())))?,
            _ => rename(&self.path, &self.numbered(1))?,
        }
        self.out = Destination::create(&self.path)
            .map_err(|e| in_words(&e, format!("cannot write to {}", self.path.display())))?;
        self.out.write_whole(&self.hello)?;
        self.size = self.hello.len() as u64;
        Ok(())
    }
}

/// What is not there needs not be moved.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(in_words(&e, format!("cannot rename {}", from.display()))),
        Ok(()) => Ok(()),
    }
}

fn in_words(error: &io::Error, what: String) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

impl Sink for Rotating {
    fn line(&mut self, line: &Line) -> io::Result<()> {
        self.buffer.clear();
        serde_json::to_writer(&mut self.buffer, line)?;
        self.buffer.push(b'\n');
        let length = self.buffer.len() as u64;
        if let Body::Hello(_) = line.body {
            self.hello.clone_from(&self.buffer);
        } else if self.size > self.hello.len() as u64 && self.size + length > self.rotation.bytes {
            self.rotate()?;
        }
        self.out.write_whole(&self.buffer)?;
        self.size += length;
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use crate::model::Coverage;

    fn lines() -> impl Iterator<Item = Line> {
        let mut coverage = Coverage::default();
        let mut n = 0;
        std::iter::repeat_with(move || {
            coverage.lifetime_ns = 1_000 + n;
            n += 1;
            Line::new(Body::Coverage(coverage.clone()))
        })
    }

    fn hello() -> Line {
        let lines = fixtures::full_lines();
        let found = lines.into_iter().find(|l| matches!(l.body, Body::Hello(_)));
        found.unwrap()
    }

    fn length(line: &Line) -> u64 {
        serde_json::to_vec(line).unwrap().len() as u64 + 1
    }

    /// `lifetime_ns` of each line in a file, and that it begins with `hello` and is not too long.
    fn content(path: &Path, rotation: Rotation) -> Vec<u64> {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.len() as u64 <= rotation.bytes && text.ends_with('\n'));
        let mut lines = text
            .lines()
            .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        assert_eq!(lines.next().unwrap()["type"], "hello");
        lines.map(|l| l["lifetime_ns"].as_u64().unwrap()).collect()
    }

    #[test]
    fn each_file_is_a_stream_and_the_oldest_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        let one = length(&lines().next().unwrap());
        let rotation = Rotation {
            bytes: length(&hello()) + 3 * one,
            keep: 2,
        };
        let file = Destination::create(&path).unwrap();
        let mut sink = open(file, &path, rotation).unwrap();
        sink.line(&hello()).unwrap();
        for line in lines().take(11) {
            sink.line(&line).unwrap();
        }
        sink.finish().unwrap();
        let at = |name: &str| content(&directory.path().join(name), rotation);
        assert_eq!(at("out"), [1_009, 1_010]);
        assert_eq!(at("out.1"), [1_006, 1_007, 1_008]);
        assert_eq!(at("out.2"), [1_003, 1_004, 1_005]);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_line_longer_than_the_size_has_a_file_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        let rotation = Rotation { bytes: 1, keep: 1 };
        let file = Destination::create(&path).unwrap();
        let mut sink = open(file, &path, rotation).unwrap();
        sink.line(&hello()).unwrap();
        for line in lines().take(3) {
            sink.line(&line).unwrap();
        }
        let count = |name: &str| {
            let text = fs::read_to_string(directory.path().join(name)).unwrap();
            text.lines().count()
        };
        assert_eq!((count("out"), count("out.1")), (2, 2));
    }

    #[test]
    fn a_file_that_cannot_be_renamed_is_one_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        // A directory that is not empty cannot be replaced by a file.
        fs::create_dir_all(directory.path().join("out.1/x")).unwrap();
        let rotation = Rotation { bytes: 1, keep: 1 };
        let file = Destination::create(&path).unwrap();
        let mut sink = open(file, &path, rotation).unwrap();
        sink.line(&hello()).unwrap();
        let mut lines = lines();
        sink.line(&lines.next().unwrap()).unwrap();
        let error = sink.line(&lines.next().unwrap()).unwrap_err().to_string();
        let expected = format!("cannot rename {}: ", path.display());
        assert!(error.starts_with(&expected), "{error}");
        // What was written is there.
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let path = Path::new("/dev/null");
        let rotation = Rotation { bytes: 1, keep: 1 };
        assert!(open(Destination::create(path).unwrap(), path, rotation).is_err());
    }

    #[test]
    fn a_size_is_a_number_and_a_unit() {
        let of = |bytes, keep| Ok(Rotation { bytes, keep });
        assert_eq!(Rotation::parse("100MB"), of(100_000_000, 5));
        assert_eq!(Rotation::parse("1GiB,3"), of(1 << 30, 3));
        assert_eq!(Rotation::parse("4096,0"), of(4096, 0));
        for text in [
            "",
            "MB",
            "0",
            "1.5MB",
            "1mb",
            "1MB,",
            "1MB,x",
            "99999999999GB",
            ",3",
        ] {
            assert!(Rotation::parse(text).is_err(), "{text}");
        }
    }
}
