//! Docker's default system-call policy, compiled to a seccomp filter.
//!
//! `policy.txt` names what is allowed, `x86_64.txt`, `i386.txt` and `aarch64.txt` hold the kernel's numbers. The filter
//! first looks at the architecture of the call: a 64-bit process can make 32-bit calls with other numbers.

mod bpf;
pub mod docker;
mod policy;
#[cfg(test)]
mod tests;

use bpf::{ARCHITECTURE, ENOSYS, EPERM, JUMP_AT_LEAST, JUMP_EQUAL, KILL, NUMBER, Verdict};
pub(crate) use policy::Policy;
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

/// What `personality` may be asked for: the default, the 32-bit address space, the uname-2.6 flag, both, and the query.
const PERSONALITIES: [u32; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The address family that would reach the hypervisor.
const VSOCK: u32 = 40;

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

/// A filter to load, with its flags.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    pub(crate) program: std::borrow::Cow<'static, [Instruction]>,
    pub(crate) flags: u32,
}

/// The filter for the machine this program was built for. Compiled at first use and kept.
pub fn docker_default() -> &'static [Instruction] {
    static PROGRAM: OnceLock<Vec<Instruction>> = OnceLock::new();
    PROGRAM.get_or_init(|| compile(tables(), &[]))
}

/// The architectures whose calls can be made on this machine.
fn tables() -> &'static [Architecture] {
    match cfg!(target_arch = "x86_64") {
        true => &[X86_64_TABLE, I386_TABLE],
        // On other machines every call is of an unknown architecture, and the process ends: closed, not open.
        false => &[AARCH64_TABLE],
    }
}

/// The filter for a process with these capabilities, one bit for each number.
pub fn docker_for(capabilities: u64) -> Vec<Instruction> {
    let more = more_calls(capabilities);
    if more.is_empty() {
        return docker_default().to_vec();
    }
    compile(tables(), &more)
}

fn more_calls(capabilities: u64) -> Vec<&'static str> {
    let given = BY_CAPABILITY.iter().filter(|(number, _)| capabilities & (1 << number) != 0);
    given.flat_map(|(_, calls)| words(calls)).collect()
}

/// Calls that set owners, and succeed without doing so where there is one owner only.
const OWNERS: [&str; 8] = ["chown", "chown32", "fchown", "fchown32", "fchownat", "lchown", "lchown32", "setgroups"];

/// The filter over the other for a process in a namespace of one id: what would set an owner succeeds and does nothing, since
/// programs of packages and installers take an error there for a failure of all.
pub fn one_owner() -> Vec<Instruction> {
    let tables: &[Architecture] =
        if cfg!(target_arch = "x86_64") { &[X86_64_TABLE, I386_TABLE] } else { &[AARCH64_TABLE] };
    let mut program = vec![bpf::load(ARCHITECTURE)];
    for architecture in tables {
        let named = words(architecture.table).filter_map(|word| word.split_once('='));
        let numbers = named.filter(|(name, _)| OWNERS.contains(name)).filter_map(|(_, number)| number.parse().ok());
        let mut body = vec![bpf::load(NUMBER)];
        for number in numbers {
            body.extend([bpf::branch(JUMP_EQUAL, number, 0, 1), bpf::ret(bpf::refuse(0))]);
        }
        body.push(bpf::ret(bpf::ALLOW));
        program.push(bpf::branch(JUMP_EQUAL, architecture.audit, 1, 0));
        program.push(bpf::jump(body.len()));
        program.extend(body);
    }
    program.push(bpf::ret(bpf::ALLOW));
    program
}

