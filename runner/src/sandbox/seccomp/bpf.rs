//! Classic BPF for seccomp: the few instructions a filter needs, and a program builder over verdicts per call number.

use xbuild_sys::Instruction;

pub(super) const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
pub(super) const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
pub(super) const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
pub(super) const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
pub(super) const JUMP_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
pub(super) const RETURN: u16 = 0x06; // BPF_RET | BPF_K

pub(super) const ALLOW: u32 = 0x7fff_0000;
pub(super) const KILL: u32 = 0x8000_0000;
const ERRNO: u32 = 0x0005_0000;

// Offsets in `struct seccomp_data`. Arguments are 64 bits wide; every argument looked at is an `int` or has its
// meaning in the low word, which the kernel truncates to as well, so only that word is read (little endian).
pub(super) const NUMBER: u32 = 0;
pub(super) const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

pub(super) const EPERM: u16 = libc::EPERM as u16;
pub(super) const ENOSYS: u16 = libc::ENOSYS as u16;

/// What happens to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Allow,
    Refuse(u16),
    /// Allowed when the first argument, masked, is one of these values; `EPERM` otherwise.
    FirstArgumentIn {
        mask: u32,
        values: &'static [u32],
    },
    /// Allowed unless the first argument is this value.
    FirstArgumentIsNot(u32),
}

impl Verdict {
    fn compile(&self) -> Vec<Instruction> {
        match self {
            Verdict::Allow => vec![ret(ALLOW)],
            Verdict::Refuse(errno) => vec![ret(refuse(*errno))],
            Verdict::FirstArgumentIsNot(value) => {
                vec![load(ARGUMENTS), branch(JUMP_EQUAL, *value, 1, 0), ret(ALLOW), ret(refuse(EPERM))]
            }
            Verdict::FirstArgumentIn { mask, values } => {
                let mut code = vec![load(ARGUMENTS)];
                if *mask != u32::MAX {
                    code.push(Instruction { code: AND, jump_true: 0, jump_false: 0, constant: *mask });
                }
                for (index, value) in values.iter().enumerate() {
                    // To the second return: over the other comparisons and the refusal.
                    let over = u8::try_from(values.len() - index).unwrap_or(u8::MAX);
                    code.push(branch(JUMP_EQUAL, *value, over, 0));
                }
                code.extend([ret(refuse(EPERM)), ret(ALLOW)]);
                code
            }
        }
    }
}

pub(super) fn refuse(errno: u16) -> u32 {
    ERRNO | u32::from(errno)
}

pub(super) fn load(offset: u32) -> Instruction {
    Instruction { code: LOAD, jump_true: 0, jump_false: 0, constant: offset }
}

pub(super) fn ret(value: u32) -> Instruction {
    Instruction { code: RETURN, jump_true: 0, jump_false: 0, constant: value }
}

pub(super) fn branch(code: u16, constant: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction { code, jump_true, jump_false, constant }
}

/// Runs of call numbers with one verdict, as (first number, verdict); each reaches to the next.
pub(super) fn ranges(calls: &[(u32, Verdict)], default: &Verdict, last_known: u32) -> Vec<(u32, Verdict)> {
    let mut ranges: Vec<(u32, Verdict)> = Vec::new();
    let mut push = |first: u32, verdict: &Verdict| {
        if ranges.last().is_none_or(|(_, last)| last != verdict) {
            ranges.push((first, verdict.clone()));
        }
    };
    let mut next = 0;
    for (number, verdict) in calls {
        if *number > next {
            push(next, default);
        }
        push(*number, verdict);
        next = number + 1;
    }
    if next <= last_known {
        push(next, default);
    }
    // Newer than the policy: programs fall back on ENOSYS, and many break on EPERM.
    push(next.max(last_known + 1), &Verdict::Refuse(ENOSYS));
    ranges
}

/// A binary search over `ranges` for the number in the accumulator.
pub(super) fn search(ranges: &[(u32, Verdict)]) -> Vec<Instruction> {
    match ranges {
        [] => vec![ret(KILL)],
        [(_, verdict)] => verdict.compile(),
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let low_code = search(low);
            let mut code = Vec::new();
            match u8::try_from(low_code.len()) {
                Ok(over) => code.push(branch(JUMP_AT_LEAST, high[0].0, over, 0)),
                // A conditional jump reaches 255 instructions; an unconditional one any number.
                Err(_) => {
                    code.push(branch(JUMP_AT_LEAST, high[0].0, 0, 1));
                    code.push(jump(low_code.len()));
                }
            }
            code.extend(low_code);
            code.extend(search(high));
            code
        }
    }
}

pub(super) fn jump(over: usize) -> Instruction {
    Instruction { code: JUMP, jump_true: 0, jump_false: 0, constant: u32::try_from(over).unwrap_or(u32::MAX) }
}
