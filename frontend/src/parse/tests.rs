use super::*;

fn messages(text: &str) -> Vec<String> {
    let source = SourceFile::new("Dockerfile", text);
    let shown = |d: &Diagnostic| {
        let line = d.at.map_or(0, |at| source.position(at.start).0);
        format!("{line}: {}", d.text())
    };
    parse(&source).diagnostics.iter().map(shown).collect()
}

fn stage_texts(text: &str) -> Vec<String> {
    let parsed = parse(&SourceFile::new("Dockerfile", text));
    assert!(parsed.diagnostics.iter().all(|d| d.severity != Severity::Error), "{:?}", parsed.diagnostics);
    let stages = parsed.tree.stages.into_iter();
    stages.flat_map(|s| s.instructions).map(|i| i.text).collect()
}

#[test]
fn continuations_are_joined_without_comments_and_empty_lines() {
    let text = "FROM a\nRUN one \\\n  # no\n\n  && two\nRUN x\\\\\nRUN y";
    assert_eq!(stage_texts(text), ["RUN one   && two", "RUN x\\\\", "RUN y"]);
    assert_eq!(stage_texts("# escape=`\nFROM a\nRUN b `\nc\\\nRUN d"), ["RUN b c\\", "RUN d"]);
    assert_eq!(stage_texts("\u{feff}FROM a\r\nRUN b \\\r\n c\r\n"), ["RUN b  c"]);
}

#[test]
fn every_error_of_a_file_is_told() {
    let text = "FROM a\nCOPY x\nFORM b\nRUN --bogus x\nRUN --mont=x y\nSHELL x\n";
    let found = messages(text);
    assert_eq!(found.len(), 5, "{found:?}");
    assert!(found[0].starts_with("2: COPY requires at least two arguments"));
    assert_eq!(found[1], "3: unknown instruction: FORM (did you mean FROM?)");
    assert!(found[3].ends_with("(did you mean mount?)"));
}

#[test]
fn directives_end_at_the_first_other_line() {
    let escape = |text: &str| parse(&SourceFile::new("D", text)).directives.escape;
    assert_eq!(escape("# escape=`\nFROM a"), '`');
    assert_eq!(escape("# x\n# escape=`\nFROM a"), '\\');
    assert_eq!(escape("# unknown=1\n# escape=`\nFROM a"), '\\');
    assert!(messages("# escape=`\n# escape=`\nFROM a")[0].contains("only one"));
    assert!(messages("# escape=x\nFROM a")[0].contains("ESCAPE"));
}

#[test]
fn heredocs_belong_to_their_instruction() {
    let text = "FROM a\nRUN <<A cat && <<-'B' cat\n1\nA\n\t2 $x\n\tB\nCOPY <<E f /d/\nx\nE\nUSER u\n";
    let parsed = parse(&SourceFile::new("D", text));
    assert_eq!(parsed.diagnostics, []);
    let [run, copy, _] = parsed.tree.stages[0].instructions.as_slice() else {
        panic!("three instructions");
    };
    let Kind::Run(run) = &run.kind else { panic!() };
    assert_eq!(run.heredocs[1].content(), b"2 $x\n");
    assert!(!run.heredocs[1].expand);
    let Kind::Copy(copy) = &copy.kind else { panic!() };
    assert_eq!((copy.inline.len(), copy.sources.as_slice()), (1, &["f".to_owned()][..]));
    assert!(messages("FROM a\nRUN <<A\nx")[0].starts_with("2: unterminated heredoc"));
}

#[test]
fn json_falls_back_to_shell_form_only_when_it_is_no_json() {
    let form = |text: &str| {
        let parsed = parse(&SourceFile::new("D", format!("FROM a\nCMD {text}")));
        match parsed.tree.stages[0].instructions.first().map(|i| i.kind.clone()) {
            Some(Kind::Cmd(form)) => Some(form),
            _ => None,
        }
    };
    assert_eq!(form(r#"[ "a" , "b\"c" ]"#), Some(ShellForm::Exec(vec!["a".into(), "b\"c".into()])));
    assert_eq!(form(r#"["a"], "b"#), Some(ShellForm::Exec(vec!["a".into()])), "what comes after it does not count");
    assert_eq!(form("['a']"), Some(ShellForm::Shell("['a']".into())));
    assert_eq!(form(r#"["a",]"#), Some(ShellForm::Shell(r#"["a",]"#.into())));
    assert_eq!(form("[1]"), None);
    assert_eq!(form("[]"), Some(ShellForm::Exec(vec![])));
}

#[test]
fn mounts_are_checked() {
    assert!(messages("FROM a\nRUN --mount=type=floppy,target=/x y")[0].contains("unsupported mount type `floppy`"));
    assert!(messages("FROM a\nRUN --mount=taget=/x y")[0].contains("did you mean target?"));
    assert!(messages("FROM a\nRUN --mount=type=$x,from=$y,target=/z y")[0].contains("define alias"));
    assert_eq!(messages("FROM a\nRUN --mount=type=cache,target=/z,sharing=locked,mode=0755 y"), Vec::<String>::new());
}

#[test]
fn limits_are_named() {
    let long = format!("FROM a\nENV A={}", "x".repeat(crate::MAX_LINE));
    assert!(messages(&long)[0].contains("line 2 has more than"));
    assert_eq!(messages(""), ["0: the Dockerfile cannot be empty"]);
    assert_eq!(messages("# only\n"), ["0: the Dockerfile cannot be empty"]);
}

#[test]
fn too_many_instructions_are_refused() {
    let text = |count: usize| format!("FROM scratch\n{}", "ENV A=b\n".repeat(count - 1));
    assert!(messages(&text(crate::source::MAX_INSTRUCTIONS)).is_empty());
    let many = messages(&text(crate::source::MAX_INSTRUCTIONS + 10));
    assert!(many.len() == 1 && many[0].contains("has more than 50000 instructions"), "{many:?}");
}

#[test]
fn what_says_nothing_is_no_mistake() {
    for text in ["RUN", "CMD", "ENTRYPOINT", "HEALTHCHECK --retries=5 NONE", "ONBUILD NONSENSE x", "WORKDIR \"\""] {
        assert_eq!(messages(&format!("FROM --platform= a\n{text}\n")), [""; 0], "{text}");
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
        let source = SourceFile::new("D", bytes);
        for problem in parse(&source).diagnostics {
            crate::render_plain(&problem, &source);
        }
    }

    #[test]
    fn no_dockerfile_like_text_makes_the_parser_panic(
        parts in proptest::collection::vec("(FROM|RUN|COPY|ENV|ONBUILD|HEALTHCHECK|--mount=|<<E|E|\\[\"|\"|'|\\\\|\n|\\$\\{|x| |=|#|`|é)", 0..60)
    ) {
        let source = SourceFile::new("D", parts.concat());
        parse(&source);
    }
}
