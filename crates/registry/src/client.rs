//! Requests: addresses, authentication, retries, redirects, bounded bodies.

use crate::auth::{Challenge, Login};
use crate::transport::{Scheme, Transports, is_loopback, secure};
use crate::{ATTEMPTS, Certificates, Credentials, REDIRECTS, RegistryError};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use xbuild_oci::Reference;

const ERROR_BODY: usize = 64 << 10;

/// Talks to registries.
#[derive(Clone, Debug)]
pub struct Client {
    transports: Arc<Transports>,
    credentials: Arc<Credentials>,
    /// `Authorization` values by (host, scope).
    tokens: Arc<Mutex<HashMap<(String, String), HeaderValue>>>,
}

/// One request, repeatable.
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Option<Vec<u8>>,
    /// What it is about, for messages.
    pub(crate) what: String,
    /// The registry host that credentials are for.
    pub(crate) host: &'a str,
    /// `repository:NAME:pull[,push]`.
    pub(crate) scope: String,
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

impl Client {
    /// A client that logs in with `credentials`.
    ///
    /// # Errors
    /// The TLS library cannot be set up.
    pub fn new(credentials: Credentials, certificates: Certificates) -> Result<Self, reqwest::Error> {
        let transports = Transports::new(certificates)?;
        Ok(Self { transports, credentials: Arc::new(credentials), tokens: Arc::default() })
    }

    /// The same, logging in otherwise.
    pub(crate) fn with_credentials(&self, credentials: Credentials) -> Self {
        Self { transports: self.transports.clone(), credentials: Arc::new(credentials), tokens: Arc::default() }
    }

    /// `/v2/REPOSITORY/rest` on the reference's registry.
    pub(crate) fn url(&self, reference: &Reference, rest: &str) -> Result<Url, RegistryError> {
        let host = match reference.host.as_str() {
            "docker.io" => "registry-1.docker.io",
            host => host,
        };
        let scheme = self.transports.scheme(host);
        Url::parse(&format!("{scheme}://{host}/v2/{}/{rest}", reference.repository)).map_err(|e| {
            RegistryError::Protocol {
                what: reference.to_string(),
                host: host.to_owned(),
                why: format!("is no host name: {e}"),
            }
        })
    }

    /// Sends a request until it is answered for good; the answer's status is a success.
    pub(crate) async fn send(&self, call: &Call<'_>) -> Result<Response, RegistryError> {
        let mut pause = Duration::from_millis(200);
        for attempt in 1.. {
            let error = match self.send_once(call).await {
                Ok(response) => return Ok(response),
                Err((error, _)) if attempt >= ATTEMPTS || !error.is_temporary() => {
                    return Err(error);
                }
                Err((_, wait)) => wait,
            };
            let wait = error.unwrap_or(pause).min(Duration::from_secs(10));
            tokio::time::sleep(wait).await;
            pause *= 2;
        }
        unreachable!("the loop ends by returning")
    }

