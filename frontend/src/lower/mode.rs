//! `--chmod`: octal, or letters as chmod(1) takes them.

use nom::branch::alt;
use nom::character::complete::{char, one_of};
use nom::combinator::all_consuming;
use nom::multi::{many_m_n, many0_count, many1_count, separated_list1};
use nom::{IResult, Parser};

/// Checks a mode.
pub(super) fn check(mode: &str) -> Result<(), String> {
    let octal = mode.bytes().all(|b| b.is_ascii_digit());
    let valid = match octal {
        true => u32::from_str_radix(mode, 8).is_ok_and(|bits| bits <= 0o7777),
        false => all_consuming(letters).parse(mode).is_ok(),
    };
    match valid {
        true => Ok(()),
        false => Err(format!(
            "invalid chmod parameter: `{mode}`: it must be an octal number between 0 and 07777, or symbolic like u=rwX,go=rX"
        )),
    }
}

fn letters(input: &str) -> IResult<&str, ()> {
    let what = alt((many_m_n(1, 1, one_of("ugo")).map(|_| ()), many0_count(one_of("rwxXst")).map(|_| ())));
    let change = (one_of("+-="), what);
    let clause = (many0_count(one_of("ugoa")), many1_count(change));
    separated_list1(char(','), clause).map(|_| ()).parse(input)
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn modes_are_checked() {
        for good in ["0", "644", "0755", "7777", "u=rwX,go=rX", "a+x", "+w,o=", "u+s,g+s", "g=u"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["8", "10000", "u+q", "x", "u", ",", "u+r,", "99", "0o644"] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
