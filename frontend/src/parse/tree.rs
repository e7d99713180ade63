//! The syntax tree.

use crate::{CheckOptions, Diagnostic};
use xbuild_graph::Span;

/// What [`parse`](crate::parse) found: a tree of everything that could be read, and all problems.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// The instructions.
    pub tree: Tree,
    /// The parser directives.
    pub directives: Directives,
    /// Errors and warnings in the order of the file.
    pub diagnostics: Vec<Diagnostic>,
}

/// Instructions by stage.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// ARG before the first FROM.
    pub global_args: Vec<Instruction>,
    /// The stages.
    pub stages: Vec<Stage>,
}

/// `# name=value` lines at the top.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directives {
    /// `syntax`: the frontend that the file asks for.
    pub syntax: Option<String>,
    /// `escape`.
    pub escape: char,
    /// `check`.
    pub check: CheckOptions,
}

impl Default for Directives {
    fn default() -> Self {
        Self { syntax: None, escape: '\\', check: CheckOptions::default() }
    }
}

/// FROM and what follows it.
#[derive(Clone, Debug)]
pub struct Stage {
    /// The FROM.
    pub from: From,
    /// Keyword as written.
    pub keyword: String,
    /// The FROM's place.
    pub span: Span,
    /// Comments above the FROM.
    pub comments: Vec<String>,
    /// The instructions, in order.
    pub instructions: Vec<Instruction>,
}

/// `FROM [--platform=P] IMAGE [AS NAME]`.
#[derive(Clone, Debug, Default)]
pub struct From {
    /// Stage or image, unexpanded.
    pub image: String,
    /// Name in lower case.
    pub name: Option<String>,
    /// Name as written.
    pub written_name: Option<String>,
    /// `--platform`, unexpanded.
    pub platform: Option<String>,
    /// The AS keyword as written.
    pub as_keyword: Option<String>,
}

/// One instruction of a stage.
#[derive(Clone, Debug)]
pub struct Instruction {
    /// Keyword as written.
    pub keyword: String,
    /// The text, continuations joined.
    pub text: String,
    /// Its place, heredocs included.
    pub span: Span,
    /// Comments above it.
    pub comments: Vec<String>,
    /// What it says.
    pub kind: Kind,
}

/// Instructions, unexpanded.
#[derive(Clone, Debug)]
pub enum Kind {
    /// ADD.
    Add(Copy),
    /// ARG: names with defaults.
    Arg(Vec<(String, Option<String>)>),
    /// CMD.
    Cmd(ShellForm),
    /// COPY.
    Copy(Copy),
    /// ENTRYPOINT.
    Entrypoint(ShellForm),
    /// ENV.
    Env(Vec<(String, String)>),
    /// EXPOSE.
    Expose(Vec<String>),
    /// HEALTHCHECK.
    Healthcheck(xbuild_oci::Healthcheck),
    /// LABEL.
    Label(Vec<(String, String)>),
    /// MAINTAINER.
    Maintainer(String),
    /// ONBUILD: the trigger's text.
    Onbuild(String),
    /// RUN.
    Run(Run),
    /// SHELL.
    Shell(Vec<String>),
    /// STOPSIGNAL.
    StopSignal(String),
    /// USER.
    User(String),
    /// VOLUME.
    Volume(Vec<String>),
    /// WORKDIR.
    Workdir(String),
}

/// A command as JSON array or as a line for the shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShellForm {
    /// `["a", "b"]`.
    Exec(Vec<String>),
    /// A line; empty if there was none.
    Shell(String),
}

/// COPY or ADD.
#[derive(Clone, Debug, Default)]
pub struct Copy {
    /// `--from`.
    pub from: Option<String>,
    /// `--chown`.
    pub chown: Option<String>,
    /// `--chmod`.
    pub chmod: Option<String>,
    /// `--checksum` (ADD).
    pub checksum: Option<String>,
    /// `--exclude`.
    pub exclude: Vec<String>,
    /// `--link`.
    pub link: bool,
    /// `--parents`.
    pub parents: bool,
    /// `--keep-git-dir` (ADD).
    pub keep_git_dir: bool,
    /// `--unpack` (ADD).
    pub unpack: Option<bool>,
    /// Sources without heredocs.
    pub sources: Vec<String>,
    /// Heredoc sources.
    pub inline: Vec<Heredoc>,
    /// The destination.
    pub destination: String,
}

/// RUN.
#[derive(Clone, Debug)]
pub struct Run {
    /// The command.
    pub command: ShellForm,
    /// `--mount` values.
    pub mounts: Vec<String>,
    /// `--network`.
    pub network: Option<String>,
    /// `--security`.
    pub security: Option<String>,
    /// Heredocs of the command line.
    pub heredocs: Vec<Heredoc>,
}

/// `<<NAME` and what is between it and the line `NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    /// The mark, unquoted.
    pub name: String,
    /// Variables are replaced (the mark was not quoted).
    pub expand: bool,
    /// Tabs at the start of lines are dropped (`<<-`).
    pub chomp: bool,
    /// The lines as they are in the file.
    pub data: Vec<u8>,
}

impl Heredoc {
    /// The content, leading tabs dropped if `<<-` asks for it.
    pub fn content(&self) -> Vec<u8> {
        if !self.chomp {
            return self.data.clone();
        }
        let untabbed = |line: &[u8]| {
            let tabs = line.iter().take_while(|b| **b == b'\t').count();
            line[tabs..].to_vec()
        };
        self.data.split_inclusive(|b| *b == b'\n').flat_map(untabbed).collect()
    }
}
