//! The log of a container: docker's json-file form, one object for each line of output.

use super::clock;
use super::config::LogConfig;
use serde::Deserialize;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Name of the current file in a container's directory; older ones have `.1`, `.2`… after it.
pub const LOG_NAME: &str = "json.log";

/// Longer lines are kept in pieces.
const PIECE: usize = 16 << 10;
/// So many bytes after another the free space is looked at.
const LOOK_EVERY: u64 = 16 << 20;

/// One piece of output.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Entry {
    /// The text, with its line end if it has one.
    pub log: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// RFC 3339.
    pub time: String,
}

/// Which stream output came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, and everything of a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Writes the log.
#[derive(Debug)]
pub(crate) struct LogWriter {
    path: PathBuf,
    file: File,
    size: u64,
    max_size: Option<u64>,
    max_file: u32,
    looked_at: u64,
    /// Lines that have not ended yet.
    open: [Vec<u8>; 2],
}

impl LogWriter {
    /// Opens the log in `directory`; `None` for drivers that keep nothing.
    pub(crate) fn open(directory: &Path, config: &LogConfig) -> io::Result<Option<LogWriter>> {
        if config.kind == "none" {
            return Ok(None);
        }
        let path = directory.join(LOG_NAME);
        let file = append_to(&path)?;
        let size = file.metadata()?.len();
        let max_size = config.config.get("max-size").and_then(|text| parse_size(text));
        let max_file = config.config.get("max-file").and_then(|text| text.parse().ok()).unwrap_or(1).max(1);
        Ok(Some(LogWriter { path, file, size, max_size, max_file, looked_at: size, open: Default::default() }))
    }

    /// Takes output as it comes.
    pub(crate) fn write(&mut self, stream: Stream, data: &[u8]) -> io::Result<()> {
        let mut lines = Vec::with_capacity(data.len() * 2 + 128);
        let time = clock::stamp();
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            let open = &mut self.open[stream as usize];
            let mut rest = piece;
            if !open.is_empty() || rest.last() != Some(&b'\n') || rest.len() > PIECE {
                while !rest.is_empty() {
                    let count = rest.len().min(PIECE - open.len());
                    open.extend(&rest[..count]);
                    rest = &rest[count..];
                    if open.last() == Some(&b'\n') {
                        encode(&mut lines, open, stream, &time);
                        open.clear();
                    } else if open.len() == PIECE {
                        let end = character_end(open);
                        encode(&mut lines, &open[..end], stream, &time);
                        open.drain(..end);
                    }
                }
            } else {
                encode(&mut lines, rest, stream, &time);
            }
            if self.max_size.is_some_and(|max| self.size + lines.len() as u64 >= max) {
                self.append(&lines)?;
                lines.clear();
            }
        }
        self.append(&lines)
    }

    /// Keeps what has not ended with a line end.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        let time = clock::stamp();
        let mut lines = Vec::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let open = std::mem::take(&mut self.open[stream as usize]);
            if !open.is_empty() {
                encode(&mut lines, &open, stream, &time);
            }
        }
        self.append(&lines)
    }

    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        // Not before something follows: of one file, the last lines are to stay.
        if self.max_size.is_some_and(|max| self.size >= max) {
            self.rotate()?;
        }
        self.file.write_all(lines)?;
        self.size += lines.len() as u64;
        // A flood must not fill the disk: where it is nearly full, the older half of the log goes.
        if self.size > self.looked_at + LOOK_EVERY {
            self.looked_at = self.size;
            let full = rustix::fs::fstatvfs(&self.file).is_ok_and(|fs| fs.f_bavail < fs.f_blocks / 10);
            if full {
                self.max_file = self.max_file.max(2);
                self.rotate()?;
            }
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..self.max_file).rev() {
            let older = numbered(&self.path, number);
            let newer = if number == 1 { self.path.clone() } else { numbered(&self.path, number - 1) };
            match std::fs::rename(newer, older) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.max_file == 1 {
            std::fs::remove_file(&self.path)?;
        }
        self.file = append_to(&self.path)?;
        (self.size, self.looked_at) = (0, 0);
        Ok(())
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

/// The name of an older file of the log.
pub fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// Where the last whole character ends.
fn character_end(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() && error.valid_up_to() > 0 => error.valid_up_to(),
        _ => bytes.len(),
    }
}

