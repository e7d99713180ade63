//! Classic BPF for seccomp: the few instructions a filter needs, and a program builder over verdicts per call number.

use serde::{Deserialize, Serialize};
use xbuild_sys::Instruction;

pub(super) const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
pub(super) const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
pub(super) const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
pub(super) const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
pub(super) const JUMP_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
pub(super) const JUMP_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
pub(super) const RETURN: u16 = 0x06; // BPF_RET | BPF_K

pub(super) const ALLOW: u32 = 0x7fff_0000;
pub(super) const KILL: u32 = 0x8000_0000;
const ERRNO: u32 = 0x0005_0000;

// Offsets in `struct seccomp_data`. Arguments are 64 bits wide; every argument looked at is an `int` or has its
// meaning in the low word, which the kernel truncates to as well, so docker's policy reads only that word (little
// endian). Conditions of others compare both.
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
    /// This return value.
    Return(u32),
    /// That of the first alternative whose conditions hold, or else this one.
    Conditional(Vec<Alternative>, u32),
}

/// What a call returns when all conditions hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Alternative {
    pub(super) conditions: Vec<Condition>,
    pub(super) action: u32,
}

/// A condition on an argument.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Condition {
    /// Below 6.
    pub(super) index: u8,
    pub(super) comparison: Comparison,
}

/// How an argument is compared, as a number of 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Comparison {
    Equal(u64),
    NotEqual(u64),
    Less(u64),
    AtMost(u64),
    AtLeast(u64),
    Greater(u64),
    Masked { mask: u64, value: u64 },
}

impl Alternative {
    fn compile(&self) -> Vec<Instruction> {
        let mut code = vec![ret(self.action)];
        for condition in self.conditions.iter().rev() {
            // Six conditions of six instructions at most, so every distance fits.
            let mut block = condition.compile(u8::try_from(code.len()).unwrap_or(u8::MAX));
            block.extend(code);
            code = block;
        }
        code
    }
}

impl Condition {
    /// Falls through when it holds, else skips `rest` instructions behind it.
    fn compile(&self, rest: u8) -> Vec<Instruction> {
        let at = ARGUMENTS + 8 * u32::from(self.index);
        let (high, low) = (load(at + 4), load(at));
        let halves = |value: u64| ((value >> 32) as u32, value as u32);
        let and = |mask: u32| Instruction { code: AND, jump_true: 0, jump_false: 0, constant: mask };
        // Both halves: decided by the high one unless that is equal; `greater` says which way it then goes.
        let ordered = |value: u64, last: u16, greater: bool| {
            let (over, under) = halves(value);
            let (when_greater, when_less) = if greater { (3, rest + 2) } else { (rest + 3, 2) };
            let (hit, miss) = if greater { (0, rest) } else { (rest, 0) };
            vec![
                high,
                branch(JUMP_GREATER, over, when_greater, 0),
                branch(JUMP_EQUAL, over, 0, when_less),
                low,
                branch(last, under, hit, miss),
            ]
        };
        match self.comparison {
            Comparison::Equal(value) => {
                let (over, under) = halves(value);
                vec![high, branch(JUMP_EQUAL, over, 0, rest + 2), low, branch(JUMP_EQUAL, under, 0, rest)]
            }
            Comparison::NotEqual(value) => {
                let (over, under) = halves(value);
                vec![high, branch(JUMP_EQUAL, over, 0, 2), low, branch(JUMP_EQUAL, under, rest, 0)]
            }
            Comparison::Masked { mask, value } => {
                let ((mask_over, mask_under), (over, under)) = (halves(mask), halves(value));
                vec![
                    high,
                    and(mask_over),
                    branch(JUMP_EQUAL, over, 0, rest + 3),
                    low,
                    and(mask_under),
                    branch(JUMP_EQUAL, under, 0, rest),
                ]
            }
            Comparison::AtLeast(value) => ordered(value, JUMP_AT_LEAST, true),
            Comparison::Greater(value) => ordered(value, JUMP_GREATER, true),
            Comparison::AtMost(value) => ordered(value, JUMP_GREATER, false),
            Comparison::Less(value) => ordered(value, JUMP_AT_LEAST, false),
        }
    }
}

impl Verdict {
    fn compile(&self) -> Vec<Instruction> {
        match self {
            Verdict::Allow => vec![ret(ALLOW)],
            Verdict::Return(value) => vec![ret(*value)],
            Verdict::Conditional(alternatives, otherwise) => {
                let code = alternatives.iter().flat_map(Alternative::compile);
                code.chain([ret(*otherwise)]).collect()
            }
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

/// Runs of call numbers with one verdict, as (first number, verdict); each reaches to the next. Those above `last_known` have
/// the verdict `newer`.
pub(super) fn ranges(
    calls: &[(u32, Verdict)],
    default: &Verdict,
    last_known: u32,
    newer: &Verdict,
) -> Vec<(u32, Verdict)> {
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
    push(next.max(last_known + 1), newer);
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
