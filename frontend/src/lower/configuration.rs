//! Instructions that change the configuration: CMD, ENTRYPOINT, EXPOSE, HEALTHCHECK, LABEL, …, and WORKDIR.

use super::dispatch::{Once, Work};
use crate::ignore::clean;
use crate::parse::ShellForm;
use crate::rules::{EXPOSE_INVALID_FORMAT, EXPOSE_PROTO_CASING, JSON_ARGS_RECOMMENDED, WORKDIR_RELATIVE_PATH};
use crate::{Diagnostic, Instruction, Kind};
use std::collections::BTreeSet;
use xbuild_graph::{FileAction, FileOp, Op, Owner, Span};
use xbuild_oci::{Empty, Healthcheck};

impl Work<'_, '_> {
    /// One instruction that is neither ADD, ARG, COPY, ENV nor RUN.
    pub(super) fn configure(&mut self, instruction: &Instruction) -> Result<(), Diagnostic> {
        let span = instruction.span;
        match &instruction.kind {
            Kind::Cmd(form) => self.cmd(form, span)?,
            Kind::Entrypoint(form) => self.entrypoint(form, span)?,
            Kind::Expose(ports) => self.expose(ports, span)?,
            Kind::Healthcheck(check) => self.healthcheck(check, span)?,
            Kind::Label(pairs) => self.label(pairs, span)?,
            Kind::Maintainer(author) => {
                self.state.config.author = Some(author.clone());
                self.commit(format!("MAINTAINER {author}"), false, span)?;
            }
            Kind::Onbuild(text) => self.state.config.config.on_build.push(text.clone()),
            Kind::Shell(shell) => {
                self.state.config.config.shell = Some(shell.clone());
                self.commit(format!("SHELL [{}]", shell.join(" ")), false, span)?;
            }
            Kind::StopSignal(signal) => self.stop_signal(signal, span)?,
            Kind::User(user) => {
                let user = self.expand(user, span)?;
                self.commit(format!("USER {user}"), false, span)?;
                self.state.config.config.user = user;
            }
            Kind::Volume(paths) => self.volume(paths, span)?,
            Kind::Workdir(path) => self.workdir(path, instruction)?,
            _ => {}
        }
        Ok(())
    }

