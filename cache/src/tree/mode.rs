//! `--chmod`: octal numbers and the letters of chmod(1).

use super::error::{Result, TreeError};

/// A parsed mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModeChange {
    /// The mode as a number.
    Number(u32),
    /// Changes to the mode a file has.
    Letters(Vec<Clause>),
}

/// One clause: who, and what happens to their bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clause {
    /// Permission bits of those concerned, without special bits.
    who: u32,
    operations: Vec<(u8, Permissions)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Permissions {
    Letters { rwx: u32, conditional_x: bool, set_id: bool, sticky: bool },
    CopyFrom(u32),
}

impl ModeChange {
    /// Reads `0755`, `u=rwX,go=rX`, `+x` and the like.
    pub fn parse(text: &str) -> Result<ModeChange> {
        let bad = || TreeError::Mode { mode: text.to_string() };
        if text.is_empty() {
            return Err(bad());
        }
        if text.bytes().all(|b| b.is_ascii_digit()) {
            let number = u32::from_str_radix(text, 8).map_err(|_| bad())?;
            return if number <= 0o7777 { Ok(ModeChange::Number(number)) } else { Err(bad()) };
        }
        let clauses = text.split(',').map(|clause| parse_clause(clause).ok_or_else(bad)).collect::<Result<_>>()?;
        Ok(ModeChange::Letters(clauses))
    }

    /// The mode of a file that has `mode` now.
    pub fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        match self {
            ModeChange::Number(number) => *number,
            ModeChange::Letters(clauses) => clauses.iter().fold(mode, |mode, clause| clause.apply(mode, is_dir)),
        }
    }

    /// Mode of directories that are made on the way to a destination.
    pub(crate) fn for_parents(&self) -> u32 {
        match self {
            ModeChange::Number(number) => number & 0o777,
            ModeChange::Letters(_) => 0o755,
        }
    }
}

fn parse_clause(clause: &str) -> Option<Clause> {
    let bytes = clause.as_bytes();
    let start = bytes.iter().position(|b| b"+-=".contains(b))?;
    let mut who = 0;
    for b in &bytes[..start] {
        who |= match b {
            b'u' => 0o700,
            b'g' => 0o070,
            b'o' => 0o007,
            b'a' => 0o777,
            _ => return None,
        };
    }
    let mut operations = Vec::new();
    let mut rest = &bytes[start..];
    while let Some((operator, tail)) = rest.split_first() {
        let end = tail.iter().position(|b| b"+-=".contains(b)).unwrap_or(tail.len());
        operations.push((*operator, parse_permissions(&tail[..end])?));
        rest = &tail[end..];
    }
    Some(Clause { who: if who == 0 { 0o777 } else { who }, operations })
}

fn parse_permissions(letters: &[u8]) -> Option<Permissions> {
    match letters {
        b"u" => return Some(Permissions::CopyFrom(6)),
        b"g" => return Some(Permissions::CopyFrom(3)),
        b"o" => return Some(Permissions::CopyFrom(0)),
        _ => {}
    }
    let (mut rwx, mut conditional_x, mut set_id, mut sticky) = (0, false, false, false);
    for letter in letters {
        match letter {
            b'r' => rwx |= 4,
            b'w' => rwx |= 2,
            b'x' => rwx |= 1,
            b'X' => conditional_x = true,
            b's' => set_id = true,
            b't' => sticky = true,
            _ => return None,
        }
    }
    Some(Permissions::Letters { rwx, conditional_x, set_id, sticky })
}

impl Clause {
    fn apply(&self, start: u32, is_dir: bool) -> u32 {
        let mut mode = start;
        for (operator, permissions) in &self.operations {
            let bits = self.bits(*permissions, mode, is_dir);
            mode = match operator {
                b'+' => mode | bits,
                b'-' => mode & !bits,
                _ => {
                    let mut cleared = self.who;
                    if !is_dir {
                        cleared |= if self.who & 0o700 != 0 { 0o4000 } else { 0 };
                        cleared |= if self.who & 0o070 != 0 { 0o2000 } else { 0 };
                    }
                    cleared |= if self.who == 0o777 { 0o1000 } else { 0 };
                    (mode & !cleared) | bits
                }
            };
        }
        mode
    }

    fn bits(&self, permissions: Permissions, mode: u32, is_dir: bool) -> u32 {
        match permissions {
            Permissions::CopyFrom(shift) => (((mode >> shift) & 7) * 0o111) & self.who,
            Permissions::Letters { mut rwx, conditional_x, set_id, sticky } => {
                if conditional_x && (is_dir || mode & 0o111 != 0) {
                    rwx |= 1;
                }
                let mut bits = (rwx * 0o111) & self.who;
                if set_id {
                    bits |= if self.who & 0o700 != 0 { 0o4000 } else { 0 };
                    bits |= if self.who & 0o070 != 0 { 0o2000 } else { 0 };
                }
                bits | if sticky && self.who & 0o007 != 0 { 0o1000 } else { 0 }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_applied_as_chmod_does() {
        let table = [
            ("0755", 0o600, false, 0o755),
            ("4755", 0o600, false, 0o4755),
            ("u=rwX,go=rX", 0o644, false, 0o644),
            ("u=rwX,go=rX", 0o700, true, 0o755),
            ("go-r", 0o644, false, 0o600),
            ("a+x", 0o644, false, 0o755),
            ("u+s,g+s", 0o755, false, 0o6755),
            ("+w,o=", 0o644, false, 0o660),
            ("+w,o=", 0o755, true, 0o770),
            ("ug+rw,o=r", 0o755, false, 0o774),
            ("o=u", 0o640, false, 0o646),
            ("+t", 0o777, true, 0o1777),
            ("u+x-w", 0o644, false, 0o544),
        ];
        for (text, before, is_dir, after) in table {
            let change = ModeChange::parse(text).expect(text);
            assert_eq!(change.apply(before, is_dir), after, "{text} on {before:o}");
        }
    }

    #[test]
    fn rubbish_is_refused() {
        for text in ["", "u+q", "888", "10000", "x", "u", "z+r", "0o755", ",", "u+r,"] {
            assert!(ModeChange::parse(text).is_err(), "{text}");
        }
    }
}
