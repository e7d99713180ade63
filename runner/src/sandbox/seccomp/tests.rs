use super::bpf::{ALLOW, AND, JUMP, JUMP_GREATER, KILL, LOAD, RETURN, refuse};
use super::*;

/// Runs a filter as the kernel does, on one call.
fn run(program: &[Instruction], architecture: u32, number: u32, argument: u64) -> u32 {
    let mut accumulator = 0;
    let mut at = 0;
    loop {
        let Instruction { code, jump_true, jump_false, constant } = program[at];
        at += 1;
        let mut branch = |taken: bool| at += usize::from(if taken { jump_true } else { jump_false });
        match code {
            LOAD => {
                accumulator = match constant {
                    NUMBER => number,
                    ARCHITECTURE => architecture,
                    16 => argument as u32,
                    20 => (argument >> 32) as u32,
                    other => panic!("load from offset {other}"),
                }
            }
            AND => accumulator &= constant,
            JUMP => at += constant as usize,
            JUMP_EQUAL => branch(accumulator == constant),
            JUMP_AT_LEAST => branch(accumulator >= constant),
            JUMP_GREATER => branch(accumulator > constant),
            RETURN => return constant,
            other => panic!("instruction {other:#x}"),
        }
    }
}

/// An architecture, the filter it is in, and what it should answer.
type Subject = (u32, Vec<Instruction>, Vec<(u32, Verdict)>);

fn everything() -> Vec<Subject> {
    [(vec![X86_64_TABLE, I386_TABLE]), vec![AARCH64_TABLE]]
        .into_iter()
        .flat_map(|architectures| {
            let program = compile(&architectures, &[]);
            architectures
                .into_iter()
                .map(move |one| (one.audit, program.clone(), calls(one.table, &[])))
                .collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn every_number_gets_its_verdict() {
    for (audit, program, calls) in everything() {
        for number in 0..=LAST_KNOWN + 40 {
            let expected = match calls.iter().find(|(known, _)| *known == number).map(|(_, verdict)| verdict) {
                Some(Verdict::Allow | Verdict::FirstArgumentIsNot(_) | Verdict::FirstArgumentIn { .. }) => ALLOW,
                Some(Verdict::Refuse(errno)) => refuse(*errno),
                Some(Verdict::Return(_) | Verdict::Conditional(..)) => unreachable!("docker's policy has none"),
                None if number > LAST_KNOWN => refuse(ENOSYS),
                None => refuse(EPERM),
            };
            assert_eq!(run(&program, audit, number, 0), expected, "call {number} of {audit:#x}");
        }
    }
}

#[test]
fn arguments_decide_where_the_policy_says_so() {
    let program = compile(&[X86_64_TABLE, I386_TABLE], &[]);
    let x86 = |number, argument| run(&program, AUDIT_X86_64, number, argument);
    const SIGCHLD: u64 = 17;
    assert_eq!(x86(56, SIGCHLD), ALLOW);
    for flag in [0x0002_0000u64, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000] {
        assert_eq!(x86(56, SIGCHLD | flag), refuse(EPERM), "clone with {flag:#x}");
        assert_eq!(run(&program, AUDIT_I386, 120, SIGCHLD | flag), refuse(EPERM), "32-bit clone with {flag:#x}");
    }
    assert_eq!(x86(41, 2), ALLOW);
    assert_eq!(x86(41, 40), refuse(EPERM));
    for (persona, answer) in [(0, ALLOW), (8, ALLOW), (0xffff_ffff, ALLOW), (0x40000, refuse(EPERM))] {
        assert_eq!(x86(135, persona), answer, "personality {persona:#x}");
    }
}

#[test]
fn other_architectures_and_abis_are_shut() {
    let program = compile(&[X86_64_TABLE, I386_TABLE], &[]);
    assert_eq!(run(&program, AUDIT_AARCH64, 64, 0), KILL);
    assert_eq!(run(&program, AUDIT_X86_64, X32 | 1, 0), refuse(ENOSYS));
}

#[test]
fn dangerous_calls_are_refused() {
    let program = compile(&[X86_64_TABLE, I386_TABLE], &[]);
    // mount, umount2, bpf, keyctl, add_key, io_uring_setup, userfaultfd, perf_event_open, kexec_load, unshare, setns,
    // open_by_handle_at, init_module, pivot_root, ptrace is allowed (yama and namespaces guard it).
    for number in [165, 166, 321, 250, 248, 425, 323, 298, 246, 272, 308, 304, 175, 155, 428, 429, 430, 432, 442] {
        assert_eq!(run(&program, AUDIT_X86_64, number, 0), refuse(EPERM), "call {number}");
    }
    assert_eq!(run(&program, AUDIT_X86_64, 435, 0), refuse(ENOSYS));
}

#[test]
fn programs_fit_the_kernel() {
    for (_, program, _) in everything() {
        assert!(program.len() < 4096, "{} instructions", program.len());
    }
}

#[test]
fn every_name_of_the_policy_has_a_number_somewhere() {
    let mut numbered = std::collections::HashSet::new();
    for table in [X86_64_TABLE.table, I386_TABLE.table, AARCH64_TABLE.table] {
        numbered.extend(words(table).filter_map(|word| word.split_once('=')).map(|(name, _)| name));
    }
    // Private to 32-bit ARM, whose calls are refused as a whole.
    let arm = ["arm_fadvise64_64", "arm_sync_file_range", "breakpoint", "cacheflush", "set_tls"];
    for name in words(POLICY).filter(|name| !arm.contains(name)) {
        if !numbered.contains(name) {
            assert!(["recv", "send", "sync_file_range2"].contains(&name), "`{name}` has no number");
        }
    }
}

fn policy(text: &str) -> Vec<Instruction> {
    Policy::read(&serde_json::from_str(text).unwrap()).unwrap().compile().unwrap()
}

#[test]
fn conditions_of_others_compare_all_bits() {
    const BIG: u64 = 0x1_0000_0005;
    type Holds = fn(u64) -> bool;
    let cases: [(&str, Holds); 7] = [
        ("EQ", |argument| argument == BIG),
        ("NE", |argument| argument != BIG),
        ("LT", |argument| argument < BIG),
        ("LE", |argument| argument <= BIG),
        ("GE", |argument| argument >= BIG),
        ("GT", |argument| argument > BIG),
        ("MASKED_EQ", |argument| argument & BIG == 4),
    ];
    for (op, holds) in cases {
        let program = policy(&format!(
            r#"{{ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [ {{ "names": ["close"], "action": "SCMP_ACT_ALLOW",
                "args": [ {{ "index": 0, "value": {BIG}, "valueTwo": 4, "op": "SCMP_CMP_{op}" }} ] }} ] }}"#
        ));
        for argument in [0, 4, 5, 6, 1 << 32, BIG - 1, BIG, BIG + 1, 0x2_0000_0000, 0x2_0000_0005, u64::MAX] {
            let expected = if holds(argument) { ALLOW } else { refuse(EPERM) };
            assert_eq!(run(&program, AUDIT_X86_64, 3, argument), expected, "{op} {argument:#x}");
        }
    }
}