    async fn send_once(&self, call: &Call<'_>) -> Result<Response, (RegistryError, Option<Duration>)> {
        let mut response = self.send_raw(call, self.known_token(call)).await.map_err(|e| (e, None))?;
        // Whoever a registry sends us to gets no login of ours, and nobody that it names (CVE-2020-15157).
        let asks_itself = same_origin(response.url(), &self.transports.actual(call.url.clone()));
        if response.status() == StatusCode::UNAUTHORIZED
            && asks_itself
            && let Some(token) = self.authenticate(call, response.headers()).await.map_err(|e| (e, None))?
        {
            response = self.send_raw(call, Some(token)).await.map_err(|e| (e, None))?;
        }
        if response.status().is_success() {
            return Ok(response);
        }
        let wait =
            response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok()).map(Duration::from_secs);
        Err((refusal(call, response).await, wait))
    }

    /// Sends a request once. A host on loopback that makes nothing of the first one may speak https: it is asked that way.
    async fn send_raw(&self, call: &Call<'_>, token: Option<HeaderValue>) -> Result<Response, RegistryError> {
        let known =
            call.url.scheme() == "https" || !is_loopback(call.host) || self.transports.spoken(&call.url).is_some();
        if known {
            return self.send_along(call, call.url.clone(), token).await;
        }
        let first = self.send_along(call, call.url.clone(), None).await;
        let understood = match &first {
            Ok(response) => response.status() != StatusCode::BAD_REQUEST,
            Err(RegistryError::Transport { source, .. }) => source.is_connect() || source.is_timeout(),
            Err(_) => true,
        };
        if !understood && let Ok(response) = self.send_along(call, secure(call.url.clone()), None).await {
            self.transports.remember(&call.url, Scheme::Https);
            return Ok(response);
        }
        if first.is_ok() {
            self.transports.remember(&call.url, Scheme::Http);
        }
        first
    }

    /// Follows redirects from `url`; only its host gets `token`.
    async fn send_along(
        &self,
        call: &Call<'_>,
        origin: Url,
        token: Option<HeaderValue>,
    ) -> Result<Response, RegistryError> {
        let origin = self.transports.actual(origin);
        let mut url = origin.clone();
        for _ in 0..=REDIRECTS {
            let mut request = self.request(call.method.clone(), url.clone())?.headers(call.headers.clone());
            if same_origin(&url, &origin)
                && let Some(token) = &token
            {
                request = request.header(AUTHORIZATION, token.clone());
            }
            if let Some(body) = &call.body {
                request = request.body(body.clone());
            }
            let response = request.send().await.map_err(|source| transport(call, source))?;
            if !response.status().is_redirection() || response.status() == StatusCode::NOT_MODIFIED {
                return Ok(response);
            }
            let next = response.headers().get(LOCATION).and_then(|l| url.join(l.to_str().ok()?).ok());
            let next = next.ok_or_else(|| protocol(call, "redirects to nowhere"))?;
            let downgrade = url.scheme() == "https" && next.scheme() != "https";
            if !matches!(next.scheme(), "http" | "https") || downgrade {
                return Err(protocol(call, "redirects to an address that is not https"));
            }
            url = next;
        }
        Err(protocol(call, "redirects without end"))
    }

    pub(crate) fn request(&self, method: Method, url: Url) -> Result<reqwest::RequestBuilder, RegistryError> {
        self.transports.request(method, url)
    }

    pub(crate) async fn refused(call: &Call<'_>, response: Response) -> RegistryError {
        refusal(call, response).await
    }

    pub(crate) fn known_token(&self, call: &Call<'_>) -> Option<HeaderValue> {
        let key = (call.host.to_owned(), call.scope.clone());
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
    }

    /// Answers a challenge; `None` if there is nothing to answer it with.
    async fn authenticate(&self, call: &Call<'_>, headers: &HeaderMap) -> Result<Option<HeaderValue>, RegistryError> {
        let mut challenges =
            headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|h| Challenge::parse(h.to_str().ok()?));
        let Some(challenge) = challenges.next_back() else {
            return Ok(None);
        };
        let (credentials, host) = (self.credentials.clone(), call.host.to_owned());
        let login = tokio::task::spawn_blocking(move || credentials.login(&host)).await;
        let login = login.map_err(|_| protocol(call, "could not be logged in to"))??;
        let token = match challenge {
            Challenge::Basic => match login {
                Some(login) => basic(&login),
                None => return Ok(None),
            },
            Challenge::Bearer { realm, service, scope } => {
                let scope = if scope.is_empty() { call.scope.clone() } else { scope };
                let token = self.fetch_token(call, &realm, &service, &scope, login.as_ref()).await?;
                HeaderValue::from_str(&format!("Bearer {token}"))
                    .map_err(|_| protocol(call, "gave a token that is no text"))?
            }
        };
        let key = (call.host.to_owned(), call.scope.clone());
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).insert(key, token.clone());
        Ok(Some(token))
    }

    async fn fetch_token(
        &self,
        call: &Call<'_>,
        realm: &str,
        service: &str,
        scope: &str,
        login: Option<&Login>,
    ) -> Result<String, RegistryError> {
        let mut url = Url::parse(realm).map_err(|_| protocol(call, "names a token service that is no address"))?;
        let own = url.host_str() == call.url.host_str();
        if url.scheme() != "https" && !(url.scheme() == "http" && call.url.scheme() == "http" && own) {
            return Err(protocol(call, "names a token service that is not https"));
        }
        // A login is for its host and what https vouches for; to a stranger on http it would not have got this far.
        let request = match login.and_then(|l| l.identity_token.as_ref()) {
            Some(token) => {
                let form =
                    [("grant_type", "refresh_token"), ("service", service), ("scope", scope), ("refresh_token", token)];
                let body = url::form(&form);
                self.request(Method::POST, url)?.header("Content-Type", "application/x-www-form-urlencoded").body(body)
            }
            None => {
                url.query_pairs_mut().append_pair("service", service).append_pair("scope", scope);
                let request = self.request(Method::GET, url)?;
                match login {
                    Some(login) => request.header(AUTHORIZATION, basic(login)),
                    None => request,
                }
            }
        };
        let response = request.send().await.map_err(|source| transport(call, source))?;
        if !response.status().is_success() {
            return Err(refusal(call, response).await);
        }
        let body = bounded(call, response, 1 << 20).await?;
        let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|_| protocol(call, "gave no token"))?;
        match (answer.token, answer.access_token) {
            (token, _) if !token.is_empty() => Ok(token),
            (_, token) if !token.is_empty() => Ok(token),
            _ => Err(protocol(call, "gave no token")),
        }
    }
}

