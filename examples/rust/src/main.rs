//! Counts the words of its arguments.

fn main() {
    let words = std::env::args().skip(1).flat_map(|a| a.split_whitespace().map(str::len).collect::<Vec<_>>()).count();
    println!("{words} words");
}
