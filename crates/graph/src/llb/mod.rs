//! LLB, the wire form of graphs: what BuildKit's clients send and `buildctl build` reads.
//!
//! A definition is a `pb.Definition` of BuildKit's `solver/pb/ops.proto`: a list of marshalled ops, each naming its inputs by the
//! sha256 of their bytes, and last an op without work whose only input is the result. Everything comes from outside, so decoding
//! trusts nothing: an input that is not there, an index out of range or a value without meaning is [`LlbError::Malformed`], and
//! what LLB can say and a [`Graph`] cannot is [`LlbError::Unsupported`], never left out in silence.
//!
//! One op here can be several there: a copy of several sources is several actions, a `--link` copy is a file op over nothing and
//! a merge, and a cache mount with an owner begins as a directory that a file op makes. Names (`llb.customname`) and
//! `ignore_cache` travel as metadata; spans do not.

mod exec;
mod file;
mod source;
#[cfg(test)]
mod tests;

use crate::{Edge, Graph, ImageSource, Meta, Op, Platform, VertexId};
use bollard_buildkit_proto::pb;
use prost::Message;
use std::collections::{BTreeMap, HashMap, HashSet};
use xbuild_oci::Digest;

/// Key of a vertex' name in an op's description.
const NAME: &str = "llb.customname";

/// A definition that is not taken.
#[derive(Debug, thiserror::Error)]
pub enum LlbError {
    /// The bytes are no protobuf message of the kind.
    #[error("this is no LLB definition")]
    Protobuf(#[from] prost::DecodeError),
    /// The message contradicts itself.
    #[error("invalid LLB: {0}")]
    Malformed(String),
    /// The message asks for what no graph says.
    #[error("LLB with {0} is not supported")]
    Unsupported(String),
    /// An image of the definition is not known.
    #[error("image {reference}: {why}")]
    Image {
        /// Its name.
        reference: String,
        /// What the resolver said.
        why: String,
    },
}

/// Finds the manifest behind an image's name.
pub type ResolveImage<'a> = &'a mut dyn FnMut(&str, &Platform) -> Result<ImageSource, String>;

/// The marshalled definition of `result` and all that it needs. Equal graphs give equal bytes.
///
/// # Errors
/// [`LlbError::Unsupported`] where a graph says what LLB cannot.
pub fn encode(graph: &Graph, result: Edge) -> Result<Vec<u8>, LlbError> {
    let mut writer = Writer::default();
    for id in inputs_first(graph, result.vertex) {
        writer.vertex(graph, id)?;
    }
    let last = pb::Op { inputs: vec![writer.input(result)], ..pb::Op::default() };
    writer.add(&last, &Meta::default());
    Ok(writer.definition.encode_to_vec())
}

/// The graph of a marshalled definition, and its result.
///
/// # Errors
/// See [`LlbError`].
pub fn decode(bytes: &[u8], images: ResolveImage<'_>) -> Result<(Graph, Edge), LlbError> {
    let definition = pb::Definition::decode(bytes)?;
    let mut ops = BTreeMap::new();
    let mut last = None;
    for bytes in &definition.def {
        let digest = Digest::of(bytes).to_string();
        ops.insert(digest.clone(), pb::Op::decode(bytes.as_slice())?);
        last = Some(digest);
    }
    let last = last.and_then(|digest| ops.remove(&digest)).ok_or_else(|| malformed("it has no ops"))?;
    if last.op.is_some() {
        return Err(malformed("its last op is not the result"));
    }
    let [result] = last.inputs.as_slice() else {
        return Err(malformed("it has not exactly one result"));
    };
    let mut reader = Reader { metadata: definition.metadata, ops, images, graph: Graph::new(), known: HashMap::new() };
    reader.load(&result.digest)?;
    let edge = reader.edge(result)?;
    Ok((reader.graph, edge))
}

/// All that `result` needs and itself, in an order that only the graph's shape decides.
fn inputs_first(graph: &Graph, result: VertexId) -> Vec<VertexId> {
    let mut order = Vec::new();
    let mut seen = HashSet::new();
    let mut open = vec![(result, false)];
    while let Some((id, ready)) = open.pop() {
        if ready {
            order.push(id);
        } else if seen.insert(id) {
            open.push((id, true));
            open.extend(graph[id].inputs.iter().rev().map(|e| (e.vertex, false)));
        }
    }
    order
}

fn malformed(what: impl Into<String>) -> LlbError {
    LlbError::Malformed(what.into())
}

fn unsupported(what: impl Into<String>) -> LlbError {
    LlbError::Unsupported(what.into())
}

#[derive(Default)]
struct Writer {
    definition: pb::Definition,
    /// Digests of what was written.
    written: HashMap<VertexId, String>,
}

impl Writer {
    /// Adds an op and returns its digest.
    fn add(&mut self, op: &pb::Op, meta: &Meta) -> String {
        let bytes = op.encode_to_vec();
        let digest = Digest::of(&bytes).to_string();
        if !self.definition.metadata.contains_key(&digest) {
            let name = (!meta.name.is_empty()).then(|| (NAME.to_owned(), meta.name.clone()));
            let described = pb::OpMetadata {
                ignore_cache: meta.ignore_cache,
                description: name.into_iter().collect(),
                ..pb::OpMetadata::default()
            };
            self.definition.metadata.insert(digest.clone(), described);
            self.definition.def.push(bytes);
        }
        digest
    }

