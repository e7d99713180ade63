//! Writing tar: ustar headers, PAX records only for what does not fit them.

use super::meta::{Kind, Meta};
use super::tar_read::BLOCK;
use std::io::{self, Write};

const ZEROS: [u8; BLOCK] = [0; BLOCK];

/// What to write for one entry.
#[derive(Debug)]
pub(crate) struct Header<'a> {
    /// Path below the root, without a leading slash; directories end in one.
    pub(crate) name: &'a [u8],
    pub(crate) meta: &'a Meta,
    /// Type flag of the format.
    pub(crate) flag: u8,
    /// Bytes of content that follow.
    pub(crate) size: u64,
    /// Target of a link.
    pub(crate) link: &'a [u8],
    /// Whole seconds.
    pub(crate) mtime: i64,
    /// Attributes to keep, sorted.
    pub(crate) xattrs: &'a [(std::ffi::OsString, Vec<u8>)],
}

/// Type flag of a kind of file.
pub(crate) fn flag(kind: Kind) -> u8 {
    match kind {
        Kind::File | Kind::Socket => b'0',
        Kind::Symlink => b'2',
        Kind::Char => b'3',
        Kind::Block => b'4',
        Kind::Dir => b'5',
        Kind::Fifo => b'6',
    }
}

/// Writes the header blocks of an entry.
pub(crate) fn write_header(out: &mut impl Write, header: &Header<'_>) -> io::Result<()> {
    let mut records = Vec::new();
    let mut block = [0_u8; BLOCK];
    text(&mut block[..100], header.name, "path", &mut records);
    text(&mut block[157..257], header.link, "linkpath", &mut records);
    octal(&mut block[100..108], u64::from(header.meta.mode & 0o7777));
    number(&mut block[108..116], u64::from(header.meta.uid), "uid", &mut records);
    number(&mut block[116..124], u64::from(header.meta.gid), "gid", &mut records);
    number(&mut block[124..136], header.size, "size", &mut records);
    match u64::try_from(header.mtime) {
        Ok(mtime) => number(&mut block[136..148], mtime, "mtime", &mut records),
        Err(_) => {
            octal(&mut block[136..148], 0);
            record(&mut records, b"mtime", header.mtime.to_string().as_bytes());
        }
    }
    for (name, value) in header.xattrs {
        let key = [b"SCHILY.xattr.", std::os::unix::ffi::OsStrExt::as_bytes(name.as_os_str())].concat();
        record(&mut records, &key, value);
    }
    if matches!(header.meta.kind, Kind::Char | Kind::Block) && header.flag != b'1' {
        octal(&mut block[329..337], u64::from(rustix::fs::major(header.meta.rdev)));
        octal(&mut block[337..345], u64::from(rustix::fs::minor(header.meta.rdev)));
    } else {
        octal(&mut block[329..337], 0);
        octal(&mut block[337..345], 0);
    }
    if !records.is_empty() {
        write_records(out, header.name, &records)?;
    }
    finish(&mut block, header.flag);
    out.write_all(&block)
}

/// Writes zeros up to the next block after `size` bytes.
pub(crate) fn write_padding(out: &mut impl Write, size: u64) -> io::Result<()> {
    let gap = usize::try_from(size.wrapping_neg() % BLOCK as u64).unwrap_or(0);
    out.write_all(&ZEROS[..gap])
}

/// Writes the end mark.
pub(crate) fn write_end(out: &mut impl Write) -> io::Result<()> {
    out.write_all(&ZEROS)?;
    out.write_all(&ZEROS)
}

fn write_records(out: &mut impl Write, name: &[u8], records: &[u8]) -> io::Result<()> {
    let mut block = [0_u8; BLOCK];
    let trimmed = name.strip_suffix(b"/").unwrap_or(name);
    let at = trimmed.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
    let own = [&trimmed[..at], b"PaxHeaders.0/", &trimmed[at..]].concat();
    text(&mut block[..100], &own, "", &mut Vec::new());
    for field in [100..108, 108..116, 116..124] {
        octal(&mut block[field], 0);
    }
    octal(&mut block[124..136], records.len() as u64);
    octal(&mut block[136..148], 0);
    finish(&mut block, b'x');
    out.write_all(&block)?;
    out.write_all(records)?;
    write_padding(out, records.len() as u64)
}

fn finish(block: &mut [u8; BLOCK], flag: u8) {
    block[156] = flag;
    block[257..263].copy_from_slice(b"ustar\0");
    block[263..265].copy_from_slice(b"00");
    block[148..156].copy_from_slice(b"        ");
    let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
    octal(&mut block[148..155], sum);
    block[155] = b' ';
}

/// Puts a name into its field, or its plain letters and a record where it does not fit.
fn text(field: &mut [u8], value: &[u8], key: &str, records: &mut Vec<u8>) {
    if value.len() <= field.len() && value.is_ascii() {
        field[..value.len()].copy_from_slice(value);
        return;
    }
    if !key.is_empty() {
        record(records, key.as_bytes(), value);
    }
    let plain = value.iter().filter(|b| b.is_ascii());
    for (to, from) in field.iter_mut().zip(plain) {
        *to = *from;
    }
}

fn number(field: &mut [u8], value: u64, key: &str, records: &mut Vec<u8>) {
    if value < 1 << (3 * (field.len() - 1)) {
        octal(field, value);
    } else {
        octal(field, 0);
        record(records, key.as_bytes(), value.to_string().as_bytes());
    }
}

/// Digits with leading zeros and a final zero byte. The value must fit.
fn octal(field: &mut [u8], mut value: u64) {
    let Some((end, digits)) = field.split_last_mut() else {
        return;
    };
    *end = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (value & 7) as u8;
        value >>= 3;
    }
}

/// Appends `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}
