//! Credentials of docker's `config.json`, and bearer tokens.

use serde::Deserialize;
use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Stdio};

/// Credentials that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The file is not JSON of the known form.
    #[error("cannot read credentials from `{path}`: {why}")]
    Config {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// A helper failed.
    #[error("the credential helper `docker-credential-{helper}` failed: {why}")]
    Helper {
        /// Its name.
        helper: String,
        /// What it said.
        why: String,
    },
}

/// User and password for one registry. Has no `Debug` of its content.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) password: String,
    /// A refresh token instead of a password.
    pub(crate) identity_token: Option<String>,
}

/// Where logins come from.
#[derive(Clone, Default)]
pub struct Credentials {
    auths: HashMap<String, Login>,
    helpers: HashMap<String, String>,
    store: Option<String>,
    /// How helpers are started, if not as they are.
    start: Option<fn(&str) -> Command>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("hosts", &self.auths.keys().collect::<Vec<_>>()).finish_non_exhaustive()
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Config {
    auths: HashMap<String, Entry>,
    #[serde(rename = "credHelpers")]
    cred_helpers: HashMap<String, String>,
    #[serde(rename = "credsStore")]
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

#[derive(Deserialize)]
struct HelperAnswer {
    #[serde(rename = "Username")]
    username: String,
    #[serde(rename = "Secret")]
    secret: String,
}

impl Credentials {
    /// Reads `config.json` in `directory`; a missing file has no credentials.
    pub fn load(directory: &Path) -> Result<Self, CredentialError> {
        let path = directory.join("config.json");
        let fail = |why: String| CredentialError::Config { path: path.display().to_string(), why };
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(fail(e.to_string())),
        };
        let config: Config = serde_json::from_slice(&bytes).map_err(|e| fail(e.to_string()))?;
        let mut auths = HashMap::new();
        for (host, entry) in config.auths {
            if let Some(login) = entry.login().map_err(|why| fail(format!("`auths.{host}` {why}")))? {
                auths.insert(normal_host(&host), login);
            }
        }
        let helpers = config.cred_helpers.into_iter().map(|(host, helper)| (normal_host(&host), helper)).collect();
        Ok(Self { auths, helpers, store: config.creds_store.filter(|s| !s.is_empty()), start: None })
    }

    /// Starts helpers by commands that `start` makes of their names.
    #[must_use]
    pub fn with_programs(self, start: fn(&str) -> Command) -> Self {
        Self { start: Some(start), ..self }
    }

    /// One login alone.
    #[must_use]
    pub fn of(host: &str, user: &str, password: &str) -> Self {
        let login = Login { user: user.to_owned(), password: password.to_owned(), identity_token: None };
        Self { auths: HashMap::from([(normal_host(host), login)]), ..Self::default() }
    }

    /// The login for a host, from a helper or the file. Blocks while a helper runs.
    pub(crate) fn login(&self, host: &str) -> Result<Option<Login>, CredentialError> {
        let host = normal_host(host);
        if let Some(helper) = self.helpers.get(&host).or(self.store.as_ref())
            && let Some(login) = ask_helper(self.start.unwrap_or(as_it_is), helper, &host)?
        {
            return Ok(Some(login));
        }
        Ok(self.auths.get(&host).cloned())
    }
}

impl Entry {
    fn login(self) -> Result<Option<Login>, &'static str> {
        let token = (!self.identitytoken.is_empty()).then_some(self.identitytoken);
        if !self.auth.is_empty() {
            let plain = decode_base64(&self.auth).ok_or("has an `auth` that is not base64")?;
            let plain = String::from_utf8(plain).map_err(|_| "has an `auth` that is not text")?;
            let (user, password) = plain.split_once(':').ok_or("has an `auth` without a colon")?;
            let password = password.trim_end_matches('\0').to_owned();
            return Ok(Some(Login { user: user.to_owned(), password, identity_token: token }));
        }
        let some = !self.username.is_empty() || token.is_some();
        Ok(some.then_some(Login { user: self.username, password: self.password, identity_token: token }))
    }
}

/// `https://index.docker.io/v1/` and `docker.io` are one host; schemes and paths do not count.
pub(crate) fn normal_host(host: &str) -> String {
    let host = host.trim_start_matches("https://").trim_start_matches("http://");
    let host = host.split('/').next().unwrap_or(host);
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        host => host.to_owned(),
    }
}