    fn input(&self, edge: Edge) -> pb::Input {
        let digest = self.written.get(&edge.vertex).cloned().unwrap_or_default();
        pb::Input { digest, index: edge.output.into() }
    }

    /// Adds a vertex whose inputs have been added.
    fn vertex(&mut self, graph: &Graph, id: VertexId) -> Result<(), LlbError> {
        let vertex = &graph[id];
        let mut inputs: Vec<pb::Input> = vertex.inputs.iter().map(|e| self.input(*e)).collect();
        let (op, platform) = match &vertex.op {
            Op::Source(source) => source::write(source),
            Op::Exec(exec) => (pb::op::Op::Exec(exec::write(exec, &mut inputs, self)), exec.platform.clone()),
            Op::File(file) => {
                let below = file.base.filter(|_| file::is_link(file)).map(|n| inputs[n].clone());
                let (op, used) = file::write(file, vertex, graph, &inputs)?;
                inputs = used;
                if let Some(below) = below {
                    let op = pb::Op { inputs, op: Some(pb::op::Op::File(op)), ..pb::Op::default() };
                    inputs = vec![below, pb::Input { digest: self.add(&op, &vertex.meta), index: 0 }];
                    (merge(2), None)
                } else {
                    (pb::op::Op::File(op), None)
                }
            }
            Op::Merge => (merge(inputs.len()), None),
            Op::Diff => (pb::op::Op::Diff(diff()), None),
        };
        let platform = platform.as_ref().map(write_platform);
        let digest = self.add(&pb::Op { inputs, platform, constraints: None, op: Some(op) }, &vertex.meta);
        self.written.insert(id, digest);
        Ok(())
    }
}

fn merge(inputs: usize) -> pb::op::Op {
    pb::op::Op::Merge(pb::MergeOp { inputs: (0..inputs as i64).map(|input| pb::MergeInput { input }).collect() })
}

fn diff() -> pb::DiffOp {
    pb::DiffOp { lower: Some(pb::LowerDiffInput { input: 0 }), upper: Some(pb::UpperDiffInput { input: 1 }) }
}

fn write_platform(platform: &Platform) -> pb::Platform {
    pb::Platform {
        os: platform.os.clone(),
        architecture: platform.architecture.clone(),
        variant: platform.variant.clone().unwrap_or_default(),
        ..pb::Platform::default()
    }
}

fn read_platform(platform: &pb::Platform) -> Platform {
    Platform::new(&platform.os, &platform.architecture, Some(&platform.variant))
}

struct Reader<'a> {
    metadata: BTreeMap<String, pb::OpMetadata>,
    /// What has not been read yet.
    ops: BTreeMap<String, pb::Op>,
    images: ResolveImage<'a>,
    graph: Graph,
    known: HashMap<String, VertexId>,
}

