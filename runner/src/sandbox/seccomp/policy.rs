//! Policies that others wrote: rules by names of calls, with conditions on arguments, compiled like docker's own.

use super::bpf::{self, ALLOW, Alternative, Comparison, Condition, ENOSYS, KILL, Verdict};
use super::{AUDIT_AARCH64, AUDIT_I386, AUDIT_X86_64, Architecture, Filter, LAST_KNOWN, tables, words};
use crate::error::Failure;
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall};
use serde::{Deserialize, Serialize};
use xbuild_sys::Instruction;

/// What a policy says of each call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Policy {
    /// Of calls that no rule is about: the filter's return value.
    default: u32,
    /// Architectures whose calls are looked at, by the kernel's audit numbers; those of others end the process.
    architectures: Vec<u32>,
    rules: Vec<Rule>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub(crate) flags: u32,
}

/// One rule about calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Rule {
    names: Vec<String>,
    action: u32,
    /// All have to hold.
    conditions: Vec<Condition>,
}

impl Policy {
    /// Reads a policy in the words of the runtime specification.
    ///
    /// Names that no architecture has are passed over: policies list calls of all kernels and machines. Calls that are newer
    /// than the tables here answer `ENOSYS` where the policy refuses by default. Calls of the x32 ABI always do.
    pub(crate) fn read(seccomp: &LinuxSeccomp) -> Result<Policy, Failure> {
        let listener = seccomp.listener_path().as_ref().is_some_and(|path| !path.as_os_str().is_empty());
        if listener || seccomp.listener_metadata().as_ref().is_some_and(|data| !data.is_empty()) {
            return Err(refused("listenerPath and SCMP_ACT_NOTIFY are not supported by this runtime"));
        }
        let default = value(seccomp.default_action(), seccomp.default_errno_ret())?;
        let mut flags = 0;
        for flag in seccomp.flags().iter().flatten() {
            use oci_spec::runtime::LinuxSeccompFilterFlag as F;
            flags |= match flag {
                F::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG as u32,
                F::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC as u32,
                F::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32,
                F::SeccompFilterFlagWaitKillableRecv => {
                    return Err(refused("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV is of no use without a listener"));
                }
            };
        }
        let mut rules = Vec::new();
        for call in seccomp.syscalls().iter().flatten() {
            rules.extend(rules_of(call)?);
        }
        Ok(Policy { default, architectures: architectures(seccomp), rules, flags })
    }

    /// The filter of a policy in JSON.
    pub(crate) fn parse(text: &str) -> Result<Filter, Failure> {
        let read = serde_json::from_str(text).map_err(|error| refused(&error.to_string()))?;
        Policy::read(&read)?.filter()
    }

    /// The filter, with its flags.
    pub(crate) fn filter(&self) -> Result<Filter, Failure> {
        Ok(Filter { program: self.compile()?.into(), flags: self.flags })
    }

    /// The filter.
    pub(crate) fn compile(&self) -> Result<Vec<Instruction>, Failure> {
        let wanted = tables().iter().filter(|table| self.architectures.contains(&table.audit));
        let program = super::dispatch(wanted.map(|table| (table.audit, self.body(table))));
        match program.len() {
            0..=4096 => Ok(program),
            length => Err(refused(&format!("the policy makes {length} instructions; the kernel takes 4096"))),
        }
    }

    fn body(&self, architecture: &Architecture) -> Vec<Instruction> {
        let mut calls: Vec<(u32, Verdict)> = words(architecture.table)
            .filter_map(|word| {
                let (name, number) = word.split_once('=')?;
                Some((number.parse().ok()?, self.verdict(name)))
            })
            .collect();
        calls.sort_by_key(|(number, _)| *number);
        // Of two names of one number the one that a rule is about counts.
        calls.dedup_by(|later, kept| {
            if later.0 == kept.0 && kept.1 == Verdict::Return(self.default) {
                kept.1 = later.1.clone();
            }
            later.0 == kept.0
        });
        let newer = match self.default {
            ALLOW => Verdict::Return(ALLOW),
            _ => Verdict::Refuse(ENOSYS),
        };
        super::guarded(
            architecture,
            bpf::search(&bpf::ranges(&calls, &Verdict::Return(self.default), LAST_KNOWN, &newer)),
        )
    }

