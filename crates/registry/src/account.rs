//! Logging in and out: asking a registry whether a password is right, and keeping it in docker's `config.json`.

use crate::auth::{ask_helper_to, normal_host};
use crate::client::{Call, bounded, protocol};
use crate::{Client, CredentialError, Credentials, RegistryError};
use reqwest::header::{HeaderMap, LINK};
use reqwest::{Method, Url};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use xbuild_oci::Reference;

/// Largest list of tags or repositories, in bytes for each page.
const LIST_MAX: usize = 8 << 20;
/// Most pages that are asked for.
const PAGES: usize = 1000;

/// A repository that a search has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hit {
    /// Its name.
    pub name: String,
    /// What it says of itself.
    pub description: String,
    /// How many people like it.
    pub stars: u64,
    /// One of docker's own.
    pub official: bool,
}

impl Client {
    /// Asks a registry whether it takes this user and password.
    pub async fn log_in(&self, host: &str, user: &str, password: &str) -> Result<(), RegistryError> {
        let client = self.with_credentials(Credentials::of(host, user, password));
        let call = client.plain_call(host, "", "login")?;
        client.send(&call).await.map(drop)
    }

    /// All tags of a repository.
    pub async fn tags(&self, reference: &Reference) -> Result<Vec<String>, RegistryError> {
        #[derive(Deserialize)]
        struct Tags {
            tags: Option<Vec<String>>,
        }
        let scope = format!("repository:{}:pull", reference.repository);
        let what = format!("tags of {}", reference.name());
        let mut url = Some(self.url(reference, "tags/list")?);
        let mut all = Vec::new();
        for _ in 0..PAGES {
            let Some(page) = url.take() else {
                break;
            };
            let call = Call {
                method: Method::GET,
                url: page,
                headers: HeaderMap::new(),
                body: None,
                what: what.clone(),
                host: &reference.host,
                scope: scope.clone(),
            };
            let response = self.send(&call).await?;
            url = next_page(&call.url, response.headers());
            let bytes = bounded(&call, response, LIST_MAX).await?;
            let tags: Tags = serde_json::from_slice(&bytes).map_err(|_| protocol(&call, "sent no list of tags"))?;
            all.extend(tags.tags.unwrap_or_default());
        }
        Ok(all)
    }

    /// Repositories of a registry whose names contain `term`: by docker's search where there is one, from the catalogue
    /// elsewhere.
    pub async fn search(&self, host: &str, term: &str, limit: usize) -> Result<Vec<Hit>, RegistryError> {
        if host == "docker.io" {
            return self.search_hub(term, limit).await;
        }
        #[derive(Deserialize)]
        struct Catalogue {
            repositories: Vec<String>,
        }
        let call = self.plain_call(host, "_catalog?n=10000", "search")?;
        let response = self.send(&call).await?;
        let bytes = bounded(&call, response, LIST_MAX).await?;
        let all: Catalogue = serde_json::from_slice(&bytes).map_err(|_| protocol(&call, "sent no catalogue"))?;
        let found = all.repositories.into_iter().filter(|name| name.contains(term)).take(limit);
        Ok(found.map(|name| Hit { name: format!("{host}/{name}"), ..Hit::default() }).collect())
    }

    async fn search_hub(&self, term: &str, limit: usize) -> Result<Vec<Hit>, RegistryError> {
        #[derive(Deserialize)]
        struct Answer {
            results: Vec<Found>,
        }
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Found {
            name: String,
            description: String,
            star_count: u64,
            is_official: bool,
        }
        let wrong =
            |why: String| RegistryError::Protocol { what: "search".to_owned(), host: "docker.io".to_owned(), why };
        let limit = limit.to_string();
        let url = Url::parse_with_params("https://index.docker.io/v1/search", [("q", term), ("n", limit.as_str())]);
        let call = Call {
            method: Method::GET,
            url: url.map_err(|error| wrong(format!("cannot be asked: {error}")))?,
            headers: HeaderMap::new(),
            body: None,
            what: "search".to_owned(),
            host: "docker.io",
            scope: String::new(),
        };
        let response = self.send(&call).await?;
        let bytes = bounded(&call, response, LIST_MAX).await?;
        let answer: Answer = serde_json::from_slice(&bytes).map_err(|_| protocol(&call, "sent no list"))?;
        let hit = |found: Found| Hit {
            name: found.name,
            description: found.description,
            stars: found.star_count,
            official: found.is_official,
        };
        Ok(answer.results.into_iter().map(hit).collect())
    }