fn encode(into: &mut Vec<u8>, line: &[u8], stream: Stream, time: &str) {
    into.extend(b"{\"log\":\"");
    let text = String::from_utf8_lossy(line);
    let bytes = text.as_bytes();
    let mut plain = 0;
    for (at, byte) in bytes.iter().enumerate() {
        let escaped: &[u8] = match byte {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            0..0x20 => &[],
            _ => continue,
        };
        into.extend(&bytes[plain..at]);
        plain = at + 1;
        if escaped.is_empty() {
            into.extend(format!("\\u{byte:04x}").as_bytes());
        } else {
            into.extend(escaped);
        }
    }
    into.extend(&bytes[plain..]);
    let stream = if stream == Stream::Stdout { "stdout" } else { "stderr" };
    into.extend(format!("\",\"stream\":\"{stream}\",\"time\":\"{time}\"}}\n").as_bytes());
}

/// Bytes: a number with an optional `b`, `k`, `m` or `g`.
pub fn parse_size(text: &str) -> Option<u64> {
    let lower = text.trim().to_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match lower[digits.len()..].trim_end_matches("ib").trim_end_matches('b') {
        "" => 1,
        "k" => 1u64 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        _ => return None,
    };
    match digits.parse::<u64>() {
        Ok(number) => number.checked_mul(factor),
        Err(_) => digits.parse::<f64>().ok().filter(|n| *n >= 0.0 && n.is_finite()).map(|n| (n * factor as f64) as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(config: &LogConfig, output: &[(Stream, &[u8])]) -> (tempfile::TempDir, String) {
        let directory = tempfile::tempdir().unwrap();
        let mut log = LogWriter::open(directory.path(), config).unwrap().unwrap();
        for (stream, data) in output {
            log.write(*stream, data).unwrap();
        }
        log.flush().unwrap();
        let text = std::fs::read_to_string(directory.path().join(LOG_NAME)).unwrap();
        (directory, text)
    }

    fn entries(text: &str) -> Vec<Entry> {
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn lines_are_joined_across_writes_and_streams_kept_apart() {
        let output: [(Stream, &[u8]); 4] = [
            (Stream::Stdout, b"one\ntw"),
            (Stream::Stderr, b"err\n"),
            (Stream::Stdout, b"o\n"),
            (Stream::Stdout, "\0ü\t\"end".as_bytes()),
        ];
        let (_directory, text) = written(&LogConfig::default(), &output);
        let texts: Vec<_> = entries(&text).iter().map(|e| (e.stream.clone(), e.log.clone())).collect();
        let want = [("stdout", "one\n"), ("stderr", "err\n"), ("stdout", "two\n"), ("stdout", "\0ü\t\"end")];
        assert_eq!(texts, want.map(|(stream, text)| (stream.to_owned(), text.to_owned())));
    }

    #[test]
    fn long_lines_come_in_pieces_of_whole_characters() {
        let long = "ü".repeat(20_000) + "\n";
        let (_directory, text) = written(&LogConfig::default(), &[(Stream::Stdout, long.as_bytes())]);
        let entries = entries(&text);
        assert!(entries.len() > 2);
        assert_eq!(entries.iter().map(|e| e.log.as_str()).collect::<String>(), long);
    }

    #[test]
    fn a_bounded_log_keeps_its_end() {
        let limits = [("max-size".to_owned(), "1k".to_owned()), ("max-file".to_owned(), "2".to_owned())];
        let config = LogConfig { kind: "json-file".to_owned(), config: limits.into() };
        let output: Vec<String> = (0..200).map(|n| format!("{n}\n")).collect();
        let output: Vec<(Stream, &[u8])> = output.iter().map(|line| (Stream::Stdout, line.as_bytes())).collect();
        let (directory, text) = written(&config, &output);
        let older = std::fs::read_to_string(directory.path().join("json.log.1")).unwrap();
        assert!(older.len() < 1200 && text.len() < 1200);
        let kept: Vec<u32> = entries(&(older + &text)).iter().map(|e| e.log.trim().parse().unwrap()).collect();
        assert_eq!(kept, (200 - kept.len() as u32..200).collect::<Vec<_>>());
    }

    #[test]
    fn sizes_are_read() {
        for (text, want) in [("10", Some(10)), ("2k", Some(2048)), ("1.5m", Some(1_572_864)), ("1GiB", Some(1 << 30))] {
            assert_eq!(parse_size(text), want, "{text}");
        }
        assert_eq!(parse_size("lots"), None);
        assert_eq!(parse_size("-1"), None);
    }
}
