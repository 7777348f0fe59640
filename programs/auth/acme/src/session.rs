//! Requests to the authority in the name of the account (RFC 8555 §6): signed by qmail-keys, each with a nonce of the authority's.

use crate::Trouble;
use crate::http::{Http, Response};
use crate::oracle::Oracle;
use control::url::WebUrl;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use std::cell::RefCell;
use wire::base64;

/// Nonces that the authority may find bad in a row (RFC 8555 §6.5): it forgets them, and several of its hosts may not know each other's.
const BAD_NONCES_MAX: usize = 8;
/// Longest wait that an authority is granted, in seconds.
pub const RETRY_AFTER_MAX_S: u64 = 7 * 86_400;
/// Causes that are told of an error with several.
const CAUSES_MAX: usize = 5;

/// The URLs of an authority (RFC 8555 §7.1.1).
#[derive(Debug, Clone)]
pub struct Directory {
    pub new_nonce: String,
    pub new_account: String,
    pub new_order: String,
    pub terms: Option<String>,
    pub needs_binding: bool,
}

/// An authority, and the account there once it is known.
pub struct Session<'a> {
    http: &'a Http,
    oracle: &'a Oracle,
    pub directory: Directory,
    account: RefCell<String>,
    nonce: RefCell<Option<String>>,
}

impl<'a> Session<'a> {
    /// Asks the authority where what is.
    ///
    /// # Errors
    /// It does not answer, or with something else than a directory.
    pub async fn open(http: &'a Http, oracle: &'a Oracle, directory: &WebUrl) -> Result<Self, Trouble> {
        let answer = http.ask(Method::GET, directory, None).await?;
        if answer.status != StatusCode::OK {
            return Err(problem("directory", &answer));
        }
        let value = json(&answer)?;
        let url = |key: &str| text(&value, key).ok_or_else(|| Trouble::new("the directory has no URL", &key));
        // qmail-keys signs for no other host; what is not signed goes to none either.
        let new_nonce = url("newNonce")?;
        if WebUrl::parse(&new_nonce).ok().is_none_or(|url| url.endpoint != directory.endpoint) {
            return Err(Trouble::new("the directory names another host", &new_nonce));
        }
        let meta = value.get("meta").cloned().unwrap_or_default();
        let directory = Directory {
            new_nonce,
            new_account: url("newAccount")?,
            new_order: url("newOrder")?,
            terms: text(&meta, "termsOfService"),
            needs_binding: meta.get("externalAccountRequired").and_then(Value::as_bool).unwrap_or_default(),
        };
        Ok(Self { http, oracle, directory, account: RefCell::default(), nonce: RefCell::default() })
    }

    /// From now on requests are this account's.
    pub fn enter(&self, account: String) {
        self.account.replace(account);
    }

    /// POST of an object; `None` is POST-as-GET (§6.3). The answer has a status below 400.
    ///
    /// # Errors
    /// What the authority says, or it does not answer.
    pub async fn post(&self, url: &str, payload: Option<&Value>) -> Result<Response, Trouble> {
        let payload = payload.map(ToString::to_string).unwrap_or_default();
        let target = WebUrl::parse(url).map_err(|error| Trouble::new("a URL of the authority", &error))?;
        for _ in 0..BAD_NONCES_MAX {
            let nonce = self.nonce().await?;
            let account = self.account.borrow().clone();
            let (protected, signature) = self.oracle.sign(url, &nonce, &account, &payload).await?;
            let body = jws(&protected, payload.as_bytes(), &signature);
            let answer = self.http.ask(Method::POST, &target, Some(body.to_string())).await?;
            self.nonce.replace(answer.field("replay-nonce").map(str::to_owned));
            if answer.status.is_success() {
                return Ok(answer);
            }
            if !is_bad_nonce(&answer) {
                return Err(problem(&target.endpoint.to_string(), &answer));
            }
        }
        Err("the authority takes none of its own nonces".into())
    }

