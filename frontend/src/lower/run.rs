//! RUN.

use super::dispatch::Work;
use super::layout::Place;
use super::stage::{Note, NoteKind};
use super::{Entitlement, Purpose, names};
use crate::ignore::clean;
use crate::parse::ShellForm;
use crate::parse::lexical::heredoc_mark;
use crate::parse::mount::{self, Type};
use crate::shell::{Environment, Expander};
use crate::{Diagnostic, Heredoc, Instruction, Run};
use xbuild_graph::{
    CacheSharing, Edge, ExecOp, FileAction, FileOp, Meta, Mount, MountKind, NetworkMode, Op, SecretEnv, SecurityMode,
    Span, Unkeyed,
};

/// Where heredocs that are programs of their own are mounted.
const PIPES: &str = "/dev/pipes";

/// What a RUN mounts.
#[derive(Default)]
struct Mounts {
    mounts: Vec<Mount>,
    inputs: Vec<Edge>,
    secret_env: Vec<SecretEnv>,
    agents: usize,
    /// Target of the first agent.
    agent: Option<String>,
}

impl Mounts {
    fn input(&mut self, edge: Edge) -> usize {
        self.inputs.push(edge);
        self.inputs.len() - 1
    }
}

impl Work<'_, '_> {
    /// One RUN.
    pub(super) fn run(&mut self, run: &Run, instruction: &Instruction, place: Place) -> Result<(), Diagnostic> {
        let span = instruction.span;
        let mut mounts = Mounts::default();
        let input = self.state.files.map(|files| mounts.input(files));
        mounts.mounts.push(Mount {
            destination: "/".to_owned(),
            input,
            selector: "/".to_owned(),
            output: Some(0),
            readonly: false,
            kind: MountKind::Bind,
        });
        for (part, written) in run.mounts.iter().enumerate() {
            self.mount(written, Place { part, ..place }, &mut mounts, span)?;
        }
        let mut text = instruction.text.clone();
        let args = self.command_line(run, &mut mounts, &mut text, span)?;
        let network = self.network(run, span)?;
        let security = self.security(run, span)?;
        self.lowering.charge(self.process_size(), span)?;
        let env = self.process_env(&mounts);
        let proxies = self.lowering.proxies.iter();
        let unset = proxies.filter(|(name, _)| self.state.env.get(name).is_none());
        let proxy_env = unset.map(|(n, v)| (n.clone(), v.clone())).collect();
        let created_by = format!("RUN {}{} # buildkit", self.shown_arguments(), args.join(" "));
        let options = self.lowering.options;
        let from_args = |name: &str| options.build_args.get(name).cloned().unwrap_or_default();
        let hostname = match options.hostname.as_str() {
            "" => from_args("BUILDKIT_SANDBOX_HOSTNAME"),
            name => name.to_owned(),
        };
        let mut extra_hosts = options.extra_hosts.clone();
        extra_hosts.sort();
        let mut ulimits = options.ulimits.clone();
        ulimits.sort();
        let op = ExecOp {
            args,
            env,
            cwd: clean(self.state.cwd()),
            user: self.state.config.config.user.clone(),
            mounts: mounts.mounts,
            network,
            security,
            extra_hosts,
            hostname,
            secret_env: mounts.secret_env,
            shm_size: options.shm_size,
            ulimits,
            cgroup_parent: options.cgroup_parent.clone(),
            proxy_env: Unkeyed(proxy_env),
            platform: Some(self.state.platform.clone()),
        };
        let meta = self.meta(&text, span);
        let name = meta.name.clone();
        let files = self.lowering.vertex(Op::Exec(Box::new(op)), mounts.inputs, meta);
        self.set_files(files, name);
        self.commit(created_by, true, span)
    }

    /// Program and arguments. A heredoc alone is the script; other heredocs go to the shell with the line.
    fn command_line(
        &mut self,
        run: &Run,
        mounts: &mut Mounts,
        text: &mut String,
        span: Span,
    ) -> Result<Vec<String>, Diagnostic> {
        let line = match &run.command {
            ShellForm::Exec(args) => return Ok(args.clone()),
            ShellForm::Shell(line) => line,
        };
        let Some(first) = run.heredocs.first() else {
            return self.with_shell(line, span);
        };
        if heredoc_mark(line).is_none() {
            let mut full = line.clone();
            for heredoc in &run.heredocs {
                full.push('\n');
                full.push_str(&String::from_utf8_lossy(&heredoc.data));
                full.push_str(&heredoc.name);
            }
            return self.with_shell(&full, span);
        }
        text.push(' ');
        text.push_str(&names::summary(&first.data));
        match first.data.starts_with(b"#!") {
            true => {
                let path = self.script(first, mounts);
                self.with_shell(&path, span)
            }
            false => self.with_shell(&String::from_utf8_lossy(&first.content()), span),
        }
    }

