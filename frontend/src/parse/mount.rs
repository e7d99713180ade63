//! The value of RUN --mount.

use super::go_bool;
use crate::suggest::nearest;

/// Kind of a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Type {
    #[default]
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

/// A mount as written, expanded or not.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mount {
    pub(crate) kind: Type,
    pub(crate) from: Option<String>,
    pub(crate) source: Option<String>,
    pub(crate) target: Option<String>,
    pub(crate) id: Option<String>,
    pub(crate) readonly: bool,
    pub(crate) sharing: Option<String>,
    pub(crate) size: Option<u64>,
    pub(crate) mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) required: bool,
    pub(crate) env: Option<String>,
}

const KEYS: &[&str] = &[
    "type",
    "from",
    "source",
    "src",
    "target",
    "dst",
    "destination",
    "readonly",
    "ro",
    "rw",
    "readwrite",
    "id",
    "sharing",
    "size",
    "mode",
    "uid",
    "gid",
    "required",
    "env",
];

/// Checks what does not depend on variables.
pub(super) fn check(written: &str) -> Result<(), String> {
    let fields = fields(written)?;
    if let Some((_, from)) = fields.iter().find(|(k, _)| k == "from")
        && from.as_deref().is_some_and(|f| f.contains('$'))
    {
        return Err("'from' doesn't support variable expansion, define alias stage instead".to_owned());
    }
    let has_variables = |(_, v): &(String, Option<String>)| v.as_deref().is_some_and(|v| v.contains('$'));
    match fields.iter().any(has_variables) {
        true => Ok(()),
        false => read(written, &mut |text| Ok(text.to_owned())).map(|_| ()),
    }
}

/// Type and source stage, which cannot hold variables that matter before the rest is expanded.
pub(crate) fn from_of(written: &str) -> Option<String> {
    let fields = fields(written).ok()?;
    let find = |key: &str| fields.iter().find(|(k, _)| k == key).and_then(|(_, v)| v.clone());
    find("from").filter(|f| !f.is_empty())
}

/// Splits at commas; a field that is in double quotes as a whole may hold commas.
fn fields(written: &str) -> Result<Vec<(String, Option<String>)>, String> {
    let mut found = Vec::new();
    for field in comma_separated(written)? {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_lowercase(), Some(value.to_owned())),
            None => (field.to_lowercase(), None),
        };
        if !KEYS.contains(&key.as_str()) {
            let hint = nearest(&key, KEYS.iter().copied());
            let hint = hint.map(|h| format!(" (did you mean {h}?)")).unwrap_or_default();
            return Err(format!("unexpected key `{key}` in --mount={written}{hint}"));
        }
        found.push((key, value));
    }
    Ok(found)
}

fn comma_separated(written: &str) -> Result<Vec<String>, String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut chars = written.chars().peekable();
    while let Some(c) = chars.next() {
        let field = fields.last_mut().expect("one field is always there");
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            _ => field.push(c),
        }
    }
    match quoted {
        true => Err(format!("--mount={written} has a quote that is not closed")),
        false => Ok(fields),
    }
}

/// Reads a mount, every value going through `expand`.
pub(crate) fn read(written: &str, expand: &mut dyn FnMut(&str) -> Result<String, String>) -> Result<Mount, String> {
    let mut mount = Mount::default();
    let mut writable = None;
    for (key, value) in fields(written)? {
        let value = match value {
            Some(value) => Some(expand(&value)?),
            None => None,
        };
        let switch = |value: Option<&str>| match value {
            None => Ok(true),
            Some(text) => {
                go_bool(text).ok_or_else(|| format!("invalid value for {key}: `{text}` in --mount={written}"))
            }
        };
        match key.as_str() {
            "readonly" | "ro" => writable = Some(!switch(value.as_deref())?),
            "rw" | "readwrite" => writable = Some(switch(value.as_deref())?),
            "required" => mount.required = switch(value.as_deref())?,
            _ => {
                let value =
                    value.ok_or_else(|| format!("invalid field `{key}` in --mount={written}: it needs a value"))?;
                set(&mut mount, &key, value, written)?;
            }
        }
    }
    mount.readonly = match (writable, mount.kind) {
        (Some(writable), _) => !writable,
        (None, kind) => kind == Type::Bind,
    };
    validate(&mount, writable, written)?;
    Ok(mount)
}

