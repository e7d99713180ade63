//! One logical line → one instruction.

use super::flags::Flags;
use super::lexical::{self, duration, heredoc_mark, words};
use super::lines::Logical;
use super::{Copy, From, Heredoc, Kind, Run, ShellForm, mount};
use crate::Diagnostic;
use crate::rules::{LEGACY_KEY_VALUE_FORMAT, MAINTAINER_DEPRECATED};
use xbuild_graph::Span;
use xbuild_oci::Healthcheck;

/// A FROM, or anything else.
pub(super) enum Built {
    From(From),
    Kind(Kind),
}

const INSTRUCTIONS: &[&str] = &[
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// What an instruction is made from.
struct Request<'a> {
    name: &'a str,
    flags: Flags,
    rest: &'a str,
    span: Span,
    escape: char,
    heredocs: &'a [Heredoc],
}

impl Request<'_> {
    fn fail<T>(&self, message: impl Into<String>) -> Result<T, Diagnostic> {
        Err(Diagnostic::error(message, self.span))
    }

    /// The whole rest, which must be there.
    fn one(&self) -> Result<String, Diagnostic> {
        match self.rest {
            "" => self.fail(format!("{} requires exactly one argument", self.name)),
            rest => Ok(rest.to_owned()),
        }
    }

    /// A JSON array of strings, if the rest begins with one; what comes after it does not count. Valid JSON of another
    /// kind is an error.
    fn json(&self) -> Result<Option<Vec<String>>, Diagnostic> {
        if !self.rest.starts_with('[') {
            return Ok(None);
        }
        let mut all = serde_json::Deserializer::from_str(self.rest).into_iter::<Vec<serde_json::Value>>();
        let Some(Ok(values)) = all.next() else {
            return Ok(None);
        };
        let strings = values.into_iter().map(|v| match v {
            serde_json::Value::String(s) => Some(s),
            _ => None,
        });
        match strings.collect() {
            Some(strings) => Ok(Some(strings)),
            None => self
                .fail(format!("{}: when using JSON array syntax, arrays must be comprised of strings only", self.name)),
        }
    }

    fn shell_form(&self) -> Result<ShellForm, Diagnostic> {
        let exec = self.json()?.map(ShellForm::Exec);
        Ok(exec.unwrap_or_else(|| ShellForm::Shell(self.rest.to_owned())))
    }

    /// A JSON array, or words separated by blanks.
    fn list(&self) -> Result<Vec<String>, Diagnostic> {
        let split = || self.rest.split_whitespace().map(str::to_owned).collect();
        Ok(self.json()?.unwrap_or_else(split))
    }
}

/// Reads `logical`; returns its keyword as written.
pub(super) fn build<'a>(
    logical: &'a Logical,
    escape: char,
    warnings: &mut Vec<Diagnostic>,
) -> Result<(&'a str, Built), Diagnostic> {
    let (keyword, after) = lexical::keyword(&logical.text);
    let name = keyword.to_ascii_uppercase();
    if !INSTRUCTIONS.contains(&name.as_str()) {
        let shown: String = keyword.chars().take(80).collect();
        let problem = Diagnostic::error(format!("unknown instruction: {shown}"), logical.span);
        return Err(problem.suggest(&name, INSTRUCTIONS.iter().copied()));
    }
    let (written, rest) = match name.as_str() {
        "ONBUILD" => (Vec::new(), after),
        _ => lexical::flags(after),
    };
    let request = Request {
        flags: Flags::read(&name, &written, logical.span)?,
        name: &name,
        rest,
        span: logical.span,
        escape,
        heredocs: &logical.heredocs,
    };
    if name == "FROM" {
        return Ok((keyword, Built::From(from(&request)?)));
    }
    Ok((keyword, Built::Kind(kind(&request, warnings)?)))
}

fn kind(request: &Request<'_>, warnings: &mut Vec<Diagnostic>) -> Result<Kind, Diagnostic> {
    Ok(match request.name {
        "ADD" => Kind::Add(copy(request)?),
        "COPY" => Kind::Copy(copy(request)?),
        "ARG" => Kind::Arg(arguments(request)?),
        "CMD" => Kind::Cmd(request.shell_form()?),
        "ENTRYPOINT" => Kind::Entrypoint(request.shell_form()?),
        "ENV" => Kind::Env(pairs(request, warnings)?),
        "LABEL" => Kind::Label(pairs(request, warnings)?),
        "EXPOSE" => Kind::Expose(at_least_one(request, request.rest.split_whitespace().map(str::to_owned).collect())?),
        "HEALTHCHECK" => Kind::Healthcheck(healthcheck(request)?),
        "MAINTAINER" => {
            let message = "Maintainer instruction is deprecated in favor of using label";
            warnings.push(Diagnostic::warning(&MAINTAINER_DEPRECATED, message, request.span));
            Kind::Maintainer(request.one()?)
        }
        "ONBUILD" => Kind::Onbuild(onbuild(request)?),
        "RUN" => Kind::Run(run(request)?),
        "SHELL" => Kind::Shell(shell(request)?),
        "STOPSIGNAL" => Kind::StopSignal(request.one()?),
        "USER" => Kind::User(request.one()?),
        "VOLUME" => Kind::Volume(volumes(request)?),
        "WORKDIR" => Kind::Workdir(request.one()?),
        other => return request.fail(format!("unknown instruction: {other}")),
    })
}