    /// Mounts a heredoc as an executable file and returns its path.
    fn script(&mut self, heredoc: &Heredoc, mounts: &mut Mounts) -> String {
        let op = Op::File(FileOp {
            base: None,
            actions: vec![FileAction::Mkfile {
                path: clean(&format!("/{}", heredoc.name)),
                mode: 0o755,
                data: heredoc.content(),
                owner: None,
            }],
        });
        let meta = Meta { name: "[internal] preparing inline document".to_owned(), ..Meta::default() };
        let file = self.lowering.vertex(op, Vec::new(), meta);
        let input = mounts.input(file);
        mounts.mounts.push(Mount {
            destination: PIPES.to_owned(),
            input: Some(input),
            selector: "/".to_owned(),
            output: None,
            readonly: true,
            kind: MountKind::Bind,
        });
        format!("{PIPES}{}", clean(&format!("/{}", heredoc.name)))
    }

    /// Descriptions and checks run nothing, so they need no permission.
    fn allowed(&self, entitlement: Entitlement) -> bool {
        let given = self.lowering.options.allow.contains(&entitlement);
        given || self.lowering.purpose != Purpose::Build
    }

    fn network(&self, run: &Run, span: Span) -> Result<NetworkMode, Diagnostic> {
        match run.network.as_deref() {
            Some("none") => Ok(NetworkMode::None),
            Some("host") if !self.allowed(Entitlement::NetworkHost) => {
                let message = "RUN --network=host needs the entitlement network.host, which is not allowed (--allow network.host)";
                Err(Diagnostic::error(message, span))
            }
            Some("host") => Ok(NetworkMode::Host),
            _ => Ok(self.lowering.options.network),
        }
    }

    fn security(&self, run: &Run, span: Span) -> Result<SecurityMode, Diagnostic> {
        match run.security.as_deref() {
            Some("insecure") if !self.allowed(Entitlement::SecurityInsecure) => {
                let message = "RUN --security=insecure needs the entitlement security.insecure, which is not allowed (--allow security.insecure)";
                Err(Diagnostic::error(message, span))
            }
            Some("insecure") => Ok(SecurityMode::Insecure),
            _ => Ok(SecurityMode::Sandbox),
        }
    }

    /// What a process takes of the stage: its variables twice, since the history shows arguments with their values.
    fn process_size(&self) -> usize {
        const ENTRY: usize = 64;
        let (env, config) = (&self.state.env, &self.state.config.config);
        2 * env.bytes() + ENTRY * (env.len() + self.state.arguments.len()) + self.state.cwd().len() + config.user.len()
    }

    fn process_env(&self, mounts: &Mounts) -> Vec<String> {
        let mut env: Vec<String> = self.state.env.iter().map(|(n, v)| format!("{n}={v}")).collect();
        if let Some(agent) = &mounts.agent
            && self.state.env.get("SSH_AUTH_SOCK").is_none()
        {
            env.push(format!("SSH_AUTH_SOCK={agent}"));
        }
        env
    }

    /// `|2 A=1 B=2 ` for the ARGs in scope, with the values that the process sees.
    fn shown_arguments(&self) -> String {
        let mut shown = Environment::default();
        for (name, value) in &self.state.arguments {
            let value = self.state.env.get(name).or(value.as_deref());
            shown.set(name, value.unwrap_or(""));
        }
        if self.state.arguments.is_empty() {
            return String::new();
        }
        let pairs: Vec<String> = shown.iter().map(|(n, v)| format!("{n}={v}")).collect();
        format!("|{} {} ", pairs.len(), pairs.join(" "))
    }

    fn mount(&mut self, written: &str, place: Place, mounts: &mut Mounts, span: Span) -> Result<(), Diagnostic> {
        let expander = Expander::new(self.lowering.parsed.directives.escape);
        self.lowering.charge(self.state.cwd().len(), span)?;
        let (env, budget) = (&self.state.env, &mut self.lowering.budget);
        let mut expand = |text: &str| expander.expand(text, env, budget).map(|e| e.text);
        let read = mount::read(written, &mut expand);
        let read = read.map_err(|why| Diagnostic::error(why, span))?;
        match read.kind {
            Type::Secret => self.secret(read, mounts, span),
            Type::Ssh => self.agent(read, mounts, span),
            Type::Bind | Type::Cache | Type::Tmpfs => self.directory(read, place, mounts, span),
        }
    }

    fn target(&self, written: &str) -> String {
        match written.starts_with('/') {
            true => clean(written),
            false => clean(&format!("/{}/{written}", self.state.cwd())),
        }
    }