    /// Puts the shell before a line.
    ///
    /// # Errors
    /// More command lines than the whole Dockerfile may have.
    pub(super) fn with_shell(&mut self, line: &str, span: Span) -> Result<Vec<String>, Diagnostic> {
        let shell = self.state.config.config.shell.as_deref().unwrap_or_default();
        self.lowering.charge(shell.iter().map(String::len).sum::<usize>() + line.len(), span)?;
        let shell = self.state.config.config.shell.clone();
        let mut args = shell.unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned()]);
        args.push(line.to_owned());
        Ok(args)
    }

    fn command(&mut self, form: &ShellForm, name: &str, span: Span) -> Result<Vec<String>, Diagnostic> {
        let line = match form {
            ShellForm::Exec(args) => return Ok(args.clone()),
            ShellForm::Shell(line) => line,
        };
        if self.state.config.config.shell.is_none() {
            let message =
                format!("JSON arguments recommended for {name} to prevent unintended behavior related to OS signals");
            self.lowering.warnings.push(Diagnostic::warning(&JSON_ARGS_RECOMMENDED, message, span));
        }
        self.with_shell(line, span)
    }

    fn cmd(&mut self, form: &ShellForm, span: Span) -> Result<(), Diagnostic> {
        self.once(Once::Cmd, "CMD", span);
        let args = self.command(form, "CMD", span)?;
        self.commit(format!("CMD {}", quoted_list(&args)), false, span)?;
        self.state.config.config.cmd = Some(args);
        self.state.config.config.args_escaped = true;
        Ok(())
    }

    fn entrypoint(&mut self, form: &ShellForm, span: Span) -> Result<(), Diagnostic> {
        self.once(Once::Entrypoint, "ENTRYPOINT", span);
        let args = self.command(form, "ENTRYPOINT", span)?;
        self.commit(format!("ENTRYPOINT {}", quoted_list(&args)), false, span)?;
        self.state.config.config.entrypoint = Some(args);
        if self.last[Once::Cmd as usize].is_none() {
            self.state.config.config.cmd = None;
        }
        Ok(())
    }

    fn healthcheck(&mut self, check: &Healthcheck, span: Span) -> Result<(), Diagnostic> {
        self.once(Once::Healthcheck, "HEALTHCHECK", span);
        let text = format!(
            "HEALTHCHECK {{Test:[{}] Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
            check.test.join(" "),
            go_duration(check.interval),
            go_duration(check.timeout),
            go_duration(check.start_period),
            go_duration(check.start_interval),
            check.retries,
        );
        self.commit(text, false, span)?;
        self.state.config.config.healthcheck = Some(check.clone());
        Ok(())
    }

    fn label(&mut self, pairs: &[(String, String)], span: Span) -> Result<(), Diagnostic> {
        let mut shown = "LABEL".to_owned();
        for (name, value) in pairs {
            let (name, value) = (self.expand(name, span)?, self.expand(value, span)?);
            shown.push_str(&format!(" {name}={value}"));
            self.state.set_label(name, value).map_err(|why| Diagnostic::error(why, span))?;
        }
        self.commit(shown, false, span)
    }

    fn volume(&mut self, paths: &[String], span: Span) -> Result<(), Diagnostic> {
        let mut shown = Vec::with_capacity(paths.len());
        for path in paths {
            let path = self.expand(path, span)?;
            if path.is_empty() {
                return Err(Diagnostic::error("VOLUME specified can not be an empty string", span));
            }
            self.state.config.config.volumes.insert(path.clone(), Empty {});
            shown.push(path);
        }
        self.commit(format!("VOLUME [{}]", shown.join(" ")), false, span)
    }

    fn stop_signal(&mut self, signal: &str, span: Span) -> Result<(), Diagnostic> {
        let signal = self.expand(signal, span)?;
        if !is_signal(&signal) {
            return Err(Diagnostic::error(format!("invalid signal for STOPSIGNAL: `{signal}`"), span));
        }
        self.commit(format!("STOPSIGNAL {signal}"), false, span)?;
        self.state.config.config.stop_signal = signal;
        Ok(())
    }

    fn expose(&mut self, ports: &[String], span: Span) -> Result<(), Diagnostic> {
        let mut all = BTreeSet::new();
        for written in ports {
            for port in self.expanded(written, span)?.words {
                self.check_port(&port, span);
                let found =
                    port_specs(&port).map_err(|why| Diagnostic::error(format!("EXPOSE {port}: {why}"), span))?;
                const PORT: usize = 32;
                self.lowering.charge(found.len() * PORT, span)?;
                all.extend(found);
            }
        }
        let shown: Vec<&str> = all.iter().map(String::as_str).collect();
        self.commit(format!("EXPOSE [{}]", shown.join(" ")), false, span)?;
        let keys = all.into_iter().map(|p| (p, Empty {}));
        self.state.config.config.exposed_ports.extend(keys);
        Ok(())
    }

    fn check_port(&mut self, port: &str, span: Span) {
        let (address, protocol) = port.split_once('/').unwrap_or((port, ""));
        if protocol != protocol.to_lowercase() {
            let message = format!("Defined protocol '{port}' in EXPOSE instruction should be lowercase");
            self.lowering.warnings.push(Diagnostic::warning(&EXPOSE_PROTO_CASING, message, span));
        }
        if address.contains(':') {
            let message =
                format!("EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'");
            self.lowering.warnings.push(Diagnostic::warning(&EXPOSE_INVALID_FORMAT, message, span));
        }
    }

    fn workdir(&mut self, path: &str, instruction: &Instruction) -> Result<(), Diagnostic> {
        let span = instruction.span;
        let path = self.expand(path, span)?;
        let absolute = path.starts_with('/');
        if !self.state.workdir_set && !absolute {
            let message = format!("Relative workdir \"{path}\" can have unexpected results if the base image changes");
            self.lowering.warnings.push(Diagnostic::warning(&WORKDIR_RELATIVE_PATH, message, span));
        }
        self.state.workdir_set = true;
        let path = match absolute {
            true => path,
            false => clean(&format!("/{}/{path}", self.state.cwd())),
        };
        // Relative paths grow with each other, and each is kept for itself.
        self.lowering.charge(2 * path.len() + self.state.config.config.user.len(), span)?;
        let wanted = clean(&path);
        if wanted != "/" {
            self.make_directory(&wanted, instruction);
        }
        self.state.config.config.working_dir.clone_from(&path);
        self.commit(format!("WORKDIR {path}"), wanted != "/", span)
    }

    fn make_directory(&mut self, path: &str, instruction: &Instruction) {
        let user = self.state.config.config.user.as_str();
        let owner = (!user.is_empty()).then(|| owner(user));
        let meta = self.meta(&instruction.text, instruction.span);
        let name = meta.name.clone();
        let op = Op::File(FileOp {
            base: self.state.files.map(|_| 0),
            actions: vec![FileAction::Mkdir { path: path.to_owned(), mode: 0o755, parents: true, owner }],
        });
        let inputs = self.state.files.into_iter().collect();
        let files = self.lowering.vertex(op, inputs, meta);
        self.set_files(files, name);
    }
}

/// `user[:group]`; a group that is written but empty is root's, as in BuildKit.
pub(super) fn owner(text: &str) -> Owner {
    let (user, group) = match text.split_once(':') {
        Some((user, "")) => (user, Some("0".to_owned())),
        Some((user, group)) => (user, Some(group.to_owned())),
        None => (text, None),
    };
    Owner { user: user.to_owned(), group }
}

/// A list as Go's `%q` shows it.
fn quoted_list(list: &[String]) -> String {
    let quoted: Vec<String> = list.iter().map(|s| quoted(s)).collect();
    format!("[{}]", quoted.join(" "))
}