fn at_least_one(request: &Request<'_>, list: Vec<String>) -> Result<Vec<String>, Diagnostic> {
    if list.is_empty() {
        return request.fail(format!("{} requires at least one argument", request.name));
    }
    Ok(list)
}

fn from(request: &Request<'_>) -> Result<From, Diagnostic> {
    let parts: Vec<&str> = request.rest.split_whitespace().collect();
    let (image, naming) = match parts.as_slice() {
        [image] => (*image, None),
        [image, joint, name] if joint.eq_ignore_ascii_case("as") => (*image, Some((*joint, *name))),
        _ => return request.fail("FROM requires either one or three arguments"),
    };
    if let Some((_, name)) = naming {
        let lower = name.to_lowercase();
        let valid = lower.starts_with(|c: char| c.is_ascii_lowercase())
            && lower.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b));
        if !valid {
            return request.fail(format!(
                "invalid name for build stage: `{name}`, name can't start with a number or contain symbols"
            ));
        }
    }
    Ok(From {
        image: image.to_owned(),
        name: naming.map(|(_, name)| name.to_lowercase()),
        written_name: naming.map(|(_, name)| name.to_owned()),
        platform: request.flags.text("platform"),
        as_keyword: naming.map(|(joint, _)| joint.to_owned()),
    })
}

fn arguments(request: &Request<'_>) -> Result<Vec<(String, Option<String>)>, Diagnostic> {
    let words = words(request.rest, request.escape);
    if words.is_empty() {
        return request.fail("ARG requires at least one argument");
    }
    let split = |word: &str| match word.split_once('=') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (word.to_owned(), None),
    };
    let arguments: Vec<_> = words.into_iter().map(split).collect();
    if arguments.iter().any(|(name, _)| name.is_empty()) {
        return request.fail("ARG names can not be blank");
    }
    Ok(arguments)
}

/// `a=b c=d`, or the old form with one name and the rest of the line as its value.
fn pairs(request: &Request<'_>, warnings: &mut Vec<Diagnostic>) -> Result<Vec<(String, String)>, Diagnostic> {
    let name = request.name;
    let words = words(request.rest, request.escape);
    let Some(first) = words.first() else {
        return request.fail(format!("{name} requires at least one argument"));
    };
    let pairs = if first.contains('=') {
        let mut pairs = Vec::with_capacity(words.len());
        for word in words {
            let Some((key, value)) = word.split_once('=') else {
                return request
                    .fail(format!("{name}: syntax error - can't find = in `{word}`. Must be of the form: name=value"));
            };
            pairs.push((key.to_owned(), value.to_owned()));
        }
        pairs
    } else {
        let Some((key, value)) = request.rest.split_once(char::is_whitespace) else {
            return request.fail(format!("{name} must have two arguments: `{}` has no value", request.rest));
        };
        let message = format!("\"{name} key=value\" should be used instead of legacy \"{name} key value\" format");
        warnings.push(Diagnostic::warning(&LEGACY_KEY_VALUE_FORMAT, message, request.span));
        vec![(key.to_owned(), value.trim_start().to_owned())]
    };
    if pairs.iter().any(|(key, _)| key.is_empty()) {
        return request.fail(format!("{name} names can not be blank"));
    }
    Ok(pairs)
}

fn copy(request: &Request<'_>) -> Result<Copy, Diagnostic> {
    let mut list = request.list()?;
    let Some(destination) = list.pop().filter(|_| !list.is_empty()) else {
        return request.fail(format!(
            "{} requires at least two arguments, but only one was provided: the destination could not be determined",
            request.name
        ));
    };
    if heredoc_mark(&destination).is_some() && !request.heredocs.is_empty() {
        return request.fail(format!("{} cannot accept a heredoc as a destination", request.name));
    }
    let mut inline = Vec::new();
    list.retain(|source| {
        let mark = heredoc_mark(source);
        let found = mark.and_then(|m| request.heredocs.iter().rev().find(|h| h.name == m.name));
        inline.extend(found.cloned());
        found.is_none()
    });
    let flags = &request.flags;
    if let Some(from) = flags.text("from").filter(|f| f.contains('$')) {
        return request.fail(format!(
            "{} --from={from}: 'from' doesn't support variable expansion, define alias stage instead",
            request.name
        ));
    }
    Ok(Copy {
        from: flags.text("from").filter(|f| !f.is_empty()),
        chown: flags.text("chown").filter(|f| !f.is_empty()),
        chmod: flags.text("chmod").filter(|f| !f.is_empty()),
        checksum: flags.text("checksum"),
        exclude: flags.all("exclude"),
        link: flags.switch("link").unwrap_or(false),
        parents: flags.switch("parents").unwrap_or(false),
        keep_git_dir: flags.switch("keep-git-dir").unwrap_or(false),
        unpack: flags.switch("unpack"),
        sources: list,
        inline,
        destination,
    })
}