    fn plain_call<'a>(&self, host: &'a str, rest: &str, what: &str) -> Result<Call<'a>, RegistryError> {
        let reference = Reference { host: host.to_owned(), repository: "x".to_owned(), tag: None, digest: None };
        let url = self.url(&reference, "")?;
        let url = url.join(&format!("/v2/{rest}")).map_err(|error| RegistryError::Protocol {
            what: what.to_owned(),
            host: host.to_owned(),
            why: format!("is no host name: {error}"),
        })?;
        let scope = if rest.is_empty() { String::new() } else { "registry:catalog:*".to_owned() };
        Ok(Call { method: Method::GET, url, headers: HeaderMap::new(), body: None, what: what.to_owned(), host, scope })
    }
}

/// The address of the next page, on the same host.
fn next_page(url: &Url, headers: &HeaderMap) -> Option<Url> {
    let link = headers.get(LINK)?.to_str().ok()?;
    let (target, _) = link.strip_prefix('<')?.split_once('>')?;
    url.join(target).ok().filter(|next| next.host_str() == url.host_str())
}

/// Keeps a login in `config.json` of `directory`, or with the helper that it names; replaces an earlier one.
pub fn store(directory: &Path, host: &str, user: &str, password: &str) -> Result<(), CredentialError> {
    change(directory, |config| {
        if let Some(helper) = helper_of(config, host) {
            let login = json!({"ServerURL": host, "Username": user, "Secret": password});
            return ask_helper_to(&helper, "store", login.to_string().as_bytes());
        }
        let auth = encode_base64(format!("{user}:{password}").as_bytes());
        auths(config).insert(host.to_owned(), json!({"auth": auth}));
        Ok(())
    })
}

/// Forgets a login; whether there was one.
pub fn erase(directory: &Path, host: &str) -> Result<bool, CredentialError> {
    let mut known = false;
    change(directory, |config| {
        if let Some(helper) = helper_of(config, host) {
            known = true;
            return ask_helper_to(&helper, "erase", host.as_bytes());
        }
        let auths = auths(config);
        let names: Vec<String> = auths.keys().filter(|own| normal_host(own) == normal_host(host)).cloned().collect();
        known = !names.is_empty();
        names.iter().for_each(|name| drop(auths.remove(name)));
        Ok(())
    })?;
    Ok(known)
}

fn auths(config: &mut Map<String, Value>) -> &mut Map<String, Value> {
    let entry = config.entry("auths").or_insert_with(|| json!({}));
    if !entry.is_object() {
        *entry = json!({});
    }
    match entry {
        Value::Object(map) => map,
        _ => unreachable!("it was made an object just now"),
    }
}

fn helper_of(config: &Map<String, Value>, host: &str) -> Option<String> {
    let own = config.get("credHelpers").and_then(|helpers| helpers.get(host));
    let name = own.or_else(|| config.get("credsStore"))?.as_str()?;
    Some(name.to_owned()).filter(|name| !name.is_empty())
}

/// Changes `config.json`, which nobody else may read; what is not ours stays in it.
fn change(
    directory: &Path,
    edit: impl FnOnce(&mut Map<String, Value>) -> Result<(), CredentialError>,
) -> Result<(), CredentialError> {
    let path = directory.join("config.json");
    let fail = |why: String| CredentialError::Config { path: path.display().to_string(), why };
    let mut config = match fs::read(&path) {
        Ok(bytes) if bytes.iter().all(u8::is_ascii_whitespace) => Map::new(),
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| fail(error.to_string()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Map::new(),
        Err(error) => return Err(fail(error.to_string())),
    };
    edit(&mut config)?;
    let text = serde_json::to_vec_pretty(&config).map_err(|error| fail(error.to_string()))?;
    let written = (|| {
        fs::create_dir_all(directory)?;
        let part = directory.join(format!("config.json.part-{}", std::process::id()));
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&part, &path)
    })();
    written.map_err(|error: std::io::Error| fail(error.to_string()))
}

fn encode_base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn base64_has_its_padding() {
        for (plain, want) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("kit:opensesame", "a2l0Om9wZW5zZXNhbWU=")]
        {
            assert_eq!(encode_base64(plain.as_bytes()), want);
        }
    }

    #[test]
    fn logins_are_kept_beside_other_settings_for_the_user_alone() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("config.json"), r#"{"proxies": {"x": 1}}"#).unwrap();
        store(directory.path(), "h:5000", "me", "first").unwrap();
        store(directory.path(), "h:5000", "me", "second").unwrap();
        let path = directory.path().join("config.json");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("proxies") && !text.contains("second"));
        let login = Credentials::load(directory.path()).unwrap().login("h:5000").unwrap().unwrap();
        assert_eq!((login.user.as_str(), login.password.as_str()), ("me", "second"));
        assert!(erase(directory.path(), "h:5000").unwrap());
        assert!(!erase(directory.path(), "h:5000").unwrap());
        assert!(Credentials::load(directory.path()).unwrap().login("h:5000").unwrap().is_none());
    }
}
