//! Lists as docker prints them: tables, templates, JSON lines.

use super::template::{Template, visible};
use anyhow::Result;
use serde_json::{Map, Value};
use std::io::Write;

/// Key of a row under which its labels lie for `{{.Label "name"}}`; not shown.
pub(crate) const LABELS: &str = "\0labels";
/// Key that the row of headers has; not shown.
pub(crate) const HEADERS: &str = "\0headers";

/// What a list looks like.
pub(crate) struct Shape<'a> {
    /// Fields with the headers of their columns.
    pub(crate) headers: &'a [(&'a str, &'a str)],
    /// The table that is shown when nothing is asked for.
    pub(crate) default: &'a str,
    /// The template of `--quiet`.
    pub(crate) quiet: &'a str,
}

/// Prints rows in the wanted format.
pub(crate) fn print(
    out: &mut impl Write,
    shape: &Shape<'_>,
    format: Option<&str>,
    quiet: bool,
    rows: &[Value],
) -> Result<()> {
    let default = format!("table {}", shape.default);
    let format = match format {
        None | Some("" | "table") if quiet => shape.quiet,
        None | Some("" | "table") => &default,
        Some(own) => own,
    };
    if format == "json" {
        for row in rows {
            writeln!(out, "{}", serde_json::to_string(&visible(row))?)?;
        }
        return Ok(());
    }
    let Some(columns) = format.strip_prefix("table").map(str::trim_start) else {
        let template = Template::parse(format)?;
        check(&template, shape, rows)?;
        for row in rows {
            writeln!(out, "{}", template.execute(row)?)?;
        }
        return Ok(());
    };
    let template = Template::parse(columns)?;
    let headers = shape.headers.iter().chain(&[(HEADERS, "")]);
    let headers: Map<String, Value> =
        headers.map(|(field, header)| ((*field).to_owned(), Value::String((*header).to_owned()))).collect();
    let mut lines = vec![template.execute(&Value::Object(headers))?];
    for row in rows {
        lines.push(template.execute(row)?);
    }
    let cells: Vec<Vec<&str>> = lines.iter().map(|line| line.split('\t').collect()).collect();
    write_table(out, &cells)
}

/// A template that is wrong is so for no rows, too.
fn check(template: &Template, shape: &Shape<'_>, rows: &[Value]) -> Result<()> {
    if rows.is_empty() {
        let fields = shape.headers.iter().map(|(field, _)| ((*field).to_owned(), Value::String(String::new())));
        template.execute(&Value::Object(fields.collect()))?;
    }
    Ok(())
}

/// Prints columns with three spaces between them, as wide as their widest cell and at least ten.
pub(crate) fn write_table<S: AsRef<str>>(out: &mut impl Write, rows: &[Vec<S>]) -> Result<()> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter(|row| column + 1 < row.len()).filter_map(|row| row.get(column));
        (cells.map(|cell| cell.as_ref().chars().count()).max().unwrap_or(0) + 3).max(10)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let cell = cell.as_ref();
            line.push_str(cell);
            if column + 1 < row.len() {
                line.push_str(&" ".repeat(widths[column].saturating_sub(cell.chars().count())));
            }
        }
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// Bytes as docker writes them for people: powers of 1000, up to three digits and a point.
pub(crate) fn human(bytes: u64) -> String {
    scaled(bytes as f64, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB"], 3)
}

/// Bytes in powers of 1024, four digits.
pub(crate) fn binary(bytes: u64) -> String {
    scaled(bytes as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"], 4)
}

fn scaled(mut value: f64, base: f64, units: &[&str], digits: usize) -> String {
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    format!("{}{}", significant(value, digits), units[unit])
}

/// A number with so many significant digits, without zeros at the end: Go's `%.4g`.
fn significant(value: f64, digits: usize) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let whole = (value.abs().log10().floor() as i64 + 1).max(1) as usize;
    let text = format!("{value:.*}", digits.saturating_sub(whole));
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const SHAPE: Shape<'_> =
        Shape { headers: &[("Name", "NAME"), ("Size", "SIZE")], default: "{{.Name}}\t{{.Size}}", quiet: "{{.Name}}" };

    fn printed(format: Option<&str>, quiet: bool) -> String {
        let rows =
            [json!({"Name": "a-long-name-here", "Size": 1, LABELS: {"k": "v"}}), json!({"Name": "b", "Size": 2})];
        let mut out = Vec::new();
        print(&mut out, &SHAPE, format, quiet, &rows).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn tables_templates_and_json() {
        assert_eq!(printed(None, false), "NAME               SIZE\na-long-name-here   1\nb                  2\n");
        assert_eq!(printed(None, true), "a-long-name-here\nb\n");
        assert_eq!(printed(Some("table {{.Size}}"), false), "SIZE\n1\n2\n");
        assert_eq!(printed(Some("{{.Name}}={{.Label \"k\"}}"), true), "a-long-name-here=v\nb=\n");
        assert_eq!(printed(Some("json"), false).lines().next(), Some(r#"{"Name":"a-long-name-here","Size":1}"#));
        assert_eq!(printed(Some("{{json .}}"), false), printed(Some("json"), false));
        assert_eq!(printed(Some(""), false), printed(None, false), "an empty format is none");
        assert_eq!(printed(Some(""), true), printed(None, true));
        assert_eq!(printed(Some("table {{.Label \"com.example.my-k\"}}"), false).lines().next(), Some("my k"));
        assert!(print(&mut Vec::new(), &SHAPE, Some("{{.Nope}}"), false, &[]).is_err());
    }

    #[test]
    fn sizes_are_docker_s() {
        for (bytes, want) in
            [(0, "0B"), (999, "999B"), (300_000, "300kB"), (1_234_567, "1.23MB"), (12_345_678_901, "12.3GB")]
        {
            assert_eq!(human(bytes), want);
        }
        for (bytes, want) in [(64 << 20, "64MiB"), (1_500_000, "1.431MiB"), (500, "500B")] {
            assert_eq!(binary(bytes), want);
        }
    }
}