#[test]
fn policies_of_others_keep_to_their_actions() {
    let program = policy(
        r#"{ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"], "syscalls": [
            { "names": ["mkdir", "swapon", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 },
            { "names": ["close"], "action": "SCMP_ACT_KILL_PROCESS",
              "args": [ { "index": 0, "value": 1, "op": "SCMP_CMP_EQ" }, { "index": 0, "value": 2, "op": "SCMP_CMP_EQ" } ] }
        ] }"#,
    );
    let x86 = |number, argument| run(&program, AUDIT_X86_64, number, argument);
    assert_eq!([x86(83, 0), x86(167, 0), x86(0, 0), x86(1000, 0)], [refuse(38), refuse(38), ALLOW, ALLOW]);
    assert_eq!([x86(3, 0), x86(3, 1), x86(3, 2)], [ALLOW, KILL, KILL]);
    assert_eq!(run(&program, AUDIT_I386, 1, 0), KILL);
}

#[test]
fn docker_s_policy_in_the_specification_s_words_is_the_same() {
    for capabilities in [crate::spec::DEFAULT_CAPABILITIES, u64::MAX] {
        let own = docker_for(capabilities);
        let described = policy(&described(capabilities).to_string());
        for audit in [AUDIT_X86_64, AUDIT_I386] {
            for number in 0..LAST_KNOWN + 40 {
                for argument in [0, 8, 17, 40, 0x1000_0000, 0xffff_ffff] {
                    let answers = [&own, &described].map(|program| run(program, audit, number, argument));
                    assert_eq!(answers[0], answers[1], "call {number} of {audit:#x} with {argument:#x}");
                }
            }
        }
    }
}