/// A text as Go's `strconv.Quote` shows it.
fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            c if (c as u32) < 0x20 || c == '\x7f' => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if c.is_control() || (c.is_whitespace() && c != ' ') => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Nanoseconds as Go shows a duration.
fn go_duration(nanoseconds: i64) -> String {
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let n = nanoseconds.unsigned_abs();
    let fraction = |value: u64, unit: u64, name: &str| {
        let digits = format!("{:0width$}", value % unit, width = unit.ilog10() as usize);
        let digits = digits.trim_end_matches('0');
        match unit == 1 || digits.is_empty() {
            true => format!("{}{name}", value / unit),
            false => format!("{}.{digits}{name}", value / unit),
        }
    };
    let text = match n {
        0 => "0s".to_owned(),
        1..1_000 => format!("{n}ns"),
        1_000..1_000_000 => fraction(n, 1_000, "µs"),
        1_000_000..1_000_000_000 => fraction(n, 1_000_000, "ms"),
        _ => {
            const SECOND: u64 = 1_000_000_000;
            let (hours, minutes) = (n / (3600 * SECOND), n / (60 * SECOND) % 60);
            let seconds = fraction(n % (60 * SECOND), SECOND, "s");
            match (hours, minutes) {
                (0, 0) => seconds,
                (0, m) => format!("{m}m{seconds}"),
                (h, m) => format!("{h}h{m}m{seconds}"),
            }
        }
    };
    format!("{sign}{text}")
}

/// The ports that one word of EXPOSE stands for: `[[ip:]host:]port[-port][/protocol]`.
fn port_specs(text: &str) -> Result<Vec<String>, String> {
    let (address, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol.to_lowercase() {
        p if p.is_empty() => "tcp".to_owned(),
        p => p,
    };
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(format!("invalid proto: {protocol}"));
    }
    let mut parts = address.rsplitn(3, ':');
    let container = parts.next().unwrap_or("");
    let host = parts.next().unwrap_or("");
    if container.is_empty() {
        return Err("no port specified".to_owned());
    }
    let range = range(container).ok_or_else(|| format!("invalid containerPort: {container}"))?;
    if !host.is_empty() {
        let outer = self::range(host).ok_or_else(|| format!("invalid hostPort: {host}"))?;
        let (inside, outside) = (range.1 - range.0, outer.1 - outer.0);
        if inside != outside && inside != 0 {
            return Err(format!("invalid ranges specified for container and host Ports: {container} and {host}"));
        }
    }
    Ok((range.0..=range.1).map(|port| format!("{port}/{protocol}")).collect())
}

fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
    if !digits(first) || !digits(last) {
        return None;
    }
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last))
}

fn is_signal(text: &str) -> bool {
    const NAMES: [&str; 37] = [
        "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL",
        "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1",
        "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX", "UNUSED",
    ];
    if let Ok(number) = text.parse::<i32>() {
        return number > 0;
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let near = |edge: &str, most: u32| {
        let rest = name.strip_prefix(edge).and_then(|r| r.strip_prefix(['+', '-']));
        rest.and_then(|n| n.parse::<u32>().ok()).is_some_and(|n| (1..=most).contains(&n))
    };
    NAMES.contains(&name) || near("RTMIN", 15) || near("RTMAX", 14)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_shown_as_in_go() {
        for (n, want) in [
            (0, "0s"),
            (5_000_000_000, "5s"),
            (300_000_000_000, "5m0s"),
            (90_000_000_000, "1m30s"),
            (500_000_000, "500ms"),
            (1_500_000_000, "1.5s"),
            (3_600_000_000_000, "1h0m0s"),
            (1_500, "1.5µs"),
            (7, "7ns"),
        ] {
            assert_eq!(go_duration(n), want);
        }
    }

    #[test]
    fn ports_are_read() {
        assert_eq!(port_specs("80").unwrap(), ["80/tcp"]);
        assert_eq!(
            port_specs("127.0.0.1:8080:80-81/UDP").unwrap_err(),
            "invalid ranges specified for container and host Ports: 80-81 and 8080"
        );
        assert_eq!(port_specs("8080:80/UDP").unwrap(), ["80/udp"]);
        assert_eq!(port_specs("9000-9002").unwrap(), ["9000/tcp", "9001/tcp", "9002/tcp"]);
        for bad in ["70000", "", "x", "80/icmp", "9-8", "-1"] {
            assert!(port_specs(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_empty_group_is_root() {
        for (text, user, group) in
            [("5", "5", None), ("5:", "5", Some("0")), ("www:", "www", Some("0")), ("a:b", "a", Some("b"))]
        {
            let owner = owner(text);
            assert_eq!((owner.user.as_str(), owner.group.as_deref()), (user, group), "{text}");
        }
    }

    #[test]
    fn texts_are_quoted_as_in_go() {
        assert_eq!(quoted_list(&["a\"b".into(), "é\n\x01".into()]), r#"["a\"b" "é\n\x01"]"#);
    }

    #[test]
    fn signals_are_known() {
        assert!(["9", "SIGTERM", "int", "SIGRTMIN+3"].iter().all(|s| is_signal(s)));
        assert!(["0", "", "SIGFOO", "RTMIN+99"].iter().all(|s| !is_signal(s)));
    }
}
