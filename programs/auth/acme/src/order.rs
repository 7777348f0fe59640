//! One certificate from the authority (RFC 8555 §7): account, order, an authorization for each host, request, chain.

use crate::Trouble;
use crate::challenge::{Answers, Given};
use crate::http::Http;
use crate::oracle::Oracle;
use crate::session::{Session, jws, retry_after_s, text, told};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use control::Acme;
use control::acme::HOSTS_MAX;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use wire::base64;

/// An authority judges a host, or makes a certificate, within this time; else it has failed.
const STEP_MAX: Duration = Duration::from_secs(180);
/// Pauses between two looks at what it does: the first, the longest of our own, and the longest that the authority may ask for.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);
const ASKED_MAX: Duration = Duration::from_secs(60);
/// Longest token (RFC 8555 §8.1 wants 128 bits at least).
const TOKEN_LEN_MAX: usize = 256;
/// Certificates of a chain.
const CHAIN_MAX: usize = 10;

/// Where certificates come from.
pub struct Authority {
    pub config: Acme,
    pub http: Http,
    pub oracle: Oracle,
    pub answers: Arc<Answers>,
    /// External account binding (§7.3.4): the key's name and the key.
    pub binding: Option<(String, hmac::Key)>,
}

impl Authority {
    /// Gets the certificate with this name and has it put in its place. `progress` is told what goes on.
    ///
    /// # Errors
    /// The authority or one of our own does not do its part; nothing is changed then.
    pub async fn obtain(&self, name: &str, hosts: &[String], agreed: bool, progress: &dyn Fn(&str)) -> Result<(), Trouble> {
        let session = Session::open(&self.http, &self.oracle, &self.config.directory).await?;
        let account = self.enter(&session, agreed).await?;
        let identifiers: Vec<Value> = hosts.iter().map(|host| json!({ "type": "dns", "value": host })).collect();
        let (order, answer) =
            session.post_json(&session.directory.new_order, Some(&json!({ "identifiers": identifiers }))).await?;
        let url = answer.field("location").map(str::to_owned).ok_or("the authority's order has no URL")?;
        progress(&format!("{} has an order for {}", self.config.directory.endpoint, hosts.join(" ")));
        let authorizations = order.get("authorizations").and_then(Value::as_array).cloned().unwrap_or_default();
        if authorizations.len() > HOSTS_MAX {
            return Err("the authority's order has too many authorizations".into());
        }
        for authorization in authorizations.iter().filter_map(Value::as_str) {
            self.authorize(&session, authorization, hosts, &account, progress).await?;
        }
        let ready = follow(&session, &url, &["ready", "valid"], "the order").await?;
        let finished = if text(&ready, "status").as_deref() == Some("valid") {
            ready
        } else {
            let finalize = text(&ready, "finalize").ok_or("the authority's order has no `finalize`")?;
            let request = base64::encode_url(&self.oracle.request(name).await?);
            session.post(&finalize, Some(&json!({ "csr": request }))).await?;
            progress("the certificate is requested");
            follow(&session, &url, &["valid"], "the order").await?
        };
        let certificate = text(&finished, "certificate").ok_or("the authority's order has no certificate")?;
        let pem = session.post(&certificate, None).await?.body;
        self.oracle.install(name, &chain(&pem)?).await
    }

    /// The account of our key, made if there is none (§7.3); its thumbprint (RFC 7638).
    async fn enter(&self, session: &Session<'_>, agreed: bool) -> Result<String, Trouble> {
        if let Some(terms) = &session.directory.terms
            && !agreed
        {
            return Err(Trouble::new("the authority's terms of service must be agreed to (--agree-tos)", terms));
        }
        let jwk = jwk(&self.oracle.account().await?).ok_or("the account's key is none")?;
        let mut account = Map::new();
        account.insert("termsOfServiceAgreed".to_owned(), agreed.into());
        if !self.config.contacts.is_empty() {
            account.insert("contact".to_owned(), self.config.contacts.clone().into());
        }
        match &self.binding {
            Some((name, key)) => {
                let bound = bind(name, key, &session.directory.new_account, &jwk);
                account.insert("externalAccountBinding".to_owned(), bound);
            }
            None if session.directory.needs_binding => {
                return Err(
                    "the authority wants an account of its own customers: `eabkid` and `eabkeyfile` in control/acme".into()
                );
            }
            None => {}
        }
        let (known, answer) = session.post_json(&session.directory.new_account, Some(&Value::Object(account))).await?;
        let url = answer.field("location").map(str::to_owned).ok_or("the authority's account has no URL")?;
        session.enter(url.clone());
        // An account that was there keeps its addresses until it is told others (§7.3.2).
        let contacts = Value::from(self.config.contacts.clone());
        if known.get("contact").is_some_and(|known| *known != contacts) {
            session.post(&url, Some(&json!({ "contact": contacts }))).await?;
        }
        Ok(base64::encode_url(digest(&SHA256, jwk.as_bytes()).as_ref()))
    }

