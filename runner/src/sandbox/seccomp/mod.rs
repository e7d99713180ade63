//! Docker's default system-call policy, compiled to a seccomp filter.
//!
//! `policy.txt` names what is allowed, `x86_64.txt`, `i386.txt` and `aarch64.txt` hold the kernel's numbers. The filter
//! first looks at the architecture of the call: a 64-bit process can make 32-bit calls with other numbers.

mod bpf;
#[cfg(test)]
mod tests;

use bpf::{ARCHITECTURE, ENOSYS, EPERM, JUMP_AT_LEAST, JUMP_EQUAL, KILL, NUMBER, Verdict};
use std::sync::OnceLock;
use xbuild_sys::Instruction;

/// The highest call number the policy was written with; higher ones answer `ENOSYS`.
const LAST_KNOWN: u32 = 467;

const AUDIT_X86_64: u32 = 0xc000_003e;
const AUDIT_I386: u32 = 0x4000_0003;
const AUDIT_AARCH64: u32 = 0xc000_00b7;

/// On x86-64, numbers with this bit belong to the x32 ABI.
const X32: u32 = 0x4000_0000;

/// Namespace flags that `clone` may not have: all but `CLONE_NEWTIME`, which clone cannot express.
const NAMESPACE_FLAGS: u32 = 0x7e02_0000;

const POLICY: &str = include_str!("policy.txt");

/// An architecture whose calls a filter knows.
struct Architecture {
    audit: u32,
    table: &'static str,
    /// Refuse numbers from this one on before the search.
    limit: Option<u32>,
}

const X86_64_TABLE: Architecture =
    Architecture { audit: AUDIT_X86_64, table: include_str!("x86_64.txt"), limit: Some(X32) };
const I386_TABLE: Architecture = Architecture { audit: AUDIT_I386, table: include_str!("i386.txt"), limit: None };
const AARCH64_TABLE: Architecture =
    Architecture { audit: AUDIT_AARCH64, table: include_str!("aarch64.txt"), limit: None };

/// The filter for the machine this program was built for. Compiled at first use and kept.
pub fn docker_default() -> &'static [Instruction] {
    static PROGRAM: OnceLock<Vec<Instruction>> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if cfg!(target_arch = "x86_64") {
            compile(&[X86_64_TABLE, I386_TABLE])
        } else {
            // On other machines every call is of an unknown architecture, and the process ends: closed, not open.
            compile(&[AARCH64_TABLE])
        }
    })
}

fn compile(architectures: &[Architecture]) -> Vec<Instruction> {
    let mut program = vec![bpf::load(ARCHITECTURE)];
    for architecture in architectures {
        let body = body(architecture);
        program.push(bpf::branch(JUMP_EQUAL, architecture.audit, 1, 0));
        program.push(bpf::jump(body.len()));
        program.extend(body);
    }
    program.push(bpf::ret(KILL));
    program
}

fn body(architecture: &Architecture) -> Vec<Instruction> {
    let mut code = vec![bpf::load(NUMBER)];
    if let Some(limit) = architecture.limit {
        code.push(bpf::branch(JUMP_AT_LEAST, limit, 0, 1));
        code.push(bpf::ret(bpf::refuse(ENOSYS)));
    }
    let calls = calls(architecture.table);
    code.extend(bpf::search(&bpf::ranges(&calls, &Verdict::Refuse(EPERM), LAST_KNOWN)));
    code
}

/// Numbers with their verdicts, sorted.
fn calls(table: &str) -> Vec<(u32, Verdict)> {
    let allowed: std::collections::HashSet<&str> = words(POLICY).collect();
    let mut calls: Vec<(u32, Verdict)> = words(table)
        .filter_map(|word| {
            let (name, number) = word.split_once('=')?;
            Some((number.parse().ok()?, verdict(name, &allowed)?))
        })
        .collect();
    calls.sort_by_key(|(number, _)| *number);
    calls
}

fn verdict(name: &str, allowed: &std::collections::HashSet<&str>) -> Option<Verdict> {
    match name {
        // Its flags are in memory where no filter can look; libraries fall back on clone.
        "clone3" => Some(Verdict::Refuse(ENOSYS)),
        "clone" => Some(Verdict::FirstArgumentIn { mask: NAMESPACE_FLAGS, values: &[0] }),
        // The default, the 32-bit address space, the uname-2.6 flag, both, and the query.
        "personality" => {
            Some(Verdict::FirstArgumentIn { mask: u32::MAX, values: &[0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff] })
        }
        // AF_VSOCK would reach the hypervisor.
        "socket" => Some(Verdict::FirstArgumentIsNot(40)),
        _ => allowed.contains(name).then_some(Verdict::Allow),
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.starts_with('#')).flat_map(str::split_whitespace)
}
