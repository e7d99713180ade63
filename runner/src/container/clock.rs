//! Times as docker writes them.

use std::time::{SystemTime, UNIX_EPOCH};

/// What docker shows for a time that has not come.
pub const NEVER: &str = "0001-01-01T00:00:00Z";

/// Seconds and nanoseconds since 1970.
#[must_use]
pub fn now() -> (i64, u32) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (i64::try_from(now.as_secs()).unwrap_or(i64::MAX), now.subsec_nanos())
}

/// Now, RFC 3339 with nanoseconds.
#[must_use]
pub fn stamp() -> String {
    let (seconds, nanos) = now();
    format(seconds, nanos)
}

/// RFC 3339 in UTC with nine digits after the point, which sorts as text.
#[must_use]
pub fn format(seconds: i64, nanos: u32) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

/// Year, month and day of a day counted from 1970-01-01.
#[must_use]
pub fn civil(days: i64) -> (i64, i64, i64) {
    // In eras of 400 years that begin in March, so that leap days come last.
    let z = days + 719_468;
    let (era, of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let index = (5 * day_of_year + 2) / 153;
    let month = if index < 10 { index + 3 } else { index - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day_of_year - (153 * index + 2) / 5 + 1)
}

/// Reads RFC 3339, also without a zone (UTC), without seconds, or a date alone.
#[must_use]
pub fn parse(text: &str) -> Option<(i64, u32)> {
    let (date, time) = text.split_once(['T', ' ']).unwrap_or((text, "00:00:00Z"));
    let mut parts = date.splitn(3, '-');
    let mut number = || parts.next()?.parse::<i64>().ok();
    let (year, month, day) = (number()?, number()?, number()?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let zone_at = time.find(['Z', 'z', '+', '-']).unwrap_or(time.len());
    let (time, zone) = time.split_at(zone_at);
    let offset = match zone.as_bytes().first() {
        Some(sign @ (b'+' | b'-')) => {
            let digits: String = zone[1..].chars().filter(char::is_ascii_digit).collect();
            let minutes =
                digits.get(..2)?.parse::<i64>().ok()? * 60 + digits.get(2..4).unwrap_or("0").parse::<i64>().ok()?;
            if *sign == b'+' { minutes * 60 } else { -minutes * 60 }
        }
        _ => 0,
    };
    let mut clock = time.splitn(3, ':');
    let hour: i64 = clock.next()?.parse().ok()?;
    let minute: i64 = clock.next().unwrap_or("0").parse().ok()?;
    let (second, fraction) = clock
        .next()
        .unwrap_or("0")
        .split_once('.')
        .map_or_else(|| (time.splitn(3, ':').nth(2).unwrap_or("0"), ""), |(second, fraction)| (second, fraction));
    let second: i64 = second.parse().ok()?;
    let nanos = format!("{fraction:0<9}").get(..9)?.parse::<u32>().ok()?;
    let seconds = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset;
    Some((seconds, nanos))
}

fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_go_there_and_back() {
        for moment in [(0, 0), (951_782_400, 1), (1_614_834_000, 120_000_000), (4_102_444_799, 999_999_999)] {
            assert_eq!(parse(&format(moment.0, moment.1)), Some(moment));
        }
        assert_eq!(format(951_782_400, 0), "2000-02-29T00:00:00.000000000Z");
    }

    #[test]
    fn other_spellings_are_read() {
        assert_eq!(parse("2021-03-04T06:00:00+01:00"), Some((1_614_834_000, 0)));
        assert_eq!(parse("2021-03-04T05:00"), Some((1_614_834_000, 0)));
        assert_eq!(parse("2021-03-04"), Some((1_614_816_000, 0)));
        assert_eq!(parse("2021-03-04T05:00:00.12Z"), Some((1_614_834_000, 120_000_000)));
        for wrong in ["", "yesterday", "2021-13-04", "2021-03-04T", "12:00"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