fn set(mount: &mut Mount, key: &str, value: String, written: &str) -> Result<(), String> {
    let number = |radix| {
        let digits = match radix {
            8 => value.trim_start_matches("0o"),
            _ => &value,
        };
        u32::from_str_radix(digits, radix)
            .map(Some)
            .map_err(|_| format!("invalid value `{value}` for {key} in --mount={written}"))
    };
    match key {
        "type" => mount.kind = kind(&value)?,
        "from" => mount.from = Some(value).filter(|v| !v.is_empty()),
        "source" | "src" => mount.source = Some(value).filter(|v| !v.is_empty()),
        "target" | "dst" | "destination" => mount.target = Some(value).filter(|v| !v.is_empty()),
        "id" => mount.id = Some(value).filter(|v| !v.is_empty()),
        "env" => mount.env = Some(value).filter(|v| !v.is_empty()),
        "mode" => mount.mode = number(8)?,
        "uid" => mount.uid = number(10)?,
        "gid" => mount.gid = number(10)?,
        "size" => {
            mount.size =
                Some(size(&value).ok_or_else(|| format!("invalid value `{value}` for size in --mount={written}"))?)
        }
        _ => {
            if !matches!(value.as_str(), "shared" | "private" | "locked") {
                return Err(format!("unsupported sharing value `{value}` in --mount={written}"));
            }
            mount.sharing = Some(value);
        }
    }
    Ok(())
}

fn kind(text: &str) -> Result<Type, String> {
    const NAMES: [&str; 5] = ["bind", "cache", "tmpfs", "secret", "ssh"];
    Ok(match text.to_lowercase().as_str() {
        "bind" => Type::Bind,
        "cache" => Type::Cache,
        "tmpfs" => Type::Tmpfs,
        "secret" => Type::Secret,
        "ssh" => Type::Ssh,
        other => {
            let hint = nearest(other, NAMES).map(|h| format!(" (did you mean {h}?)"));
            return Err(format!("unsupported mount type `{text}`{}", hint.unwrap_or_default()));
        }
    })
}

/// Bytes, with an optional `b`, `k`, `m`, `g`, `t` (also `kb`, `KiB`), powers of 1024.
pub(crate) fn size(text: &str) -> Option<u64> {
    let text = text.trim().to_lowercase();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let shift = match text[digits..].trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn validate(mount: &Mount, writable: Option<bool>, written: &str) -> Result<(), String> {
    let need = |what: &str| Err(format!("{what} in --mount={written}"));
    let anonymous = matches!(mount.kind, Type::Secret | Type::Ssh);
    if mount.size.is_some() && mount.kind != Type::Tmpfs {
        return need("`size` is only for tmpfs mounts");
    }
    if mount.sharing.is_some() && mount.kind != Type::Cache {
        return need("`sharing` is only for cache mounts");
    }
    if mount.env.is_some() && mount.kind != Type::Secret {
        return need("`env` is only for secret mounts");
    }
    if mount.required && !anonymous {
        return need("`required` is only for secret and ssh mounts");
    }
    if mount.from.is_some() && anonymous {
        return need("`from` is not for secret and ssh mounts");
    }
    if writable.is_some() && anonymous {
        return need("`readonly` is not for secret and ssh mounts");
    }
    let nameless = mount.id.is_none() && mount.source.is_none() && mount.target.is_none();
    if mount.kind == Type::Secret && nameless && mount.env.is_none() {
        return need("invalid secret mount: one of `id` and `target` is required");
    }
    Ok(())
}
