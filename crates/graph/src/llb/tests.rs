use super::*;
use crate::*;

fn image(reference: &str, platform: &Platform) -> Result<ImageSource, String> {
    Ok(ImageSource {
        reference: reference.to_owned(),
        manifest: String::new(),
        chain_id: format!("chain of {reference}"),
        origin: String::new(),
        platform: Some(platform.clone()),
    })
}

fn add(graph: &mut Graph, op: Op, inputs: Vec<Edge>) -> Edge {
    let meta = Meta { name: format!("step {}", graph.len()), ..Meta::default() };
    Edge { vertex: graph.add(op, inputs, meta), output: 0 }
}

fn mount(destination: &str, input: Option<usize>, output: Option<u32>, kind: MountKind) -> Mount {
    Mount { destination: destination.into(), input, selector: String::new(), output, readonly: false, kind }
}

fn copy(input: usize, sources: Vec<CopySource>) -> CopyAction {
    CopyAction {
        input,
        sources,
        destination: "/app/".into(),
        owner: Some(Owner { user: "www".into(), group: Some("33".into()) }),
        keep_owner: false,
        mode: Some("u+x".into()),
        unpack: false,
        parents: false,
        excludes: vec!["*.o".into()],
        link: false,
        mtime: Some(7),
    }
}

fn path(path: &str, wildcard: bool) -> CopySource {
    CopySource::Path { path: path.into(), wildcard, required: !wildcard }
}

/// A bit of everything that LLB says as it is here.
fn sample() -> (Graph, Edge) {
    let mut graph = Graph::new();
    let platform = Platform::new("linux", "arm64", None);
    let base = add(&mut graph, Op::Source(SourceOp::Image(image("base:1", &platform).unwrap())), vec![]);
    let excludes = vec!["*.tmp".into(), "!keep.tmp".into()];
    let context =
        add(&mut graph, Op::Source(SourceOp::Local(LocalSource { name: "context".into(), excludes })), vec![]);
    let git = GitSource {
        remote: "https://host/repo.git".into(),
        reference: "main".into(),
        subdir: "sub".into(),
        keep_git_dir: true,
        checksum: Some("abc".into()),
        skip_submodules: true,
    };
    let git = add(&mut graph, Op::Source(SourceOp::Git(git)), vec![]);
    let actions = vec![
        FileAction::Mkdir { path: "/app".into(), mode: 0o750, parents: true, owner: None },
        FileAction::Copy(Box::new(copy(1, vec![path("/src", false), path("/*.c", true)]))),
        FileAction::Mkfile { path: "/x".into(), mode: 0o600, data: b"x".to_vec(), owner: None },
        FileAction::Symlink { target: "x".into(), path: "/y".into(), owner: None },
        FileAction::Remove { path: "/z*".into(), allow_missing: true, wildcard: true },
    ];
    let files = add(&mut graph, Op::File(FileOp { base: Some(0), actions }), vec![base, context]);
    let cache = MountKind::Cache {
        id: Unkeyed("id".into()),
        named: true,
        sharing: Unkeyed(CacheSharing::Locked),
        mode: 0o755,
        uid: 0,
        gid: 0,
    };
    let secret = MountKind::Secret { id: "token".into(), mode: 0o400, uid: 1, gid: 2, optional: true };
    let exec = ExecOp {
        args: vec!["make".into(), "-j".into()],
        env: vec!["A=b".into()],
        cwd: "/app".into(),
        user: "www".into(),
        mounts: vec![
            mount("/", Some(0), Some(0), MountKind::Bind),
            mount("/git", Some(1), None, MountKind::Bind),
            mount("/cache", None, None, cache),
            mount("/tmp", None, None, MountKind::Tmpfs { size: Some(1 << 20) }),
            mount("/run/secrets/token", None, None, secret),
        ],
        network: NetworkMode::None,
        security: SecurityMode::Insecure,
        extra_hosts: vec![("h".into(), "10.0.0.1".into())],
        hostname: "builder".into(),
        secret_env: vec![SecretEnv { id: "token".into(), name: "TOKEN".into(), optional: false }],
        shm_size: Some(1 << 26),
        ulimits: vec![Ulimit { name: "nofile".into(), soft: 10, hard: -1 }],
        cgroup_parent: "/builds".into(),
        proxy_env: Unkeyed(BTreeMap::new()),
        platform: Some(platform),
    };
    let made = add(&mut graph, Op::Exec(Box::new(exec)), vec![files, git]);
    let changed = add(&mut graph, Op::Diff, vec![files, made]);
    let merged = add(&mut graph, Op::Merge, vec![base, changed]);
    (graph, merged)
}

fn decoded(bytes: &[u8]) -> Result<(Graph, Edge), LlbError> {
    decode(bytes, &mut image)
}