fn as_it_is(program: &str) -> Command {
    Command::new(program)
}

/// Runs a helper's command with an input.
fn run_helper(
    start: fn(&str) -> Command,
    helper: &str,
    command: &str,
    input: &[u8],
) -> Result<std::process::Output, CredentialError> {
    let fail = |why: String| CredentialError::Helper { helper: helper.to_owned(), why };
    if helper.contains('/') {
        return Err(fail("its name has a slash".to_owned()));
    }
    let mut child = start(&format!("docker-credential-{helper}"))
        .arg(command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| fail(e.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read its input says so by its answer.
        let _ = std::io::Write::write_all(&mut stdin, input);
    }
    child.wait_with_output().map_err(|e| fail(e.to_string()))
}

/// Has a helper keep or forget a login.
pub(crate) fn ask_helper_to(helper: &str, command: &str, input: &[u8]) -> Result<(), CredentialError> {
    let output = run_helper(as_it_is, helper, command, input)?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stdout).trim().chars().take(200).collect();
    Err(CredentialError::Helper { helper: helper.to_owned(), why })
}

fn ask_helper(start: fn(&str) -> Command, helper: &str, host: &str) -> Result<Option<Login>, CredentialError> {
    let fail = |why: String| CredentialError::Helper { helper: helper.to_owned(), why };
    let server = if host == "docker.io" { "https://index.docker.io/v1/" } else { host };
    let output = run_helper(start, helper, "get", server.as_bytes())?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stdout);
        if text.contains("credentials not found") {
            return Ok(None);
        }
        let text = if text.trim().is_empty() { output.status.to_string() } else { text.into_owned() };
        return Err(fail(text.trim().chars().take(200).collect()));
    }
    let answer: HelperAnswer = serde_json::from_slice(&output.stdout).map_err(|e| fail(e.to_string()))?;
    Ok(Some(match answer.username.as_str() {
        "<token>" => Login { user: String::new(), password: String::new(), identity_token: Some(answer.secret) },
        _ => Login { user: answer.username, password: answer.secret, identity_token: None },
    }))
}

/// What a `WWW-Authenticate` header asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer { realm: String, service: String, scope: String },
}

impl Challenge {
    /// Reads one header. Unknown schemes give `None`.
    pub(crate) fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let fields = parameters(rest);
        let field = |name: &str| fields.get(name).cloned().unwrap_or_default();
        Some(Self::Bearer { realm: fields.get("realm")?.clone(), service: field("service"), scope: field("scope") })
    }
}

/// `name="value", name=value`.
fn parameters(text: &str) -> HashMap<String, String> {
    let mut fields = HashMap::new();
    let mut rest = text;
    while let Some((name, after)) = rest.split_once('=') {
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        fields.insert(name.trim().trim_start_matches(',').trim().to_lowercase(), value.to_owned());
        rest = next.trim_start_matches(',');
    }
    fields
}

/// Standard base64, padding optional.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let (mut out, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for byte in text.trim().trim_end_matches('=').bytes() {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(digit);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let header =
            r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push""#;
        let want = Challenge::Bearer {
            realm: "https://auth.example/token".into(),
            service: "registry.example".into(),
            scope: "repository:a/b:pull,push".into(),
        };
        assert_eq!(Challenge::parse(header), Some(want));
        assert_eq!(Challenge::parse("Basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(Challenge::parse("Digest x"), None);
    }

    #[test]
    fn logins_come_from_the_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("config.json"),
            r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpwOnc="},"localhost:5000":{"username":"a","password":"b"}}}"#,
        )
        .unwrap();
        let credentials = Credentials::load(dir.path()).unwrap();
        let login = credentials.login("docker.io").unwrap().unwrap();
        assert_eq!((login.user.as_str(), login.password.as_str()), ("u", "p:w"));
        assert!(credentials.login("localhost:5000").unwrap().is_some_and(|l| l.user == "a"));
        assert!(credentials.login("other").unwrap().is_none());
        std::fs::write(dir.path().join("config.json"), "{").unwrap();
        assert!(Credentials::load(dir.path()).is_err());
    }
}
