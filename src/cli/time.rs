//! Times as people and JSON read them.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now, RFC 3339 with nanoseconds, UTC.
pub(crate) fn rfc3339_now() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    xbuild_engine::time::rfc3339(now.as_secs() as i64, now.subsec_nanos())
}

/// `3 hours ago`, as docker words it.
pub(crate) fn ago(then_ms: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64);
    let seconds = (now - then_ms).max(0) / 1000;
    format!("{} ago", span(seconds as u64))
}

/// A span in docker's words.
pub(crate) fn span(seconds: u64) -> String {
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match seconds {
        0 => "Less than a second".into(),
        1 => "1 second".into(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".into(),
        120..3600 => format!("{minutes} minutes"),
        _ if hours <= 1 => "About an hour".into(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        _ if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}