    fn directory(
        &mut self,
        read: mount::Mount,
        place: Place,
        mounts: &mut Mounts,
        span: Span,
    ) -> Result<(), Diagnostic> {
        let written = read.target.clone().unwrap_or_default();
        let destination = self.target(&written);
        if destination == "/" {
            return Err(Diagnostic::error(format!("invalid mount target `{written}`"), span));
        }
        let from = match (self.source_state(place), read.kind) {
            (_, Type::Tmpfs) => None,
            (Some(state), _) => state.files,
            (None, Type::Cache) => None,
            (None, _) => Some(self.lowering.context().map_err(|why| Diagnostic::error(why, span))?),
        };
        let input = from.map(|edge| mounts.input(edge));
        let source = read.source.as_deref().unwrap_or("");
        let kind = match read.kind {
            Type::Tmpfs => MountKind::Tmpfs { size: read.size },
            Type::Cache => self.cache(&read, &written),
            _ => MountKind::Bind,
        };
        mounts.mounts.push(Mount {
            destination,
            input,
            selector: clean(&format!("/{source}")),
            output: None,
            readonly: read.readonly,
            kind,
        });
        Ok(())
    }

    fn cache(&self, read: &mount::Mount, target: &str) -> MountKind {
        let options = self.lowering.options;
        let given = options.build_args.get("BUILDKIT_CACHE_MOUNT_NS").map_or("", String::as_str);
        let namespace = match options.cache_mount_ns.as_str() {
            "" => given,
            namespace => namespace,
        };
        let usual = clean(target);
        let id = read.id.clone().unwrap_or_else(|| usual.clone());
        MountKind::Cache {
            named: id != usual,
            id: Unkeyed(match namespace {
                "" => id,
                namespace => format!("{namespace}/{id}"),
            }),
            sharing: Unkeyed(match read.sharing.as_deref() {
                Some("private") => CacheSharing::Private,
                Some("locked") => CacheSharing::Locked,
                _ => CacheSharing::Shared,
            }),
            mode: read.mode.unwrap_or(0o755),
            uid: read.uid.unwrap_or(0),
            gid: read.gid.unwrap_or(0),
        }
    }

    fn secret(&mut self, read: mount::Mount, mounts: &mut Mounts, span: Span) -> Result<(), Diagnostic> {
        let last = |path: &str| path.trim_end_matches('/').rsplit('/').next().unwrap_or("").to_owned();
        let named = read.id.or(read.source);
        let id = match (named, &read.target, &read.env) {
            (Some(id), _, _) => id,
            (None, Some(target), _) => last(target),
            (None, None, Some(env)) => env.clone(),
            (None, None, None) => String::new(),
        };
        if id.is_empty() {
            return Err(Diagnostic::error("a secret mount needs an id", span));
        }
        let optional = !read.required;
        let note = NoteKind::Secret { id: id.clone(), required: read.required };
        self.notes.push(Note { kind: note, span });
        if let Some(name) = &read.env {
            mounts.secret_env.push(SecretEnv { id: id.clone(), name: name.clone(), optional });
            if read.target.is_none() {
                return Ok(());
            }
        }
        let target = read.target.unwrap_or_else(|| format!("/run/secrets/{}", last(&id)));
        mounts.mounts.push(Mount {
            destination: self.target(&target),
            input: None,
            selector: "/".to_owned(),
            output: None,
            readonly: true,
            kind: MountKind::Secret {
                id,
                mode: read.mode.unwrap_or(0o400),
                uid: read.uid.unwrap_or(0),
                gid: read.gid.unwrap_or(0),
                optional,
            },
        });
        Ok(())
    }

    fn agent(&mut self, read: mount::Mount, mounts: &mut Mounts, span: Span) -> Result<(), Diagnostic> {
        let id = read.id.or(read.source).unwrap_or_else(|| "default".to_owned());
        let note = NoteKind::Ssh { id: id.clone(), required: read.required };
        self.notes.push(Note { kind: note, span });
        let number = mounts.agents;
        mounts.agents += 1;
        let target = read.target.unwrap_or_else(|| format!("/run/buildkit/ssh_agent.{number}"));
        let destination = self.target(&target);
        mounts.agent.get_or_insert_with(|| destination.clone());
        mounts.mounts.push(Mount {
            destination,
            input: None,
            selector: "/".to_owned(),
            output: None,
            readonly: true,
            kind: MountKind::Ssh {
                id,
                mode: read.mode.unwrap_or(0o600),
                uid: read.uid.unwrap_or(0),
                gid: read.gid.unwrap_or(0),
                optional: !read.required,
            },
        });
        Ok(())
    }
}
