//! One JSON object a line, in the shape of BuildKit's `SolveStatus`.

use super::Renderer;
use serde_json::json;
use std::collections::HashMap;
use std::io::{self, Write};
use xbuild_engine::event::{Event, EventKind, StepId};

#[derive(Default)]
pub(super) struct RawJson {
    names: HashMap<StepId, (String, Option<String>)>,
}

impl Renderer for RawJson {
    fn event(&mut self, event: &Event, out: &mut dyn Write) -> io::Result<()> {
        let digest = |name: &str| xbuild_oci::Digest::of(format!("{} {name}", event.step.0).as_bytes()).to_string();
        let now = crate::cli::time::rfc3339_now();
        if let EventKind::Named(name) = &event.kind {
            self.names.insert(event.step, (name.clone(), None));
        }
        let Some((name, started)) = self.names.get_mut(&event.step) else {
            return Ok(());
        };
        let id = digest(name);
        if matches!(event.kind, EventKind::Started | EventKind::Cached) {
            *started = Some(now.clone());
        }
        let vertex = |more: serde_json::Value| {
            let mut vertex = json!({"digest": id, "name": name});
            if let (Some(fields), Some(more)) = (vertex.as_object_mut(), more.as_object()) {
                fields.extend(started.iter().map(|s| ("started".to_owned(), json!(s))));
                fields.extend(more.clone());
            }
            json!({"vertexes": [vertex]})
        };
        let line = match &event.kind {
            EventKind::Named(_) | EventKind::Started => vertex(json!({})),
            EventKind::Cached => vertex(json!({"completed": now, "cached": true})),
            EventKind::Done => vertex(json!({"completed": now})),
            EventKind::Failed(error) => vertex(json!({"completed": now, "error": error})),
            EventKind::Cancelled => vertex(json!({"completed": now, "error": "context canceled"})),
            EventKind::Log { stream, data } => {
                json!({"logs": [{"vertex": id, "stream": stream, "data": base64(data), "timestamp": now}]})
            }
            EventKind::Note(text) => {
                json!({"statuses": [{"id": text, "vertex": id, "name": text, "timestamp": now}]})
            }
            EventKind::Transfer { name, current, total } => {
                json!({"statuses": [{"id": name, "vertex": id, "current": current, "total": total, "timestamp": now}]})
            }
            EventKind::Warning { text, short } => {
                json!({"warnings": [{"vertex": id, "level": 1, "short": base64(short.as_bytes()), "detail": [base64(text.as_bytes())]}]})
            }
        };
        writeln!(out, "{line}")
    }
}

/// Standard base64 with padding (RFC 4648 §4), which is how Go writes bytes in JSON.
fn base64(data: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(data.len().div_ceil(3) * 4);
    for chunk in data.chunks(3) {
        let n = chunk.iter().fold(0, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let digit = DIGITS[(n >> (18 - 6 * i) & 63) as usize];
            out.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn base64_pads() {
        for (data, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(super::base64(data.as_bytes()), text);
        }
    }
}
