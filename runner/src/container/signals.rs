//! Signals by name.

/// Names without `SIG`, in the order of their numbers on Linux.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

/// The number of a signal: `SIGTERM`, `term`, `15`, `RTMIN+3`.
#[must_use]
pub fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |rest: &str, base: i32, sign: i32| match rest {
        "" => Some(base),
        rest => rest.get(1..)?.parse::<i32>().ok().map(|offset| base + sign * offset),
    };
    let number = match name {
        "IOT" => Some(6),
        "CLD" => Some(17),
        "POLL" => Some(29),
        name if name.starts_with("RTMIN") => real_time(&name[5..], 34, 1),
        name if name.starts_with("RTMAX") => real_time(&name[5..], 64, -1),
        name => NAMES.iter().position(|known| *known == name).and_then(|at| i32::try_from(at + 1).ok()),
    };
    number.filter(|number| (1..=64).contains(number))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, want) in
            [("SIGTERM", 15), ("term", 15), ("9", 9), ("KILL", 9), ("SIGUSR1", 10), ("RTMIN+3", 37), ("SIGRTMAX-1", 63)]
        {
            assert_eq!(parse(text), Some(want), "{text}");
        }
        for wrong in ["", "0", "65", "SIGNONE", "RTMIN+x"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
