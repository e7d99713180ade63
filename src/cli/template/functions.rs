//! What templates can call.

use super::{entries, visible};
use serde_json::Value;
use std::cmp::Ordering;

type Result<T> = std::result::Result<T, String>;

pub(super) fn call(name: &str, arguments: &[Value]) -> Result<Value> {
    let wrong = || format!("wrong number or kind of arguments for {name}");
    let text = |at: usize| arguments.get(at).map(shown).ok_or_else(wrong);
    let number = |at: usize| arguments.get(at).and_then(Value::as_i64).ok_or_else(wrong);
    let one = || arguments.first().ok_or_else(wrong);
    Ok(match name {
        "json" => Value::String(serde_json::to_string(&visible(one()?)).map_err(|error| error.to_string())?),
        "print" | "html" | "urlquery" | "js" => {
            Value::String(arguments.iter().map(shown).collect::<Vec<_>>().join(" "))
        }
        "println" => Value::String(arguments.iter().map(shown).collect::<Vec<_>>().join(" ") + "\n"),
        "printf" => Value::String(printf(&text(0)?, &arguments[1..])),
        "upper" => Value::String(text(0)?.to_uppercase()),
        "lower" => Value::String(text(0)?.to_lowercase()),
        "title" => Value::String(title(&text(0)?)),
        "join" => match one()? {
            Value::Array(list) => Value::String(list.iter().map(shown).collect::<Vec<_>>().join(&text(1)?)),
            Value::Null => Value::String(String::new()),
            _ => return Err(wrong()),
        },
        "split" => Value::Array(text(0)?.split(&text(1)?).map(|part| Value::String(part.to_owned())).collect()),
        "truncate" => {
            let length = usize::try_from(number(1)?).map_err(|_| wrong())?;
            Value::String(text(0)?.chars().take(length).collect())
        }
        "pad" => {
            let text = text(0)?;
            let (before, after) = (number(1)?.clamp(0, 4096) as usize, number(2)?.clamp(0, 4096) as usize);
            Value::String(if text.is_empty() { text } else { " ".repeat(before) + &text + &" ".repeat(after) })
        }
        "len" => Value::from(match one()? {
            Value::String(text) => text.len(),
            Value::Array(list) => list.len(),
            Value::Object(map) => entries(map).count(),
            Value::Null => 0,
            _ => return Err(wrong()),
        }),
        "index" => {
            let mut at = one()?.clone();
            for key in &arguments[1..] {
                at = index(&at, key)?;
            }
            at
        }
        "slice" => slice(arguments)?,
        "not" => Value::Bool(!is_true(one()?)),
        "and" => arguments.iter().find(|value| !is_true(value)).or(arguments.last()).cloned().ok_or_else(wrong)?,
        "or" => arguments.iter().find(|value| is_true(value)).or(arguments.last()).cloned().ok_or_else(wrong)?,
        "eq" => {
            let first = one()?;
            Value::Bool(arguments[1..].iter().any(|other| equal(first, other)))
        }
        "ne" => Value::Bool(!equal(one()?, arguments.get(1).ok_or_else(wrong)?)),
        "lt" | "le" | "gt" | "ge" => {
            let order = compare(one()?, arguments.get(1).ok_or_else(wrong)?)?;
            Value::Bool(match name {
                "lt" => order == Ordering::Less,
                "le" => order != Ordering::Greater,
                "gt" => order == Ordering::Greater,
                _ => order != Ordering::Less,
            })
        }
        _ => return Err(format!("function \"{name}\" not defined")),
    })
}

/// Every word with a large letter, as Go does it.
fn title(text: &str) -> String {
    let mut titled = String::new();
    let mut in_word = false;
    for c in text.chars() {
        match in_word {
            true => titled.push(c),
            false => titled.extend(c.to_uppercase()),
        }
        in_word = if c.is_ascii() { c.is_ascii_alphanumeric() || c == '_' } else { !c.is_whitespace() };
    }
    titled
}

/// A value as Go prints it.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(shown).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let entries: Vec<String> = entries(map).map(|(key, value)| format!("{key}:{}", shown(value))).collect();
            format!("map[{}]", entries.join(" "))
        }
        other => other.to_string(),
    }
}

/// Whether a value counts as true: not empty, not zero, not false.
pub(super) fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(truth) => *truth,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => entries(map).next().is_some(),
    }
}

