use super::*;

fn env() -> Environment {
    let mut env = Environment::default();
    for (name, value) in
        [("A", "one"), ("EMPTY", ""), ("F", "src/lib/name.tar.gz"), ("S", "foobarbaz"), ("P", "a/b/c"), ("W", "x y")]
    {
        env.set(name, value);
    }
    env
}

fn expand(text: &str) -> Result<String, String> {
    Expander::new('\\').expand(text, &env(), &mut Budget::default()).map(|e| e.text)
}

#[test]
fn variables_are_replaced() {
    for (text, want) in [
        ("$A ${A}x $A_x $NOPE", "one onex  "),
        ("${A:-d}${EMPTY:-d}${N:-d}|${A-d}${EMPTY-d}${N-d}", "onedd|oned"),
        ("${A:+a}${EMPTY:+a}${N:+a}|${A+a}${EMPTY+a}${N+a}", "a|aa"),
        ("${N:-${M:-deep}} ${N:-\\}} ${N:-\"q\"}", "deep } q"),
        ("\"in \\\" $A \\x\" '$A' \\$A", "in \" one \\x $A $A"),
        ("cost$ $$ $1 $@ $(x)", "cost$    $(x)"),
        ("${A:?no}", "one"),
        ("${F#*/} ${F##*/} ${F%.*} ${F%%.*}", "lib/name.tar.gz name.tar.gz src/lib/name.tar src/lib/name"),
        ("${F##*}|${F%%*}|${F#?}|${F#\\*}|${F#s?c}", "||rc/lib/name.tar.gz|src/lib/name.tar.gz|/lib/name.tar.gz"),
        ("${S/ba/XX} ${S//ba/XX} ${S//a/} ${S/b?r/-} ${S//b*z/-}", "fooXXrbaz fooXXrXXz foobrbz foo-baz foo-"),
        ("${P//\\//.} ${P/\\//-} ${S/foo/$P} ${S/zz/y}", "a.b.c a-b/c a/b/cbarbaz foobarbaz"),
    ] {
        assert_eq!(expand(text).as_deref(), Ok(want), "{text}");
    }
}

#[test]
fn bad_substitutions_are_errors() {
    for bad in [
        "${A",
        "${",
        "${}",
        "${:x}",
        "${A:x}",
        "${A:#x}",
        "${S//a}",
        "${A^}",
        "'a",
        "\"a",
        "${N:?give N}",
        "${EMPTY:?}",
        "${N?}",
    ] {
        assert!(expand(bad).is_err(), "{bad}");
    }
    assert_eq!(expand("${N:?give N}"), Err("N: give N".into()));
    assert_eq!(expand("${S//a}"), Err("syntax error: missing '/' in ${…}".into()));
}

#[test]
fn words_split_at_blanks_outside_of_quotes() {
    let words = |text| Expander::new('\\').expand(text, &env(), &mut Budget::default()).unwrap().words;
    assert_eq!(words("a $W \"$W\" b\\ c ''"), ["a", "x", "y", "x y", "b c", ""]);
}

#[test]
fn only_plain_uses_of_unset_variables_are_noted() {
    let unmatched = |text| Expander::new('\\').expand(text, &env(), &mut Budget::default()).unwrap().unmatched;
    assert!(unmatched("${N:-x}${N+y}").is_empty());
    assert_eq!(unmatched("$N${M#x}").into_iter().collect::<Vec<_>>(), ["M", "N"]);
}

#[test]
fn other_rules_keep_what_they_should() {
    let display = |text| Expander::display('\\').expand(text, &env(), &mut Budget::default()).unwrap().text;
    assert_eq!(display("echo \"$A\" '$A' $N ${N:-x}"), "echo \"one\" '$A' $N ${N:-x}");
    let heredoc = |text| Expander::heredoc().expand(text, &env(), &mut Budget::default()).unwrap().text;
    assert_eq!(heredoc("it's $A \"$A\" \\$A \\\\"), "it's one \"one\" $A \\");
}

#[test]
fn expansions_are_bounded() {
    let mut env = Environment::default();
    env.set("B", &"x".repeat(1 << 19));
    let run = |text: &str| Expander::new('\\').expand(text, &env, &mut Budget::default());
    assert!(run("$B$B$B").unwrap_err().contains("more than"));
    assert!(run(&"${B:+$B}".repeat(3)).is_err());
    assert!(run(&"${U+$B}".repeat(1000)).is_err());
    assert!(run(&format!("{}x{}", "${U:-".repeat(5000), "}".repeat(5000))).unwrap_err().contains("nested"));
}

proptest::proptest! {
    #[test]
    fn no_text_panics_and_results_are_bounded(parts in proptest::collection::vec("(\\$|\\{|\\}|A|EMPTY|N|:-|:\\+|\\?|#|%|/|\\*|'|\"|\\\\| |é)", 0..40)) {
        let text = parts.concat();
        if let Ok(done) = Expander::new('\\').expand(&text, &env(), &mut Budget::default()) {
            proptest::prop_assert!(done.text.len() <= 40 * 20);
        }
    }
}