/// Ops by the digests of their vertices, in order.
fn shape(graph: &Graph) -> Vec<(Op, Meta)> {
    let mut all: Vec<_> = graph.in_order().into_iter().map(|id| &graph[id]).collect();
    all.sort_by_key(|vertex| vertex.digest);
    all.iter().map(|v| (v.op.clone(), v.meta.clone())).collect()
}

#[test]
fn a_graph_comes_back_as_it_was() {
    let (mut graph, result) = sample();
    let (again, edge) = decoded(&encode(&graph, result).unwrap()).unwrap();
    // Two sources of one copy are two actions there.
    let files = graph.in_order().into_iter().find(|id| matches!(graph[*id].op, Op::File(_))).unwrap();
    let Op::File(mut op) = graph[files].op.clone() else { unreachable!() };
    let FileAction::Copy(both) = op.actions.remove(1) else { unreachable!() };
    for source in both.sources.iter().rev() {
        op.actions.insert(1, FileAction::Copy(Box::new(CopyAction { sources: vec![source.clone()], ..*both.clone() })));
    }
    graph.dag[node(files)].op = Op::File(op);
    let sorted = |graph: &Graph| {
        let mut all: Vec<_> = shape(graph).into_iter().map(|(op, meta)| (format!("{op:?}"), meta.name)).collect();
        all.sort();
        all
    };
    assert_eq!(sorted(&again), sorted(&graph));
    assert_eq!(again[edge.vertex].inputs.len(), 2);
    let written = encode(&again, edge).unwrap();
    assert_eq!(encode(&decoded(&written).unwrap().0, edge).unwrap(), written);
}

#[test]
fn only_what_the_result_needs_is_written() {
    let (mut graph, result) = sample();
    let bytes = encode(&graph, result).unwrap();
    add(&mut graph, Op::Source(SourceOp::Local(LocalSource { name: "unused".into(), excludes: vec![] })), vec![]);
    assert_eq!(encode(&graph, result).unwrap(), bytes);
}

