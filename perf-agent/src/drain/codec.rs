//! The format of a recording: a header, then frames, LZ4-compressed as one stream (`lz4_flex`: pure
//! Rust, so a static build needs no C library; a 10 s recording of a busy server is a few MB).
//!
//! ```text
//! "PERFAGNT" | version: u32 | LZ4 frame of: ( tag: u8 | length: u32 | payload )*
//! ```
//! Integers are little-endian. Tag 0 is a ring record, 1 to 127 a map, 255 a fact as JSON.

use std::io::{self, Read, Write};

use lz4_flex::frame::{FrameDecoder, FrameEncoder};

use super::{Frame, MapId};

const MAGIC: [u8; 8] = *b"PERFAGNT";
/// Raised when a kernel record or map value changes its layout: an older reader must not guess.
pub const VERSION: u32 = 5;
const TAG_RECORD: u8 = 0;
const TAG_FACT: u8 = 255;
/// No frame is larger: a thread map of 4,194,304 entries would not fit, and a damaged length must
/// not allocate without bound.
const MAX_FRAME: u32 = 1 << 30;

/// Writes a recording.
pub struct Writer<W: Write> {
    out: FrameEncoder<W>,
}

impl<W: Write> Writer<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// That of the writer.
    pub fn new(mut out: W) -> io::Result<Self> {
        out.write_all(&MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        Ok(Writer {
            out: FrameEncoder::new(out),
        })
    }

    /// Appends a frame.
    ///
    /// # Errors
    /// That of the writer.
    pub fn frame(&mut self, frame: &Frame) -> io::Result<()> {
        match frame {
            Frame::Record(bytes) => self.put(TAG_RECORD, bytes),
            Frame::Map(id, bytes) => self.put(*id as u8, bytes),
            Frame::Fact(fact) => self.put(TAG_FACT, &serde_json::to_vec(fact)?),
        }
    }

    fn put(&mut self, tag: u8, payload: &[u8]) -> io::Result<()> {
        self.out.write_all(&[tag])?;
        self.out.write_all(&(payload.len() as u32).to_le_bytes())?;
        self.out.write_all(payload)
    }

    /// Ends the stream. A recording that was not finished is read up to where it was cut.
    ///
    /// # Errors
    /// That of the writer.
    pub fn finish(self) -> io::Result<W> {
        self.out.finish().map_err(io::Error::other)
    }
}

/// Reads a recording.
#[derive(Debug)]
pub struct Reader<R: Read> {
    input: FrameDecoder<R>,
}

/// Why a recording cannot be read.
#[derive(Debug)]
pub enum ReadError {
    NotARecording,
    /// Made by a perf-agent with another format.
    Version(u32),
    /// The recording ends within a frame or its compressed stream is damaged.
    Cut(io::Error),
    Damaged(String),
}

impl std::fmt::Display for ReadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ReadError::NotARecording => write!(f, "this is not a perf-agent recording"),
            ReadError::Version(v) => write!(
                f,
                "the recording has format {v}, this perf-agent reads format {VERSION}; replay it with the version that made it"
            ),
            ReadError::Cut(e) => write!(f, "the recording is cut or damaged: {e}"),
            ReadError::Damaged(what) => write!(f, "the recording is damaged: {what}"),
        }
    }
}

impl std::error::Error for ReadError {}

impl<R: Read> Reader<R> {
    /// Checks the header.
    ///
    /// # Errors
    /// [`ReadError::NotARecording`] or [`ReadError::Version`].
    pub fn new(mut input: R) -> Result<Self, ReadError> {
        let mut header = [0u8; 12];
        input
            .read_exact(&mut header)
            .map_err(|_| ReadError::NotARecording)?;
        if header[..8] != MAGIC {
            return Err(ReadError::NotARecording);
        }
        let version = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        if version != VERSION {
            return Err(ReadError::Version(version));
        }
        Ok(Reader {
            input: FrameDecoder::new(input),
        })
    }

    /// The next frame; `None` at the end.
    ///
    /// # Errors
    /// Cut or damaged.
    pub fn frame(&mut self) -> Result<Option<Frame>, ReadError> {
        let mut tag = [0u8; 1];
        if self.input.read(&mut tag).map_err(ReadError::Cut)? == 0 {
            return Ok(None);
        }
        let mut length = [0u8; 4];
        self.input.read_exact(&mut length).map_err(ReadError::Cut)?;
        let length = u32::from_le_bytes(length);
        if length > MAX_FRAME {
            return Err(ReadError::Damaged(format!("a frame of {length} bytes")));
        }
        // Grown as bytes arrive, not by what the length claims.
        let mut payload = Vec::new();
        let got = (&mut self.input)
            .take(length.into())
            .read_to_end(&mut payload)
            .map_err(ReadError::Cut)?;
        if got != length as usize {
            return Err(ReadError::Cut(io::ErrorKind::UnexpectedEof.into()));
        }
        match tag[0] {
            TAG_RECORD => Ok(Some(Frame::Record(payload))),
            TAG_FACT => serde_json::from_slice(&payload)
                .map(|fact| Some(Frame::Fact(fact)))
                .map_err(|e| ReadError::Damaged(e.to_string())),
            n => match MapId::from_number(n) {
                Some(id) => Ok(Some(Frame::Map(id, payload))),
                None => Err(ReadError::Damaged(format!("a frame of unknown kind {n}"))),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::drain::{EndFact, Fact};

    fn recording(frames: &[Frame]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new()).unwrap();
        for frame in frames {
            writer.frame(frame).unwrap();
        }
        writer.finish().unwrap()
    }

    fn read_all(bytes: &[u8]) -> Result<Vec<Frame>, ReadError> {
        let mut reader = Reader::new(bytes)?;
        let mut frames = Vec::new();
        while let Some(frame) = reader.frame()? {
            frames.push(frame);
        }
        Ok(frames)
    }

    fn frames() -> Vec<Frame> {
        vec![
            Frame::Record(vec![1, 2, 3]),
            Frame::Map(MapId::Sites, vec![7; 100]),
            Frame::Fact(Fact::End(EndFact {
                reason: "duration".into(),
                exit_code: Some(3),
            })),
        ]
    }

    #[test]
    fn frames_come_back_as_they_were() {
        assert_eq!(read_all(&recording(&frames())).unwrap(), frames());
    }

    #[test]
    fn another_version_is_named_and_other_bytes_are_refused() {
        let mut bytes = recording(&frames());
        bytes[8] = 9;
        assert!(matches!(read_all(&bytes), Err(ReadError::Version(9))));
        assert!(matches!(
            read_all(b"PK\x03\x04 something"),
            Err(ReadError::NotARecording)
        ));
        assert!(matches!(read_all(b""), Err(ReadError::NotARecording)));
    }

    proptest! {
        #[test]
        fn a_damaged_recording_is_an_error_or_a_prefix_and_never_a_panic(
            at in 12usize..400, value: u8, cut in 12usize..400
        ) {
            let mut bytes = recording(&frames());
            let length = bytes.len();
            bytes[at.min(length - 1)] ^= value;
            bytes.truncate(cut.min(length));
            let _ = read_all(&bytes);
        }
    }
}