/// Calls that docker allows to those who have a capability, by its number; those of its default set are in the policy.
const BY_CAPABILITY: [(u8, &str); 12] = [
    (2, "open_by_handle_at"),
    (16, "delete_module init_module finit_module"),
    (17, "iopl ioperm"),
    (19, "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"),
    (20, "acct"),
    (
        21,
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount \
         open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    (22, "reboot"),
    (23, "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    (25, "settimeofday stime clock_settime clock_settime64"),
    (26, "vhangup"),
    (34, "syslog"),
    (38, "perf_event_open"),
];

/// The same policy in the words of the runtime specification.
pub(crate) fn described(capabilities: u64) -> serde_json::Value {
    use serde_json::json;
    let more: Vec<&str> = more_calls(capabilities);
    let mut allowed: Vec<&str> = words(POLICY).chain(more.iter().copied()).collect();
    allowed.sort_unstable();
    allowed.dedup();
    let conditional = ["clone", "clone3", "personality", "socket"];
    allowed.retain(|name| !conditional.contains(name) || more.contains(name));
    let argument = |value: u64, op: &str| json!({ "index": 0, "value": value, "op": op });
    let mut rules = vec![json!({ "names": allowed, "action": "SCMP_ACT_ALLOW" })];
    let mut rule = |name: &str, arguments: serde_json::Value| {
        rules.push(json!({ "names": [name], "action": "SCMP_ACT_ALLOW", "args": [arguments] }));
    };
    for value in PERSONALITIES {
        rule("personality", argument(u64::from(value), "SCMP_CMP_EQ"));
    }
    rule("socket", argument(u64::from(VSOCK), "SCMP_CMP_NE"));
    if !more.contains(&"clone") {
        let none = json!({ "index": 0, "value": NAMESPACE_FLAGS, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" });
        rule("clone", none);
        rules.push(json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS }));
    }
    let architectures = if cfg!(target_arch = "x86_64") {
        json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"])
    } else {
        json!(["SCMP_ARCH_AARCH64"])
    };
    json!({ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": EPERM, "architectures": architectures, "syscalls": rules })
}

fn compile(architectures: &[Architecture], more: &[&str]) -> Vec<Instruction> {
    dispatch(architectures.iter().map(|architecture| (architecture.audit, body(architecture, more))))
}

/// Chooses by the architecture of the call; those of others end the process.
fn dispatch(bodies: impl Iterator<Item = (u32, Vec<Instruction>)>) -> Vec<Instruction> {
    let mut program = vec![bpf::load(ARCHITECTURE)];
    for (audit, body) in bodies {
        program.push(bpf::branch(JUMP_EQUAL, audit, 1, 0));
        program.push(bpf::jump(body.len()));
        program.extend(body);
    }
    program.push(bpf::ret(KILL));
    program
}

fn body(architecture: &Architecture, more: &[&str]) -> Vec<Instruction> {
    let calls = calls(architecture.table, more);
    // Newer than the policy: programs fall back on ENOSYS, and many break on EPERM.
    let newer = Verdict::Refuse(ENOSYS);
    guarded(architecture, bpf::search(&bpf::ranges(&calls, &Verdict::Refuse(EPERM), LAST_KNOWN, &newer)))
}

/// Loads the number of the call and refuses those that are not the architecture's own.
fn guarded(architecture: &Architecture, search: Vec<Instruction>) -> Vec<Instruction> {
    let mut code = vec![bpf::load(NUMBER)];
    if let Some(limit) = architecture.limit {
        code.push(bpf::branch(JUMP_AT_LEAST, limit, 0, 1));
        code.push(bpf::ret(bpf::refuse(ENOSYS)));
    }
    code.extend(search);
    code
}

/// Numbers with their verdicts, sorted.
fn calls(table: &str, more: &[&str]) -> Vec<(u32, Verdict)> {
    let allowed: std::collections::HashSet<&str> = words(POLICY).collect();
    let mut calls: Vec<(u32, Verdict)> = words(table)
        .filter_map(|word| {
            let (name, number) = word.split_once('=')?;
            Some((number.parse().ok()?, verdict(name, &allowed, more)?))
        })
        .collect();
    calls.sort_by_key(|(number, _)| *number);
    calls
}

fn verdict(name: &str, allowed: &std::collections::HashSet<&str>, more: &[&str]) -> Option<Verdict> {
    match name {
        name if more.contains(&name) => Some(Verdict::Allow),
        // Its flags are in memory where no filter can look; libraries fall back on clone.
        "clone3" => Some(Verdict::Refuse(ENOSYS)),
        "clone" => Some(Verdict::FirstArgumentIn { mask: NAMESPACE_FLAGS, values: &[0] }),
        "personality" => Some(Verdict::FirstArgumentIn { mask: u32::MAX, values: &PERSONALITIES }),
        "socket" => Some(Verdict::FirstArgumentIsNot(VSOCK)),
        _ => allowed.contains(name).then_some(Verdict::Allow),
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.starts_with('#')).flat_map(str::split_whitespace)
}
