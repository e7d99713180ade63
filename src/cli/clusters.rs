//! Short flags with their values in one word, as in `-p8080:80` and `-it=false`.
//!
//! What comes behind the image may begin with a dash, too, so the library that reads flags takes such words for the beginning of the
//! command. They are taken apart before.

use clap::{Arg, Command};
use std::ffi::OsString;

/// Flags without a value that people write together. Words of these alone are read as they are.
const PLAIN: &str = "ditPq";

/// The arguments from `start` on, with words that hold a value taken apart. `describe` gives the command that they are for.
pub(super) fn apart(arguments: Vec<OsString>, start: usize, describe: impl FnOnce() -> Command) -> Vec<OsString> {
    let holds_value = |word: &OsString| {
        let cluster = word.to_str().and_then(|word| word.strip_prefix('-')).filter(|rest| !rest.starts_with('-'));
        cluster.is_some_and(|rest| rest.len() > 1 && !rest.chars().all(|letter| PLAIN.contains(letter)))
    };
    if !arguments.iter().skip(start).any(holds_value) {
        return arguments;
    }
    let command = describe();
    let mut rest = arguments.into_iter();
    let mut done: Vec<OsString> = rest.by_ref().take(start).collect();
    while let Some(word) = rest.next() {
        let Some(text) = word.to_str().filter(|text| text.len() > 1 && text.starts_with('-') && *text != "--") else {
            done.push(word);
            break;
        };
        let (words, wants_next) = match text.strip_prefix("--") {
            Some(long) => {
                (vec![word.clone()], find(&command, |flag| flag.get_long() == Some(long)).is_some_and(takes_value))
            }
            None => taken_apart(&command, &text[1..]).unwrap_or((vec![word.clone()], false)),
        };
        done.extend(words);
        done.extend(rest.by_ref().take(usize::from(wants_next)));
    }
    done.extend(rest);
    done
}

/// The words that a cluster stands for, and whether the next one belongs to it; none if a letter is no flag.
fn taken_apart(command: &Command, cluster: &str) -> Option<(Vec<OsString>, bool)> {
    let mut words = Vec::new();
    for (at, letter) in cluster.char_indices() {
        let flag = find(command, |flag| flag.get_short() == Some(letter))?;
        let behind = &cluster[at + letter.len_utf8()..];
        let value = behind.strip_prefix('=');
        if takes_value(flag) {
            words.push(format!("-{letter}").into());
            words.extend((!behind.is_empty()).then(|| value.unwrap_or(behind).into()));
            return Some((words, behind.is_empty()));
        }
        if let (Some(value), Some(long)) = (value, flag.get_long()) {
            words.push(format!("--{long}={value}").into());
            return Some((words, false));
        }
        words.push(format!("-{letter}").into());
    }
    Some((words, false))
}

fn find(command: &Command, wanted: impl Fn(&Arg) -> bool) -> Option<&Arg> {
    command.get_arguments().find(|flag| wanted(flag))
}

/// Whether the word behind a flag is its value.
fn takes_value(flag: &Arg) -> bool {
    flag.get_action().takes_values() && !flag.is_require_equals_set()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ArgAction;

    fn read(line: &str) -> String {
        let describe = || {
            let plain = |letter, long| Arg::new(long).short(letter).long(long).action(ArgAction::SetTrue);
            let valued = |letter, long| Arg::new(long).short(letter).long(long).action(ArgAction::Append);
            Command::new("run").args([plain('i', "interactive"), plain('t', "tty")]).args([
                valued('p', "publish"),
                valued('v', "volume"),
                valued('e', "env"),
            ])
        };
        let words = line.split(' ').map(OsString::from).collect();
        let words: Vec<String> =
            apart(words, 2, describe).into_iter().map(|word| word.into_string().unwrap()).collect();
        words.join(" ").split_once(" run ").unwrap().1.to_owned()
    }

    #[test]
    fn values_in_the_same_word_become_words() {
        assert_eq!(read("x run -p8080:80 -eA=1 -v/a:/b image"), "-p 8080:80 -e A=1 -v /a:/b image");
        assert_eq!(read("x run -itp80 -e=A image"), "-i -t -p 80 -e A image");
        assert_eq!(read("x run -it=false image"), "-i --tty=false image");
        assert_eq!(read("x run -itv /a:/b image"), "-i -t -v /a:/b image");
    }

    #[test]
    fn what_is_behind_the_image_stays() {
        assert_eq!(read("x run -p80 image -p80 -eA"), "-p 80 image -p80 -eA");
        assert_eq!(read("x run --env -p80 -p80 image"), "--env -p80 -p 80 image");
        assert_eq!(read("x run -- -p80"), "-- -p80");
        assert_eq!(read("x run -p80 -zx image -p80"), "-p 80 -zx image -p80");
    }
}
