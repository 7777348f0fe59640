//! OAuth tokens: their issuer is asked what they are worth, and believed for a minute.

use crate::breaker::Breaker;
use crate::claims::{Holder, judge};
use crate::dial::Dialer;
use crate::http::{self, Question, form_encoded};
use crate::{REQUEST_MAX, Trouble, UNDER_WAY_MAX, Verdict, log};
use control::oauth::Issuer;
use control::{ControlError, Oauth, Root, secret};
use hyper::StatusCode;
use hyper::header::HeaderValue;
use serde_json::Value;
use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use wire::Secret;
use zeroize::Zeroizing;

/// How long a token that was good is good without a question: so long one that was withdrawn goes on to open.
pub const BELIEVED_FOR: Duration = Duration::from_secs(60);
/// Tokens that are remembered.
const REMEMBERED_MAX: usize = 4096;

/// The accounts of tokens that were good, by the tokens' SHA-256, and until when they are believed.
type Good = HashMap<[u8; 32], (Vec<u8>, Instant)>;

/// The judge of tokens.
pub struct Tokens {
    config: Oauth,
    /// The Authorization field of our questions.
    client: Option<HeaderValue>,
    dialer: Dialer,
    breaker: Breaker,
    places: Semaphore,
    good: RefCell<Good>,
}

impl Tokens {
    /// Reads control/oauth and the secret that it names. `dialer` is made for the file of authorities.
    ///
    /// # Errors
    /// A file is missing, malformed or not as secret as it must be.
    pub fn read(
        root: &Root,
        dialer: impl FnOnce(Option<&std::path::Path>) -> std::io::Result<Dialer>,
    ) -> Result<Self, ControlError> {
        let config = Oauth::read(root)?;
        let wrong = |problem: String| ControlError::new(&root.control_file(control::oauth::FILE), problem);
        let (url, client) = match &config.issuer {
            Issuer::Introspection { url, client: Some((name, file)) } => (url, Some(basic(name, &secret::read(file)?))),
            Issuer::Introspection { url, client: None } | Issuer::UserInfo { url } => (url, None),
        };
        let client = client.transpose().map_err(|error| wrong(error.to_string()))?;
        let dialer = dialer(config.cafile.as_deref()).map_err(|error| wrong(format!("`cafile`: {error}")))?;
        let breaker = Breaker::new(format!("{}{}", url.endpoint, url.target));
        Ok(Self { client, dialer, breaker, places: Semaphore::new(UNDER_WAY_MAX), good: RefCell::default(), config })
    }

    /// Whose token is it? If `user` is not empty, it must be that one's. Within [`REQUEST_MAX`].
    pub async fn check(&self, user: &[u8], token: &[u8]) -> Verdict {
        if token.is_empty() {
            return Verdict::Wrong;
        }
        let account = match self.remembered(token) {
            Some(account) => account,
            None => match self.ask(token).await {
                Ok(account) => account,
                Err(verdict) => return verdict,
            },
        };
        let is_his = user.is_empty() || user.eq_ignore_ascii_case(&account);
        if is_his { Verdict::Right(account) } else { Verdict::Wrong }
    }

    /// The account that the issuer names.
    async fn ask(&self, token: &[u8]) -> Result<Vec<u8>, Verdict> {
        let unavailable = |text: &str| Err(Verdict::Unavailable(format!("{}: {text}", self.breaker.server())));
        let Ok(_place) = self.places.try_acquire() else { return unavailable("too many logins at once") };
        if !self.breaker.may_try() {
            return unavailable("did not answer lately");
        }
        let asked = timeout(REQUEST_MAX, self.question(token)).await;
        let answer = match asked.unwrap_or_else(|_| Err("no answer in time".into())) {
            Ok(answer) => answer,
            Err(trouble) => {
                self.breaker.failed(&trouble);
                return unavailable(&trouble.0);
            }
        };
        self.breaker.succeeded();
        let answer = answer.ok_or(Verdict::Wrong)?;
        let now_s = sys::clock::unix_s();
        match judge(&self.config, &answer, now_s) {
            Ok(holder) => {
                self.remember(token, &holder, now_s);
                Ok(holder.account)
            }
            Err(why) => {
                log(&format!("a token does not count: {why}"));
                Err(Verdict::Wrong)
            }
        }
    }

    /// The issuer's answer; `None`: the token opens nothing.
    async fn question(&self, token: &[u8]) -> Result<Option<Value>, Trouble> {
        let (status, body) = match &self.config.issuer {
            Issuer::Introspection { url, .. } => {
                let form = format!("token={}&token_type_hint=access_token", form_encoded(token));
                http::ask(&self.dialer, url, Question { form: Some(form), authorization: self.client.clone() }).await?
            }
            Issuer::UserInfo { url } => {
                // A token with other bytes than a header has is nobody's.
                let Ok(authorization) = sensitive(&[b"Bearer ", token].concat()) else { return Ok(None) };
                let answer = http::ask(&self.dialer, url, Question { form: None, authorization: Some(authorization) }).await?;
                // RFC 6750 §3.1: expired and the like, or without the scope for it. To our own question it means us.
                if matches!(answer.0, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
                    return Ok(None);
                }
                answer
            }
        };
        if status != StatusCode::OK {
            return Err(Trouble::new("HTTP", &format_args!("status {}", status.as_u16())));
        }
        serde_json::from_slice(&body).map(Some).map_err(|error| Trouble::new("no JSON", &error))
    }

    fn remembered(&self, token: &[u8]) -> Option<Vec<u8>> {
        let good = self.good.borrow();
        good.get(&digest(token)).filter(|(_, until)| Instant::now() < *until).map(|(account, _)| account.clone())
    }

    fn remember(&self, token: &[u8], holder: &Holder, now_s: u64) {
        let left = holder.expires_s.map_or(BELIEVED_FOR, |expires| Duration::from_secs(expires.saturating_sub(now_s)));
        let now = Instant::now();
        let mut good = self.good.borrow_mut();
        if good.len() >= REMEMBERED_MAX {
            good.retain(|_, (_, until)| now < *until);
        }
        if good.len() < REMEMBERED_MAX {
            good.insert(digest(token), (holder.account.clone(), now + left.min(BELIEVED_FOR)));
        }
    }
}

fn digest(token: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token);
    digest.as_ref().try_into().unwrap_or_default()
}

/// RFC 6749 §2.3.1: both parts as a form has them, then as HTTP has them.
fn basic(name: &str, secret: &Secret) -> Result<HeaderValue, hyper::header::InvalidHeaderValue> {
    let pair = Zeroizing::new(format!("{}:{}", form_encoded(name.as_bytes()), form_encoded(secret.expose())));
    sensitive(format!("Basic {}", wire::base64::encode(pair.as_bytes())).as_bytes())
}

/// A value that is not printed.
fn sensitive(value: &[u8]) -> Result<HeaderValue, hyper::header::InvalidHeaderValue> {
    let mut value = HeaderValue::from_bytes(value)?;
    value.set_sensitive(true);
    Ok(value)
}
