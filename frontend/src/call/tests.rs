use super::*;
use crate::parse;
use crate::testing::{Fake, options};

fn rules(text: &str) -> Vec<(&'static str, usize)> {
    let source = SourceFile::new("Dockerfile", text);
    let answer = check(&parse(&source), &source, &options(), &Fake::default());
    let line = |l: &Option<Location>| l.as_ref().map_or(0, |l| l.ranges[0].start.line);
    answer.warnings.iter().map(|w| (w.rule_name, line(&w.location))).collect()
}

#[test]
fn checks_find_what_they_should() {
    for (text, want) in [
        ("FROM a\nCMD [\"x\"]", &[][..]),
        ("FROM a AS Up", &[("StageNameCasing", 1)]),
        ("FROM a\nENV A b\nMAINTAINER x", &[("LegacyKeyValueFormat", 2), ("MaintainerDeprecated", 3)]),
        ("FROM a\nCMD x", &[("JSONArgsRecommended", 2)]),
        ("FROM a\nWORKDIR x", &[("WorkdirRelativePath", 2)]),
        ("FROM a\nENV A=$NOPE", &[("UndefinedVar", 2)]),
        ("FROM a\nENV A=${NOPE:-x}\nARG B\nENV C=$B", &[]),
        ("FROM a$X", &[("UndefinedArgInFrom", 1)]),
        ("ARG V\nFROM a:$V", &[("InvalidDefaultArgInFrom", 2)]),
        ("FROM a\nARG MY_TOKEN", &[("SecretsUsedInArgOrEnv", 2)]),
        ("# check=skip=all\nFROM a AS Up\nMAINTAINER x", &[]),
        ("# check=experimental=all\n# wrong\nARG x=1\nFROM a", &[("InvalidDefinitionDescription", 3)]),
    ] {
        assert_eq!(rules(text), want, "{text}");
    }
}

#[test]
fn build_arguments_may_configure_the_checks() {
    let source = SourceFile::new("Dockerfile", "FROM a AS Up");
    let mut options = options();
    options.build_args.insert("BUILDKIT_DOCKERFILE_CHECK".into(), "error=true".into());
    let answer = check(&parse(&source), &source, &options, &Fake::default());
    assert!(answer.build_error.is_some_and(|e| e.message.contains("StageNameCasing")));
    assert!(crate::lower(&parse(&source), &options, &Fake::default()).is_err());
}

#[test]
fn ignored_files_are_noticed() {
    let source = SourceFile::new("Dockerfile", "FROM a\nCOPY x.log ok /\n");
    let fake = Fake { excludes: vec!["*.log".into()], ..Fake::default() };
    let answer = check(&parse(&source), &source, &options(), &fake);
    assert_eq!(answer.warnings[0].rule_name, "CopyIgnoredFile");
    assert_eq!(answer.exit_code(), 1);
    assert!(answer.text(&source).contains("   2 | >>> COPY x.log ok /"));
}

#[test]
fn outlines_show_the_nearest_definition() {
    let text = "# BASE what to stand on\nARG BASE=a\nFROM $BASE AS x\nARG N=1\nRUN --mount=type=secret,id=s true\nFROM x AS y\nARG N=2 TARGETARCH\n";
    let source = SourceFile::new("Dockerfile", text);
    let outline = outline(&parse(&source), &source, &options(), &Fake::default()).unwrap();
    let args: Vec<_> = outline.args.iter().map(|a| (a.name.as_str(), a.value.as_deref())).collect();
    assert_eq!(args, [("BASE", Some("a")), ("N", Some("2"))]);
    assert_eq!(outline.secrets[0].name, "s");
    assert!(outline.text().contains("BASE        a       what to stand on"), "{}", outline.text());
}

#[test]
fn targets_are_listed() {
    let source = SourceFile::new("Dockerfile", "# x first\nFROM a AS x\nFROM b\n");
    let targets = targets(&parse(&source), &source);
    assert_eq!(targets.text(), "TARGET      DESCRIPTION\nx           first\n(default)\n");
    assert!(targets.json().contains("\"default\": true"));
}

#[test]
fn base64_is_padded() {
    for (bytes, want) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")] {
        assert_eq!(base64(bytes.as_bytes()), want);
    }
}
