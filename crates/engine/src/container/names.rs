//! Ids, and names for containers that were given none.

use rustix::rand::{GetRandomFlags, getrandom};

const ADJECTIVES: [&str; 64] = [
    "able", "agile", "amber", "apt", "bold", "brave", "brisk", "calm", "civil", "clear", "clever", "cool", "crisp",
    "deft", "eager", "early", "fair", "fast", "fine", "firm", "fond", "frank", "fresh", "gentle", "glad", "golden",
    "good", "grand", "happy", "hardy", "honest", "jolly", "keen", "kind", "late", "light", "lively", "lucid", "lucky",
    "merry", "mild", "modest", "neat", "nimble", "noble", "patient", "placid", "plain", "polite", "proud", "quick",
    "quiet", "ready", "rosy", "sane", "serene", "sharp", "shy", "silent", "smart", "sound", "steady", "sunny", "tidy",
];

const NOUNS: [&str; 64] = [
    "alder", "ash", "aspen", "badger", "beech", "birch", "bison", "brook", "cedar", "cliff", "cloud", "comet", "coral",
    "crane", "creek", "delta", "dune", "eagle", "elm", "falcon", "fern", "field", "finch", "fjord", "forest", "fox",
    "glacier", "grove", "harbor", "hawk", "hazel", "heron", "hill", "island", "ivy", "jay", "lake", "larch", "lark",
    "linden", "lynx", "maple", "marsh", "meadow", "moss", "oak", "otter", "owl", "pine", "pond", "poplar", "raven",
    "reef", "ridge", "river", "robin", "rowan", "sparrow", "spruce", "swan", "tern", "valley", "willow", "wren",
];

/// Random bytes of the kernel.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let mut at = 0;
    while at < N {
        // Never fails for so few bytes once the machine has started.
        at += getrandom(&mut bytes[at..], GetRandomFlags::empty()).unwrap_or(0);
    }
    bytes
}

/// 64 hexadecimal digits. The first twelve are not all decimal, so that they are no number as a host name.
pub(super) fn id() -> String {
    loop {
        let id: String = random::<32>().iter().map(|byte| format!("{byte:02x}")).collect();
        if !id[..12].bytes().all(|byte| byte.is_ascii_digit()) {
            return id;
        }
    }
}

/// Two words; with a number when `attempt` says that plain ones were taken.
pub(super) fn name(attempt: u32) -> String {
    let [a, b, c] = random::<3>();
    let words = format!("{}_{}", ADJECTIVES[usize::from(a) % 64], NOUNS[usize::from(b) % 64]);
    if attempt == 0 { words } else { format!("{words}{c}") }
}