    /// As [`Session::post`], with the object that is in the answer.
    ///
    /// # Errors
    /// As [`Session::post`], or it is no JSON.
    pub async fn post_json(&self, url: &str, payload: Option<&Value>) -> Result<(Value, Response), Trouble> {
        let answer = self.post(url, payload).await?;
        Ok((json(&answer)?, answer))
    }

    /// The nonce that came with the last answer, or a new one (§7.2).
    async fn nonce(&self) -> Result<String, Trouble> {
        if let Some(nonce) = self.nonce.take() {
            return Ok(nonce);
        }
        let url = WebUrl::parse(&self.directory.new_nonce).map_err(|error| Trouble::new("newNonce", &error))?;
        let answer = self.http.ask(Method::HEAD, &url, None).await?;
        answer.field("replay-nonce").map(str::to_owned).ok_or_else(|| "the authority gives no nonce".into())
    }
}

/// A signed text in JSON (RFC 7515 §7.2.2).
#[must_use]
pub fn jws(protected: &[u8], payload: &[u8], signature: &[u8]) -> Value {
    json!({
        "protected": base64::encode_url(protected),
        "payload": base64::encode_url(payload),
        "signature": base64::encode_url(signature),
    })
}

/// A member that is a text.
#[must_use]
pub fn text(value: &Value, key: &str) -> Option<String> {
    value.get(key).and_then(Value::as_str).map(str::to_owned)
}

/// For how long the authority wants no further request (RFC 9110 §10.2.3), in seconds; dates do not count.
#[must_use]
pub fn retry_after_s(answer: &Response) -> u64 {
    answer.field("retry-after").and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0).min(RETRY_AFTER_MAX_S)
}

/// What an object with a problem says (RFC 7807, RFC 8555 §6.7).
#[must_use]
pub fn told(value: &Value) -> String {
    let one = |value: &Value| {
        let kind = text(value, "type").unwrap_or_default();
        let kind = kind.rsplit(':').next().unwrap_or_default().to_owned();
        let host = value.get("identifier").and_then(|identifier| text(identifier, "value"));
        let detail = text(value, "detail").unwrap_or_else(|| "no reason given".to_owned());
        let host = host.map(|host| format!("{host}: ")).unwrap_or_default();
        if kind.is_empty() { format!("{host}{detail}") } else { format!("{host}{detail} ({kind})") }
    };
    let causes = value.get("subproblems").and_then(Value::as_array).into_iter().flatten().take(CAUSES_MAX).map(one);
    [one(value)].into_iter().chain(causes).collect::<Vec<_>>().join("; ")
}

fn problem(what: &str, answer: &Response) -> Trouble {
    let value = serde_json::from_slice::<Value>(&answer.body).unwrap_or_default();
    let said = if value.is_object() { told(&value) } else { "no reason given".to_owned() };
    let trouble = Trouble::new(what, &format_args!("{} {said}", answer.status.as_u16()));
    Trouble { retry_after_s: retry_after_s(answer), ..trouble }
}

fn is_bad_nonce(answer: &Response) -> bool {
    let value = serde_json::from_slice::<Value>(&answer.body).unwrap_or_default();
    answer.status == StatusCode::BAD_REQUEST
        && text(&value, "type").is_some_and(|kind| kind == "urn:ietf:params:acme:error:badNonce")
}

fn json(answer: &Response) -> Result<Value, Trouble> {
    serde_json::from_slice(&answer.body).map_err(|error| Trouble::new("the authority's answer is no JSON", &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_told_with_its_causes() {
        let value = json!({
            "type": "urn:ietf:params:acme:error:rejectedIdentifier", "detail": "no",
            "subproblems": [{ "type": "urn:ietf:params:acme:error:dns", "detail": "none", "identifier": { "type": "dns", "value": "a.b" } }],
        });
        assert_eq!(told(&value), "no (rejectedIdentifier); a.b: none (dns)");
        assert_eq!(told(&json!({})), "no reason given");
        assert_eq!(told(&json!({ "detail": 5, "subproblems": 7 })), "no reason given");
    }
}