fn index(value: &Value, key: &Value) -> Result<Value> {
    match (value, key) {
        (Value::Array(list), Value::Number(number)) => {
            let found = number.as_u64().and_then(|at| list.get(usize::try_from(at).ok()?));
            found.cloned().ok_or_else(|| format!("error calling index: index out of range: {number}"))
        }
        // A map of strings gives its zero value for a key that it does not have.
        (Value::Object(map), key) => Ok(map.get(&shown(key)).cloned().unwrap_or_else(|| match map.values().next() {
            None | Some(Value::String(_)) => Value::String(String::new()),
            Some(_) => Value::Null,
        })),
        (Value::Null, _) => Err("error calling index: index of nil pointer".to_owned()),
        (other, _) => Err(format!("error calling index: can't index item {}", shown(other))),
    }
}

fn slice(arguments: &[Value]) -> Result<Value> {
    let wrong = || "error calling slice: index out of range".to_owned();
    let bound = |at: usize, default: usize| match arguments.get(at) {
        None => Ok(default),
        Some(number) => number.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or_else(wrong),
    };
    match arguments.first() {
        Some(Value::String(text)) => {
            let (from, to) = (bound(1, 0)?, bound(2, text.len())?);
            text.get(from..to).map(|part| Value::String(part.to_owned())).ok_or_else(wrong)
        }
        Some(Value::Array(list)) => {
            let (from, to) = (bound(1, 0)?, bound(2, list.len())?);
            list.get(from..to).map(|part| Value::Array(part.to_vec())).ok_or_else(wrong)
        }
        _ => Err("error calling slice: can't slice item".to_owned()),
    }
}

fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (a, b) => a == b,
    }
}

fn compare(a: &Value, b: &Value) -> Result<Ordering> {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => {
            a.as_f64().partial_cmp(&b.as_f64()).ok_or_else(|| "incomparable numbers".to_owned())
        }
        (Value::String(a), Value::String(b)) => Ok(a.cmp(b)),
        _ => Err("incompatible types for comparison".to_owned()),
    }
}

/// Go's `printf`, for what people use of it: flags `-`, `0`, `+`, a width, a precision, and the usual verbs.
fn printf(format: &str, arguments: &[Value]) -> String {
    let mut out = String::new();
    let mut arguments = arguments.iter();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut spec = String::new();
        while let Some(c) = chars.next_if(|c| matches!(c, '-' | '+' | '0'..='9' | '.' | '#' | ' ')) {
            spec.push(c);
        }
        match chars.next() {
            None => out.push_str("%!(NOVERB)"),
            Some('%') => out.push('%'),
            Some(verb) => match arguments.next() {
                None => out.push_str(&format!("%!{verb}(MISSING)")),
                Some(value) => out.push_str(&padded(&spec, &verb_text(verb, &spec, value))),
            },
        }
    }
    out
}

fn verb_text(verb: char, spec: &str, value: &Value) -> String {
    let precision = spec.split_once('.').and_then(|(_, digits)| digits.parse::<usize>().ok());
    match (verb, value) {
        ('q', value) => format!("{:?}", shown(value)),
        ('x', Value::Number(number)) => format!("{:x}", number.as_i64().unwrap_or(0)),
        ('x', value) => shown(value).bytes().map(|byte| format!("{byte:02x}")).collect(),
        ('f', Value::Number(number)) => format!("{:.*}", precision.unwrap_or(6), number.as_f64().unwrap_or(0.0)),
        ('s', value) => match precision {
            Some(most) => shown(value).chars().take(most).collect(),
            None => shown(value),
        },
        ('d' | 'v' | 't', value) => shown(value),
        (verb, value) => format!("%!{verb}({})", shown(value)),
    }
}

fn padded(spec: &str, text: &str) -> String {
    let flags: String = spec.chars().take_while(|c| matches!(c, '-' | '+' | '0' | '#' | ' ')).collect();
    let width = spec[flags.len()..].split('.').next().and_then(|digits| digits.parse::<usize>().ok()).unwrap_or(0);
    let missing = width.saturating_sub(text.chars().count());
    match (flags.contains('-'), flags.contains('0')) {
        (true, _) => format!("{text}{}", " ".repeat(missing)),
        (false, true) => format!("{}{text}", "0".repeat(missing)),
        (false, false) => format!("{}{text}", " ".repeat(missing)),
    }
}