mod url {
    pub(super) fn form(fields: &[(&str, &str)]) -> String {
        let mut url = reqwest::Url::parse("http://form/").expect("a constant address");
        url.query_pairs_mut().extend_pairs(fields);
        url.query().unwrap_or_default().to_owned()
    }
}

/// Reads a body of at most `max` bytes.
pub(crate) async fn bounded(call: &Call<'_>, mut response: Response, max: usize) -> Result<Vec<u8>, RegistryError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|source| transport(call, source))? {
        if body.len() + chunk.len() > max {
            return Err(protocol(call, &format!("sent a document over the size limit of {max} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

pub(crate) fn transport(call: &Call<'_>, source: reqwest::Error) -> RegistryError {
    let (what, host, source) = (call.what.clone(), call.host.to_owned(), source.without_url());
    match source.is_connect() && is_of_certificates(&source) {
        true => RegistryError::Untrusted { what, host, source },
        false => RegistryError::Transport { what, host, source },
    }
}

/// Whether the TLS library did not take the other side's certificate. Its type is not known here; its words are.
fn is_of_certificates(error: &reqwest::Error) -> bool {
    let mut causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    causes.any(|cause| cause.to_string().contains("invalid peer certificate"))
}

pub(crate) fn protocol(call: &Call<'_>, why: &str) -> RegistryError {
    RegistryError::Protocol { what: call.what.clone(), host: call.host.to_owned(), why: why.to_owned() }
}

/// Turns a refusal into an error with the registry's own words, shortened.
async fn refusal(call: &Call<'_>, mut response: Response) -> RegistryError {
    let status = response.status();
    let mut body = Vec::new();
    while body.len() < ERROR_BODY
        && let Ok(Some(chunk)) = response.chunk().await
    {
        body.extend_from_slice(&chunk);
    }
    let (what, host) = (call.what.clone(), call.host.to_owned());
    let detail = match message(&body) {
        text if text.is_empty() => String::new(),
        text => format!(": {text}"),
    };
    match status {
        StatusCode::NOT_FOUND => RegistryError::NotFound { what },
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Denied { what, host, detail },
        status => RegistryError::Status { what, host, status: status.as_u16(), detail },
    }
}

/// `errors[0]` of a distribution error document.
fn message(body: &[u8]) -> String {
    let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let first = &value["errors"][0];
    let text = |field: &str| first[field].as_str().unwrap_or_default().to_owned();
    let words = [text("code").to_lowercase(), text("message")];
    let joined = words.iter().filter(|w| !w.is_empty()).map(String::as_str).collect::<Vec<_>>().join(": ");
    joined.chars().filter(|c| !c.is_control()).take(300).collect()
}

fn basic(login: &Login) -> HeaderValue {
    let request =
        reqwest::Client::new().get("http://localhost/").basic_auth(&login.user, Some(&login.password)).build();
    let header = request.ok().and_then(|r| r.headers().get(AUTHORIZATION).cloned());
    let mut header = header.unwrap_or_else(|| HeaderValue::from_static("Basic"));
    header.set_sensitive(true);
    header
}

fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme() && a.host_str() == b.host_str() && a.port_or_known_default() == b.port_or_known_default()
}
