//! A tree and a value to text.

use super::functions;
use super::parse::{Node, Operand, Pipeline};
use super::{LISTS, MAPS, OMITTED, entries};
use crate::cli::format::{HEADERS, LABELS};
use serde_json::Value;

type Result<T> = std::result::Result<T, String>;

/// How a block ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    On,
    Break,
    Continue,
}

pub(super) fn run(nodes: &[Node], value: &Value) -> Result<String> {
    let mut scope = Scope { out: String::new(), variables: vec![("$".to_owned(), value.clone())] };
    scope.block(nodes, value)?;
    Ok(scope.out)
}

struct Scope {
    out: String,
    variables: Vec<(String, Value)>,
}

impl Scope {
    fn block(&mut self, nodes: &[Node], dot: &Value) -> Result<Flow> {
        let depth = self.variables.len();
        let mut flow = Flow::On;
        for node in nodes {
            flow = self.node(node, dot)?;
            if flow != Flow::On {
                break;
            }
        }
        self.variables.truncate(depth);
        Ok(flow)
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Result<Flow> {
        match node {
            Node::Text(text) => self.out.push_str(text),
            Node::Break => return Ok(Flow::Break),
            Node::Continue => return Ok(Flow::Continue),
            Node::Print(pipeline) => {
                let value = self.pipeline(pipeline, dot)?;
                if pipeline.variables.is_empty() {
                    match (&value, pipeline.field()) {
                        (Value::Null, Some(path)) => self.out.push_str(nothing(path)),
                        _ => self.out.push_str(&functions::shown(&value)),
                    }
                }
            }
            Node::If(arms, other) => {
                let depth = self.variables.len();
                for (test, body) in arms {
                    let value = self.pipeline(test, dot)?;
                    if functions::is_true(&value) {
                        let flow = self.block(body, dot);
                        self.variables.truncate(depth);
                        return flow;
                    }
                }
                let flow = self.block(other, dot);
                self.variables.truncate(depth);
                return flow;
            }
            Node::With(pipeline, body, other) => {
                let depth = self.variables.len();
                let value = self.pipeline(pipeline, dot)?;
                let flow = match functions::is_true(&value) {
                    true => self.block(body, &value),
                    false => self.block(other, dot),
                };
                self.variables.truncate(depth);
                return flow;
            }
            Node::Range(pipeline, body, other) => self.range(pipeline, body, other, dot)?,
        }
        Ok(Flow::On)
    }

    fn range(&mut self, pipeline: &Pipeline, body: &[Node], other: &[Node], dot: &Value) -> Result<()> {
        let over = self.commands(pipeline, dot)?;
        let items: Vec<(Value, Value)> = match over {
            Value::Array(list) => list.into_iter().enumerate().map(|(at, value)| (Value::from(at), value)).collect(),
            Value::Object(map) => {
                entries(&map).map(|(key, value)| (Value::String(key.clone()), value.clone())).collect()
            }
            Value::Null => Vec::new(),
            Value::Number(count) => {
                (0..count.as_i64().unwrap_or(0)).map(|at| (Value::from(at), Value::from(at))).collect()
            }
            other => return Err(format!("at <range>: range can't iterate over {}", functions::shown(&other))),
        };
        if items.is_empty() {
            return self.block(other, dot).map(drop);
        }
        for (key, value) in items {
            let depth = self.variables.len();
            match pipeline.variables.as_slice() {
                [] => {}
                [one] => self.variables.push((one.clone(), value.clone())),
                [first, second, ..] => {
                    self.variables.push((first.clone(), key));
                    self.variables.push((second.clone(), value.clone()));
                }
            }
            let flow = self.block(body, &value)?;
            self.variables.truncate(depth);
            if flow == Flow::Break {
                break;
            }
        }
        Ok(())
    }

    fn pipeline(&mut self, pipeline: &Pipeline, dot: &Value) -> Result<Value> {
        let value = self.commands(pipeline, dot)?;
        for name in &pipeline.variables {
            if pipeline.declares {
                self.variables.push((name.clone(), value.clone()));
            } else {
                let found = self.variables.iter_mut().rev().find(|(known, _)| known == name);
                found.ok_or_else(|| format!("undefined variable \"{name}\""))?.1 = value.clone();
            }
        }
        Ok(value)
    }

    fn commands(&mut self, pipeline: &Pipeline, dot: &Value) -> Result<Value> {
        let mut before: Option<Value> = None;
        for command in &pipeline.commands {
            before = Some(self.command(command, before, dot)?);
        }
        Ok(before.unwrap_or(Value::Null))
    }

    fn command(&mut self, command: &[Operand], last: Option<Value>, dot: &Value) -> Result<Value> {
        let Some((first, rest)) = command.split_first() else {
            return Err("missing value for command".to_owned());
        };
        let mut arguments = Vec::new();
        for operand in rest {
            arguments.push(self.operand(operand, dot)?);
        }
        arguments.extend(last);
        match first {
            Operand::Function(name) => functions::call(name, &arguments),
            // The one method that docker's rows have.
            Operand::Dot(path) if path.as_slice() == ["Label"] && !arguments.is_empty() => {
                Ok(label(dot, &functions::shown(&arguments[0])))
            }
            other if arguments.is_empty() => self.operand(other, dot),
            _ => Err("can't give argument to non-function".to_owned()),
        }
    }

    fn operand(&mut self, operand: &Operand, dot: &Value) -> Result<Value> {
        match operand {
            Operand::Literal(value) => Ok(value.clone()),
            Operand::Dot(path) => fields(dot, path),
            Operand::Variable(name, path) => {
                let found = self.variables.iter().rev().find(|(known, _)| known == name);
                let (_, value) = found.ok_or_else(|| format!("undefined variable \"{name}\""))?;
                fields(value, path)
            }
            Operand::Group(pipeline, path) => {
                let value = self.pipeline(pipeline, dot)?;
                fields(&value, path)
            }
            Operand::Function(name) => functions::call(name, &[]),
        }
    }
}

/// The label of a row; of the row of headers, what stands above it.
fn label(row: &Value, key: &str) -> Value {
    if row.get(HEADERS).is_some() {
        let last = key.rsplit('.').next().unwrap_or(key);
        return Value::String(last.replace(['-', '_'], " "));
    }
    let labels = row.get(LABELS).unwrap_or(&Value::Null);
    labels.get(key).cloned().unwrap_or_else(|| Value::String(String::new()))
}

/// What Go prints for a field that is nil: that depends on its type, which its name tells here.
fn nothing(path: &[String]) -> &'static str {
    let is = |names: &[&str], name: Option<&String>| name.is_some_and(|name| names.contains(&name.as_str()));
    let (last, above) = (path.last(), path.len().checked_sub(2).map(|n| &path[n]));
    match () {
        () if is(&MAPS, above) => "<no value>",
        () if is(&MAPS, last) => "map[]",
        () if is(&LISTS, last) => "[]",
        () => "<nil>",
    }
}

fn fields(value: &Value, path: &[String]) -> Result<Value> {
    let mut at = value;
    let mut in_map = false;
    for name in path {
        match at {
            Value::Object(map) => match map.get(name).or_else(|| map.get(OMITTED)?.get(name)) {
                Some(inner) => at = inner,
                None if in_map => return Ok(Value::Null),
                None => {
                    return Err(format!("at <.{}>: can't evaluate field {name}: no such field or key", path.join(".")));
                }
            },
            Value::Null => return Err(format!("at <.{}>: nil data; no entry for key \"{name}\"", path.join("."))),
            _ => return Err(format!("at <.{}>: can't evaluate field {name} in a plain value", path.join("."))),
        }
        in_map = MAPS.contains(&name.as_str());
    }
    Ok(at.clone())
}
