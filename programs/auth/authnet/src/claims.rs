//! What an answer about a token must say for the token to count here. In doubt it does not.

use crate::account;
use control::Oauth;
use control::oauth::Issuer;
use serde_json::Value;

/// Whose token it is, and until when (UNIX seconds) if the answer says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pub account: Vec<u8>,
    pub expires_s: Option<u64>,
}

/// Longest name of an account, in bytes.
const NAME_LEN_MAX: usize = 320;
/// Types of tokens that open nothing by themselves, as one issuer names them (`typ`).
const OTHER_TYPES: [&str; 3] = ["Refresh", "Offline", "ID"];

/// Judges an answer of the issuer at the time `now_s`.
///
/// # Errors
/// Why the token does not count, for the log.
pub fn judge(config: &Oauth, answer: &Value, now_s: u64) -> Result<Holder, &'static str> {
    if matches!(config.issuer, Issuer::Introspection { .. }) {
        // RFC 7662 §2.2: the one member that must be there.
        demand(answer["active"] == Value::Bool(true), "it is not active")?;
    }
    let expires_s = time(&answer["exp"])?;
    demand(expires_s.is_none_or(|expires| expires > now_s), "it has expired")?;
    demand(time(&answer["nbf"])?.is_none_or(|begins| begins <= now_s), "it is not valid yet")?;
    kind(answer)?;
    if let Some(scope) = &config.scope {
        demand(scope.split_ascii_whitespace().all(|needed| has(&answer["scope"], needed)), "it lacks a scope")?;
    }
    if let Some(audience) = &config.audience {
        demand(names(&answer["aud"], audience), "it is for another audience")?;
    }
    if let Some(iss) = &config.iss {
        demand(answer["iss"] == Value::String(iss.clone()), "it is of another issuer")?;
    }
    let name = answer[&config.claim].as_str().filter(|name| !name.is_empty() && name.len() <= NAME_LEN_MAX);
    let name = name.ok_or("it does not name an account")?;
    // Anybody may write an address into his profile.
    let is_unverified = config.claim == "email" && !matches!(answer["email_verified"], Value::Null | Value::Bool(true));
    demand(!is_unverified, "its mail address is not verified")?;
    Ok(Holder { account: account(name.as_bytes(), config.domain.as_deref()), expires_s })
}

/// A bearer token that is used as one: no refresh token, and none that is bound to a key (RFC 7800, RFC 8705 §3.2), whose thief would
/// have nothing of it elsewhere.
fn kind(answer: &Value) -> Result<(), &'static str> {
    let text = |member: &str| answer[member].as_str();
    let is_bearer = text("token_type").is_none_or(|kind| kind.eq_ignore_ascii_case("bearer"));
    let is_access = text("token_use").is_none_or(|kind| kind == "access_token" || kind == "access");
    let is_other = text("typ").is_some_and(|kind| OTHER_TYPES.contains(&kind));
    demand(is_bearer && is_access && !is_other, "it is no access token for bearers")?;
    demand(answer["cnf"].is_null(), "it is bound to a key")
}

fn demand(holds: bool, otherwise: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(otherwise) }
}

/// Seconds since 1970, which may have a fraction (RFC 7519 §2).
fn time(value: &Value) -> Result<Option<u64>, &'static str> {
    if value.is_null() {
        return Ok(None);
    }
    let whole = value.as_u64();
    // Saturates, and drops the fraction: a time is earlier by it, never later.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let rounded = || value.as_f64().filter(|seconds| *seconds >= 0.0).map(|seconds| seconds as u64);
    whole.or_else(rounded).map(Some).ok_or("its times cannot be read")
}

/// A scope in a list that is divided by blanks (RFC 6749 §3.3), or in an array, as some write it.
fn has(scope: &Value, needed: &str) -> bool {
    match scope {
        Value::String(list) => list.split(' ').any(|scope| scope == needed),
        other => names(other, needed),
    }
}

