//! Reading flag values: `key=value` lists, sizes, ulimits, hosts.

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;

/// Fields of a CSV value (`type=oci,dest=x`), with Go's quoting: a field in double quotes may hold commas.
pub(crate) fn fields(text: &str) -> Result<Vec<String>> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let last = fields.len() - 1;
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                fields[last].push('"');
            }
            '"' if quoted || fields[last].is_empty() => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => fields[last].push(c),
        }
    }
    if quoted {
        bail!("`{text}` has a quote that does not end");
    }
    Ok(fields)
}

/// Fields as pairs, keys in lower case; a field without `=` has an empty value.
pub(crate) fn pairs(text: &str) -> Result<BTreeMap<String, String>> {
    let pair = |field: String| match field.split_once('=') {
        Some((key, value)) => (key.trim().to_lowercase(), value.to_owned()),
        None => (field.trim().to_lowercase(), String::new()),
    };
    Ok(fields(text)?.into_iter().map(pair).collect())
}

/// Go's notion of a boolean; an empty value is true.
pub(crate) fn boolean(text: &str) -> Result<bool> {
    match text {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => bail!("`{other}` is neither true nor false"),
    }
}

/// Bytes: a number with an optional `b`, `k`, `m`, `g`, `t` (powers of 1024).
pub(crate) fn size(text: &str) -> Result<u64> {
    let lower = text.trim().to_lowercase();
    let unit_at = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(unit_at);
    let factor = match unit.trim().trim_end_matches("ib").trim_end_matches('b') {
        "" => 1u64,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        _ => bail!("`{text}` is not a size (a number with b, k, m, g or t)"),
    };
    let number: f64 = number.parse().with_context(|| format!("`{text}` is not a size"))?;
    Ok((number * factor as f64) as u64)
}

/// `name=soft[:hard]`.
pub(crate) fn ulimit(text: &str) -> Result<xbuild_graph::Ulimit> {
    const NAMES: [&str; 15] = [
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];
    let (name, value) = text.split_once('=').with_context(|| format!("invalid ulimit argument: {text}"))?;
    if !NAMES.contains(&name) {
        bail!("invalid ulimit type: {name}");
    }
    let (soft, hard) = value.split_once(':').unwrap_or((value, value));
    let number = |t: &str| t.parse::<i64>().with_context(|| format!("invalid ulimit value `{t}`"));
    let (soft, hard) = (number(soft)?, number(hard)?);
    if hard != -1 && (soft > hard || soft == -1) {
        bail!("ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}");
    }
    Ok(xbuild_graph::Ulimit { name: name.to_owned(), soft, hard })
}

/// `host:ip` or `host=ip`; IPv6 addresses may be in brackets. `host-gateway` stands for the host.
pub(crate) fn host(text: &str) -> Result<(String, String)> {
    let at = text.find(['=', ':']).with_context(|| format!("bad format for add-host: \"{text}\""))?;
    let (name, address) = (&text[..at], text[at + 1..].trim_start_matches('[').trim_end_matches(']'));
    let known = address == "host-gateway" || address.parse::<std::net::IpAddr>().is_ok();
    if name.is_empty() || !known {
        bail!("invalid IP address in add-host: \"{address}\"");
    }
    Ok((name.to_owned(), address.to_owned()))
}

/// A duration as Go writes them (`1h30m`, `90s`), or days (`7d`).
pub(crate) fn duration(text: &str) -> Result<std::time::Duration> {
    let mut seconds = 0.0;
    let mut rest = text.trim();
    if rest.is_empty() {
        bail!("an empty duration");
    }
    while !rest.is_empty() {
        let at = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..at].parse().with_context(|| format!("`{text}` is not a duration (try 90s, 48h)"))?;
        let unit_end = rest[at..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |n| at + n);
        seconds += number
            * match &rest[at..unit_end] {
                "ms" => 0.001,
                "s" | "" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "d" => 86400.0,
                unit => bail!("`{unit}` is not a unit of time (ms, s, m, h, d)"),
            };
        rest = &rest[unit_end..];
    }
    std::time::Duration::try_from_secs_f64(seconds).with_context(|| format!("`{text}` is not a duration"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_fields_may_be_quoted() {
        assert_eq!(fields("a=1,\"b=2,3\",c").unwrap(), ["a=1", "b=2,3", "c"]);
        assert!(fields("\"a").is_err());
    }

    #[test]
    fn sizes_and_durations_take_units() {
        for (text, want) in [("64m", 64 << 20), ("1024", 1024), ("1.5k", 1536), ("2GiB", 2 << 30), ("3gb", 3 << 30)] {
            assert_eq!(size(text).unwrap(), want, "{text}");
        }
        assert!(size("m").is_err() && size("5x").is_err());
        assert_eq!(duration("1h30m").unwrap().as_secs(), 5400);
        assert!(duration("1x").is_err() && duration("").is_err());
    }

    #[test]
    fn hosts_take_both_separators() {
        assert_eq!(host("a:1.2.3.4").unwrap(), ("a".into(), "1.2.3.4".into()));
        assert_eq!(host("a=[::1]").unwrap(), ("a".into(), "::1".into()));
        assert_eq!(host("a:host-gateway").unwrap(), ("a".into(), "host-gateway".into()));
        assert!(host("a:nope").is_err());
    }
}