    /// A rule without conditions counts before all others, as in libseccomp; then they count in their order.
    fn verdict(&self, name: &str) -> Verdict {
        let about = || self.rules.iter().filter(|rule| rule.names.iter().any(|own| own == name));
        if let Some(rule) = about().find(|rule| rule.conditions.is_empty()) {
            return Verdict::Return(rule.action);
        }
        let alternatives: Vec<Alternative> =
            about().map(|rule| Alternative { conditions: rule.conditions.clone(), action: rule.action }).collect();
        match alternatives.is_empty() {
            true => Verdict::Return(self.default),
            false => Verdict::Conditional(alternatives, self.default),
        }
    }
}

fn refused(why: &str) -> Failure {
    Failure::Refused(format!("linux.seccomp: {why}"))
}

/// Those that are listed and can be called on this machine; its own when none is.
fn architectures(seccomp: &LinuxSeccomp) -> Vec<u32> {
    let native = if cfg!(target_arch = "x86_64") { AUDIT_X86_64 } else { AUDIT_AARCH64 };
    let audit = |arch: &Arch| match arch {
        Arch::ScmpArchNative => Some(native),
        Arch::ScmpArchX86_64 => Some(AUDIT_X86_64),
        Arch::ScmpArchX86 => Some(AUDIT_I386),
        Arch::ScmpArchAarch64 => Some(AUDIT_AARCH64),
        _ => None,
    };
    let mut all: Vec<u32> = seccomp.architectures().iter().flatten().filter_map(audit).collect();
    // The runtime's own is always among them.
    all.push(native);
    all
}

fn value(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, Failure> {
    let data = errno.unwrap_or(libc::EPERM as u32);
    if data > 0xffff {
        return Err(refused(&format!("errnoRet {data} is not a number of an error")));
    }
    Ok(match action {
        LinuxSeccompAction::ScmpActNotify => return Err(refused("SCMP_ACT_NOTIFY is not supported by this runtime")),
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => 0,
        LinuxSeccompAction::ScmpActKillProcess => KILL,
        LinuxSeccompAction::ScmpActTrap => 0x0003_0000,
        LinuxSeccompAction::ScmpActErrno => 0x0005_0000 | data,
        LinuxSeccompAction::ScmpActTrace => 0x7ff0_0000 | data,
        LinuxSeccompAction::ScmpActLog => 0x7ffc_0000,
        LinuxSeccompAction::ScmpActAllow => ALLOW,
    })
}

/// Conditions on one argument twice in a rule are alternatives, as for runc.
fn rules_of(call: &LinuxSyscall) -> Result<Vec<Rule>, Failure> {
    let action = value(call.action(), call.errno_ret())?;
    let rule = |conditions| Rule { names: call.names().clone(), action, conditions };
    let arguments = call.args().as_deref().unwrap_or_default();
    let conditions: Vec<Condition> = arguments.iter().map(condition).collect::<Result<_, _>>()?;
    let twice =
        conditions.iter().enumerate().any(|(at, one)| conditions[..at].iter().any(|other| other.index == one.index));
    Ok(match twice {
        false => vec![rule(conditions)],
        true => conditions.into_iter().map(|one| rule(vec![one])).collect(),
    })
}

fn condition(argument: &LinuxSeccompArg) -> Result<Condition, Failure> {
    use LinuxSeccompOperator as Op;
    let index = u8::try_from(argument.index()).ok().filter(|index| *index < 6);
    let index = index.ok_or_else(|| refused(&format!("calls have no argument {}", argument.index())))?;
    let value = argument.value();
    let comparison = match argument.op() {
        Op::ScmpCmpNe => Comparison::NotEqual(value),
        Op::ScmpCmpLt => Comparison::Less(value),
        Op::ScmpCmpLe => Comparison::AtMost(value),
        Op::ScmpCmpEq => Comparison::Equal(value),
        Op::ScmpCmpGe => Comparison::AtLeast(value),
        Op::ScmpCmpGt => Comparison::Greater(value),
        Op::ScmpCmpMaskedEq => Comparison::Masked { mask: value, value: argument.value_two().unwrap_or(0) },
    };
    Ok(Condition { index, comparison })
}