/// A string, or an array of which it is one (RFC 7519 §4.1.3).
fn names(value: &Value, wanted: &str) -> bool {
    match value {
        Value::String(one) => one == wanted,
        Value::Array(several) => several.iter().any(|one| one.as_str() == Some(wanted)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::url::WebUrl;
    use serde_json::json;

    const NOW: u64 = 1_000;

    fn config() -> Oauth {
        Oauth {
            issuer: Issuer::Introspection { url: WebUrl::parse("https://id.example/").unwrap(), client: None },
            cafile: None,
            scope: Some("mail send".to_owned()),
            audience: Some("mx".to_owned()),
            iss: Some("https://id.example".to_owned()),
            claim: "username".to_owned(),
            domain: Some("a.example".to_owned()),
        }
    }

    fn good() -> Value {
        json!({"active": true, "scope": "openid send mail", "aud": ["x", "mx"], "iss": "https://id.example", "username": "ann",
            "exp": NOW + 1, "nbf": NOW, "token_type": "Bearer"})
    }

    fn with(member: &str, value: Value) -> Result<Holder, &'static str> {
        let mut answer = good();
        answer[member] = value;
        judge(&config(), &answer, NOW)
    }

    #[test]
    fn each_demand_is_made() {
        let holder = Holder { account: b"ann@a.example".to_vec(), expires_s: Some(NOW + 1) };
        assert_eq!(judge(&config(), &good(), NOW), Ok(holder.clone()));
        for (member, value) in [
            ("aud", json!("mx")),
            ("scope", json!(["mail", "send"])),
            ("exp", json!(1_001.9)),
            ("token_type", json!("bearer")),
            ("token_use", json!("access_token")),
            ("typ", json!("at+jwt")),
            ("email_verified", json!(false)),
            ("cnf", Value::Null),
            ("username", json!("ann@a.example")),
        ] {
            assert_eq!(with(member, value.clone()), Ok(holder.clone()), "{member} {value}");
        }
        for (member, value, why) in [
            ("active", json!(false), "active"),
            ("active", json!("true"), "active"),
            ("active", json!(1), "active"),
            ("active", Value::Null, "active"),
            ("exp", json!(NOW), "expired"),
            ("exp", json!(NOW as f64 + 0.5), "expired"),
            ("exp", json!("2000"), "times"),
            ("exp", json!(-5), "times"),
            ("nbf", json!(NOW + 1), "not valid yet"),
            ("scope", json!("mail sender"), "scope"),
            ("scope", Value::Null, "scope"),
            ("aud", json!("mx2"), "audience"),
            ("aud", json!([]), "audience"),
            ("aud", Value::Null, "audience"),
            ("iss", json!("https://id.example/"), "issuer"),
            ("iss", Value::Null, "issuer"),
            ("token_type", json!("DPoP"), "bearers"),
            ("token_use", json!("refresh_token"), "bearers"),
            ("typ", json!("Refresh"), "bearers"),
            ("cnf", json!({"jkt": "x"}), "key"),
            ("username", json!(""), "name"),
            ("username", json!(["ann"]), "name"),
            ("username", json!("a".repeat(NAME_LEN_MAX + 1)), "name"),
        ] {
            let said = with(member, value.clone()).unwrap_err();
            assert!(said.contains(why), "{member} {value}: {said}");
        }
        for answer in [json!([]), json!("active"), Value::Null, json!(true)] {
            assert!(judge(&config(), &answer, NOW).is_err(), "{answer}");
        }
    }

    #[test]
    fn an_address_that_is_not_verified_is_nobodys() {
        let url = WebUrl::parse("https://id.example/").unwrap();
        let config = Oauth {
            issuer: Issuer::UserInfo { url },
            scope: None,
            audience: None,
            iss: None,
            claim: "email".to_owned(),
            domain: None,
            cafile: None,
        };
        let said = |verified: Value| judge(&config, &json!({"email": "ann@a.example", "email_verified": verified}), NOW);
        assert_eq!(said(json!(true)).unwrap().account, b"ann@a.example");
        assert!(said(Value::Null).is_ok());
        for not in [json!(false), json!("true"), json!(1)] {
            assert!(said(not.clone()).is_err(), "{not}");
        }
    }
}