impl Reader<'_> {
    /// Adds the op named `result` and all that it needs, inputs first. A list of what is under way stands for recursion: the depth
    /// of a definition is its sender's choice.
    fn load(&mut self, result: &str) -> Result<(), LlbError> {
        let mut open = vec![result.to_owned()];
        let mut waiting = Vec::new();
        while let Some(digest) = open.pop() {
            if let Some(op) = self.ops.remove(&digest) {
                open.push(digest.clone());
                open.extend(op.inputs.iter().map(|input| input.digest.clone()));
                waiting.push((digest, op));
            } else if waiting.last().is_some_and(|(last, _)| *last == digest) {
                let (_, op) = waiting.pop().unwrap_or_default();
                let id = self.vertex(&digest, op)?;
                self.known.insert(digest, id);
            } else if !self.known.contains_key(&digest) {
                return Err(malformed(format!("an input is not there: {digest}")));
            }
        }
        Ok(())
    }

    fn edge(&self, input: &pb::Input) -> Result<Edge, LlbError> {
        let vertex = *self.known.get(&input.digest).ok_or_else(|| malformed("an input comes after its user"))?;
        let output = u32::try_from(input.index).map_err(|_| malformed(format!("output {} of an op", input.index)))?;
        Ok(Edge { vertex, output })
    }

    fn vertex(&mut self, digest: &str, op: pb::Op) -> Result<VertexId, LlbError> {
        let mut inputs = op.inputs.iter().map(|i| self.edge(i)).collect::<Result<Vec<_>, _>>()?;
        if op.constraints.is_some_and(|c| !c.filter.is_empty()) {
            return Err(unsupported("a choice of workers"));
        }
        let platform = op.platform.as_ref().map(read_platform);
        let described = self.metadata.remove(digest).unwrap_or_default();
        let name = described.description.get(NAME).filter(|name| !name.is_empty()).cloned();
        let op = match op.op {
            Some(pb::op::Op::Source(source)) => Op::Source(source::read(source, platform, self.images)?),
            Some(pb::op::Op::Exec(exec)) => Op::Exec(Box::new(exec::read(exec, platform, inputs.len())?)),
            Some(pb::op::Op::File(file)) => Op::File(file::read(file, &inputs, &self.graph)?),
            Some(pb::op::Op::Merge(merge)) => {
                let chosen = merge.inputs.iter().map(|i| pick(&inputs, i.input));
                inputs = chosen.collect::<Result<_, _>>()?;
                Op::Merge
            }
            Some(pb::op::Op::Diff(diff)) => {
                let (lower, upper) = (diff.lower.map(|l| l.input), diff.upper.map(|u| u.input));
                inputs = vec![pick(&inputs, lower.unwrap_or(-1))?, pick(&inputs, upper.unwrap_or(-1))?];
                Op::Diff
            }
            Some(pb::op::Op::Build(_)) => return Err(unsupported("a definition inside a definition")),
            None => return Err(malformed("an op without work is used as an input")),
        };
        let name = name.unwrap_or_else(|| title(&op));
        Ok(self.graph.add(op, inputs, Meta { name, span: None, ignore_cache: described.ignore_cache }))
    }
}

/// An input by its number in a merge or diff.
fn pick(inputs: &[Edge], number: i64) -> Result<Edge, LlbError> {
    match index(number, inputs.len())? {
        Some(n) => Ok(inputs[n]),
        None => Err(unsupported("a merge or diff with nothing")),
    }
}

/// An input's number, checked; none for -1, which stands for nothing.
fn index(number: i64, inputs: usize) -> Result<Option<usize>, LlbError> {
    match usize::try_from(number) {
        Ok(n) if n < inputs => Ok(Some(n)),
        Err(_) if number == -1 => Ok(None),
        _ => Err(malformed(format!("input {number} of {inputs}"))),
    }
}

/// What an op without a name is called in the progress display.
fn title(op: &Op) -> String {
    match op {
        Op::Source(source) => source::title(source),
        Op::Exec(exec) => exec.args.join(" "),
        Op::File(_) => "change files".to_owned(),
        Op::Merge => "merge".to_owned(),
        Op::Diff => "diff".to_owned(),
    }
}
