//! Real sandboxes with a static busybox. Needs root; skips by name and reason otherwise.

mod basics;
mod denied;
mod mounted;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

type Case = (&'static str, fn(&world::World));

fn main() {
    xbuild_runner::helper::main_if_requested();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let cases: Vec<Case> = [basics::CASES, mounted::CASES, denied::CASES].concat();
    if arguments.iter().any(|argument| argument == "--list") {
        cases.iter().for_each(|(name, _)| println!("{name}: test"));
        return;
    }
    if let Some(reason) = world::missing() {
        cases.iter().for_each(|(name, _)| println!("test {name} ... skipped ({reason})"));
        return;
    }
    let mut failed = Vec::new();
    for (name, case) in cases {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
            continue;
        }
        let world = world::World::new();
        let passed = catch_unwind(AssertUnwindSafe(|| case(&world))).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        if !passed {
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "{} failed: {failed:?}", failed.len());
}