fn run(request: &Request<'_>) -> Result<Run, Diagnostic> {
    let command = request.shell_form()?;
    if matches!(&command, ShellForm::Exec(args) if args.is_empty()) {
        return request.fail("RUN requires at least one argument");
    }
    let mounts = request.flags.all("mount");
    for written in &mounts {
        mount::check(written).map_err(|message| Diagnostic::error(message, request.span))?;
    }
    let network = request.flags.text("network");
    if let Some(mode) = network.as_deref().filter(|m| !matches!(*m, "default" | "none" | "host")) {
        let problem = Diagnostic::error(format!("invalid network mode `{mode}` of RUN"), request.span);
        return Err(problem.suggest(mode, ["default", "none", "host"]));
    }
    let security = request.flags.text("security");
    if let Some(mode) = security.as_deref().filter(|m| !matches!(*m, "sandbox" | "insecure")) {
        let problem = Diagnostic::error(format!("security mode `{mode}` of RUN is not valid"), request.span);
        return Err(problem.suggest(mode, ["sandbox", "insecure"]));
    }
    Ok(Run { command, mounts, network, security, heredocs: request.heredocs.to_vec() })
}

fn shell(request: &Request<'_>) -> Result<Vec<String>, Diagnostic> {
    match request.json()? {
        Some(list) => at_least_one(request, list),
        None if request.rest.is_empty() => at_least_one(request, Vec::new()),
        None => request.fail("SHELL requires the arguments to be in JSON form"),
    }
}

fn volumes(request: &Request<'_>) -> Result<Vec<String>, Diagnostic> {
    let list = at_least_one(request, request.list()?)?;
    if list.iter().any(|v| v.trim().is_empty()) {
        return request.fail("VOLUME specified can not be an empty string");
    }
    Ok(list)
}

fn onbuild(request: &Request<'_>) -> Result<String, Diagnostic> {
    let (inner, _) = lexical::keyword(request.rest);
    match inner.to_ascii_uppercase().as_str() {
        "" => return request.fail("ONBUILD requires at least one argument"),
        "ONBUILD" => return request.fail("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
        name @ ("FROM" | "MAINTAINER") => {
            return request.fail(format!("{name} isn't allowed as an ONBUILD trigger"));
        }
        _ => {}
    }
    let mut text = request.rest.to_owned();
    for heredoc in request.heredocs {
        text.push('\n');
        text.push_str(&String::from_utf8_lossy(&heredoc.data));
        text.push_str(&heredoc.name);
    }
    Ok(text)
}

fn healthcheck(request: &Request<'_>) -> Result<Healthcheck, Diagnostic> {
    let (kind, rest) = lexical::keyword(request.rest);
    let plain = |test| Healthcheck { test, ..Healthcheck::default() };
    match kind.to_ascii_uppercase().as_str() {
        "" => request.fail("HEALTHCHECK requires at least one argument"),
        "NONE" if rest.is_empty() => Ok(plain(vec!["NONE".to_owned()])),
        "NONE" => request.fail("HEALTHCHECK NONE takes no arguments"),
        "CMD" => {
            let inner = Request { name: "HEALTHCHECK", flags: Flags::default(), rest, heredocs: &[], ..*request };
            let test = match inner.shell_form()? {
                ShellForm::Exec(args) if args.is_empty() => Vec::new(),
                ShellForm::Shell(line) if line.is_empty() => Vec::new(),
                ShellForm::Exec(args) => std::iter::once("CMD".to_owned()).chain(args).collect(),
                ShellForm::Shell(line) => vec!["CMD-SHELL".to_owned(), line],
            };
            if test.is_empty() {
                return request.fail("Missing command after HEALTHCHECK CMD");
            }
            timings(request, plain(test))
        }
        _ => request.fail(format!("Unknown type \"{kind}\" in HEALTHCHECK (try CMD)")),
    }
}

fn timings(request: &Request<'_>, mut check: Healthcheck) -> Result<Healthcheck, Diagnostic> {
    let time = |flag: &str| -> Result<i64, Diagnostic> {
        const SHORTEST: i64 = 1_000_000;
        let Some(text) = request.flags.text(flag).filter(|t| !t.is_empty()) else {
            return Ok(0);
        };
        match duration(&text) {
            None => request.fail(format!("HEALTHCHECK --{flag}: invalid duration `{text}`")),
            Some(0) => Ok(0),
            Some(n) if n < SHORTEST => request.fail(format!("HEALTHCHECK --{flag}: `{text}` is less than 1ms")),
            Some(n) => Ok(n),
        }
    };
    check.interval = time("interval")?;
    check.timeout = time("timeout")?;
    check.start_period = time("start-period")?;
    check.start_interval = time("start-interval")?;
    if let Some(text) = request.flags.text("retries").filter(|t| !t.is_empty()) {
        check.retries = match text.parse::<i32>() {
            Ok(n) if n >= 0 => i64::from(n),
            _ => {
                return request.fail(format!("HEALTHCHECK --retries: `{text}` is not a number of 0 or more"));
            }
        };
    }
    Ok(check)
}