    /// Shows the authority that a host is ours (§7.5).
    async fn authorize(
        &self,
        session: &Session<'_>,
        url: &str,
        hosts: &[String],
        thumbprint: &str,
        progress: &dyn Fn(&str),
    ) -> Result<(), Trouble> {
        let (authorization, _) = session.post_json(url, None).await?;
        let host = authorization.get("identifier").and_then(|identifier| text(identifier, "value")).unwrap_or_default();
        if !hosts.contains(&host) {
            return Err(Trouble::new("the authority asks about a host of which no certificate is wanted", &host));
        }
        match text(&authorization, "status").as_deref() {
            Some("valid") => return Ok(()),
            Some("pending") => {}
            _ => return Err(refused(&host, &authorization)),
        }
        let kind = self.config.challenge.name();
        let challenges = authorization.get("challenges").and_then(Value::as_array).into_iter().flatten();
        let challenge = challenges.into_iter().find(|challenge| text(challenge, "type").as_deref() == Some(kind));
        let challenge = challenge.ok_or_else(|| Trouble::new(&host, &format_args!("the authority offers no {kind}")))?;
        let token = text(challenge, "token").filter(|token| is_token(token)).ok_or("the authority's challenge has no token")?;
        let challenge = text(challenge, "url").ok_or("the authority's challenge has no URL")?;
        let given: Given = self.answers.give(self.config.challenge, &host, &token, format!("{token}.{thumbprint}"))?;
        session.post(&challenge, Some(&json!({}))).await?;
        progress(&format!("{host}: the authority looks for the answer ({kind})"));
        let judged = follow(session, url, &["valid"], &host).await;
        drop(given);
        judged?;
        progress(&format!("{host}: is ours"));
        Ok(())
    }
}

/// Looks again and again until the status is one of `wanted`.
async fn follow(session: &Session<'_>, url: &str, wanted: &[&str], what: &str) -> Result<Value, Trouble> {
    let until = Instant::now() + STEP_MAX;
    let mut pause = PAUSE_MIN;
    loop {
        let (value, answer) = session.post_json(url, None).await?;
        let status = text(&value, "status").unwrap_or_default();
        if wanted.contains(&status.as_str()) {
            return Ok(value);
        }
        if !matches!(status.as_str(), "pending" | "processing" | "ready") {
            return Err(refused(what, &value));
        }
        if Instant::now() >= until {
            return Err(Trouble::new(what, &"the authority does not come to an end with it"));
        }
        let asked = Duration::from_secs(retry_after_s(&answer));
        sleep(pause.min(PAUSE_MAX).max(asked.min(ASKED_MAX))).await;
        pause = pause.saturating_mul(2);
    }
}

/// Why an order or an authorization is not valid: its own error, or that of a challenge.
fn refused(what: &str, value: &Value) -> Trouble {
    let challenges = value.get("challenges").and_then(Value::as_array).into_iter().flatten();
    let error = challenges.chain([value]).find_map(|value| value.get("error").filter(|error| error.is_object()));
    let why = error.map_or_else(|| format!("is {}", text(value, "status").unwrap_or_default()), told);
    Trouble::new(what, &why)
}

fn is_token(token: &str) -> bool {
    let len = token.len();
    (1..=TOKEN_LEN_MAX).contains(&len) && token.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

/// The public key as RFC 7638 §3 has it hashed: its members in order, no blanks.
fn jwk(point: &[u8]) -> Option<String> {
    let (x, y) = point.strip_prefix(&[4])?.split_at_checked(32)?;
    let (x, y) = (base64::encode_url(x), base64::encode_url(y));
    Some(format!("{{\"crv\":\"P-256\",\"kty\":\"EC\",\"x\":\"{x}\",\"y\":\"{y}\"}}"))
}

/// The authority's customer vouches for the account (§7.3.4).
fn bind(name: &str, key: &hmac::Key, url: &str, jwk: &str) -> Value {
    let protected = json!({ "alg": "HS256", "kid": name, "url": url }).to_string();
    let input = format!("{}.{}", base64::encode_url(protected.as_bytes()), base64::encode_url(jwk.as_bytes()));
    jws(protected.as_bytes(), jwk.as_bytes(), hmac::sign(key, input.as_bytes()).as_ref())
}

/// The certificates of a PEM file (§7.4.2).
fn chain(pem: &[u8]) -> Result<Vec<Vec<u8>>, Trouble> {
    let all = CertificateDer::pem_slice_iter(pem).take(CHAIN_MAX).map(|der| der.map(|der| der.to_vec()));
    let chain: Vec<Vec<u8>> = all.collect::<Result<_, _>>().map_err(|error| Trouble::new("the authority's chain", &error))?;
    if chain.is_empty() { Err("the authority's chain has no certificate".into()) } else { Ok(chain) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7638 §3.1 is of RSA; this is the form for EC (§3.2).
    #[test]
    fn a_thumbprint_is_over_the_members_in_order() {
        let point: Vec<u8> = [4].into_iter().chain(0..64).collect();
        let expected = "{\"crv\":\"P-256\",\"kty\":\"EC\",\"x\":\"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8\",\
                        \"y\":\"ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8\"}";
        assert_eq!(jwk(&point).as_deref(), Some(expected));
        assert_eq!((jwk(&point[1..]), jwk(&[2; 65]), jwk(&[])), (None, None, None));
    }

    #[test]
    fn tokens_are_base64url_and_nothing_that_a_path_has() {
        assert!(is_token("evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr_oA"));
        for bad in ["", "a/b", "../x", "a.b", "a b", &"x".repeat(257)] {
            assert!(!is_token(bad), "{bad}");
        }
    }

    #[test]
    fn a_refusal_says_what_the_challenge_says() {
        let value = json!({ "status": "invalid", "challenges": [
            { "type": "dns-01", "status": "pending" },
            { "type": "http-01", "error": { "type": "urn:ietf:params:acme:error:connection", "detail": "refused" } },
        ] });
        assert_eq!(refused("a.b", &value).text, "a.b: refused (connection)");
        assert_eq!(refused("a.b", &json!({ "status": "expired" })).text, "a.b: is expired");
    }
}