#[test]
fn a_heredoc_with_a_mode_in_words_is_refused() {
    let written = |mode: &str| {
        let mut graph = Graph::new();
        let file = CopySource::Inline { name: "f".into(), data: b"text".to_vec() };
        let copy = CopyAction { owner: None, mode: Some(mode.into()), ..copy(0, vec![file]) };
        let result =
            add(&mut graph, Op::File(FileOp { base: None, actions: vec![FileAction::Copy(Box::new(copy))] }), vec![]);
        encode(&graph, result).map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(written("0640"), Ok(()));
    let why = "LLB with a file of a heredoc whose mode is not a number is not supported";
    assert_eq!(written("u=rw,go="), Err(why.to_owned()));
}

#[test]
fn a_link_copy_is_a_merge_of_files_over_nothing() {
    let mut graph = Graph::new();
    let platform = Platform::host();
    let base = add(&mut graph, Op::Source(SourceOp::Image(image("base:1", &platform).unwrap())), vec![]);
    let local = Op::Source(SourceOp::Local(LocalSource { name: "context".into(), excludes: vec![] }));
    let context = add(&mut graph, local, vec![]);
    let linked = CopyAction { link: true, owner: None, ..copy(1, vec![path("/a", false)]) };
    let op = Op::File(FileOp { base: Some(0), actions: vec![FileAction::Copy(Box::new(linked))] });
    let result = add(&mut graph, op, vec![base, context]);
    let (again, edge) = decoded(&encode(&graph, result).unwrap()).unwrap();
    assert_eq!(again[edge.vertex].op, Op::Merge);
    let files = &again[again[edge.vertex].inputs[1].vertex];
    assert!(matches!(&files.op, Op::File(FileOp { base: None, actions }) if actions.len() == 1), "{files:?}");
    assert_eq!(files.inputs.len(), 1);
}

#[test]
fn a_cache_with_an_owner_begins_as_a_directory_of_that_owner() {
    let mut graph = Graph::new();
    let kind = |mode| MountKind::Cache {
        id: Unkeyed("/c".into()),
        named: false,
        sharing: Unkeyed(CacheSharing::Shared),
        mode,
        uid: 5,
        gid: 6,
    };
    let exec = ExecOp {
        args: vec!["true".into()],
        mounts: vec![mount("/", None, Some(0), MountKind::Bind), mount("/c", None, None, kind(0o700))],
        ..ExecOp::default()
    };
    let result = add(&mut graph, Op::Exec(Box::new(exec)), vec![]);
    let (again, edge) = decoded(&encode(&graph, result).unwrap()).unwrap();
    let Op::Exec(exec) = &again[edge.vertex].op else { unreachable!() };
    assert_eq!((exec.mounts[1].input, exec.mounts[1].selector.as_str()), (Some(0), "/cache"));
    let Op::File(seed) = &again[again[edge.vertex].inputs[0].vertex].op else { unreachable!() };
    let owner = Some(Owner { user: "5".into(), group: Some("6".into()) });
    let made = FileAction::Mkdir { path: "/cache".into(), mode: 0o700, parents: true, owner };
    assert_eq!(seed.actions, [made]);
}

/// Makes an op from the digests of those before it.
type Make<'a> = &'a dyn Fn(&[String]) -> pb::Op;

/// A definition of these ops.
fn definition(ops: &[Make<'_>]) -> Vec<u8> {
    let mut digests = Vec::new();
    let mut definition = pb::Definition::default();
    for make in ops {
        let bytes = make(&digests).encode_to_vec();
        digests.push(Digest::of(&bytes).to_string());
        definition.def.push(bytes);
    }
    definition.encode_to_vec()
}

fn op(inputs: &[&str], op: Option<pb::op::Op>) -> pb::Op {
    let input = |digest: &&str| pb::Input { digest: (*digest).to_owned(), index: 0 };
    pb::Op { inputs: inputs.iter().map(input).collect(), op, ..pb::Op::default() }
}

fn source(identifier: &str, attrs: &[(&str, &str)]) -> pb::Op {
    let attrs = attrs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    op(&[], Some(pb::op::Op::Source(pb::SourceOp { identifier: identifier.into(), attrs })))
}

fn said(result: Result<(Graph, Edge), LlbError>) -> String {
    result.expect_err("this is not taken").to_string()
}

#[test]
fn what_makes_no_sense_is_an_error() {
    let end = |digests: &[String]| op(&[digests.last().map_or("", String::as_str)], None);
    let local = |_: &[String]| source("local://context", &[]);
    assert!(decoded(&definition(&[&local, &end])).is_ok());
    assert_eq!(said(decoded(&[])), "invalid LLB: it has no ops");
    assert_eq!(said(decoded(b"\xff")), "this is no LLB definition");
    assert_eq!(said(decoded(&definition(&[&local]))), "invalid LLB: its last op is not the result");
    let absent = said(decoded(&definition(&[&|_: &[String]| op(&["sha256:00"], None)])));
    assert_eq!(absent, "invalid LLB: an input is not there: sha256:00");
    let beyond = |digests: &[String]| op(&[&digests[0]], Some(merge(2)));
    assert_eq!(said(decoded(&definition(&[&local, &beyond, &end]))), "invalid LLB: input 1 of 1");
    let hollow = |digests: &[String]| op(&[&digests[0]], None);
    let hollow = said(decoded(&definition(&[&local, &hollow, &end])));
    assert_eq!(hollow, "invalid LLB: an op without work is used as an input");
}

#[test]
fn what_a_graph_cannot_say_is_an_error() {
    let end = |digests: &[String]| op(&[digests.last().map_or("", String::as_str)], None);
    let refused = |make: Make<'_>| said(decoded(&definition(&[make, &end])));
    assert_eq!(refused(&|_| source("blob://x", &[])), "LLB with the source \"blob://x\" is not supported");
    let include = |_: &[String]| source("local://context", &[("local.includepattern", "[\"a\"]")]);
    assert_eq!(refused(&include), "LLB with the attribute \"local.includepattern\" of a source is not supported");
    let nested = |_: &[String]| op(&[], Some(pb::op::Op::Build(pb::BuildOp::default())));
    assert_eq!(refused(&nested), "LLB with a definition inside a definition is not supported");
    let odd = |_: &[String]| {
        let meta = Some(pb::Meta { args: vec!["true".into()], ..pb::Meta::default() });
        op(&[], Some(pb::op::Op::Exec(pb::ExecOp { meta, network: 9, ..pb::ExecOp::default() })))
    };
    assert_eq!(refused(&odd), "LLB with the network mode 9 is not supported");
}

#[test]
fn a_deep_definition_needs_no_stack() {
    let mut graph = Graph::new();
    let mut last = add(&mut graph, Op::Merge, vec![]);
    for _ in 0..50_000 {
        last = add(&mut graph, Op::Merge, vec![last]);
    }
    let bytes = encode(&graph, last).unwrap();
    assert_eq!(decoded(&bytes).unwrap().0.len(), 50_001);
}

#[test]
fn an_op_without_a_name_is_called_what_it_does() {
    let local = source("local://context", &[]);
    let bytes = local.encode_to_vec();
    let digest = Digest::of(&bytes).to_string();
    let last = op(&[&digest], None).encode_to_vec();
    for name in [None, Some(""), Some("mine")] {
        let description = name.map(|name| (NAME.to_owned(), name.to_owned())).into_iter().collect();
        let about = pb::OpMetadata { description, ..pb::OpMetadata::default() };
        let definition = pb::Definition {
            def: vec![bytes.clone(), last.clone()],
            metadata: [(digest.clone(), about)].into(),
            source: None,
        };
        let (graph, result) = decoded(&definition.encode_to_vec()).unwrap();
        let want = name.filter(|name| !name.is_empty()).unwrap_or("local://context");
        assert_eq!(graph[result.vertex].meta.name, want, "{name:?}");
    }
}
