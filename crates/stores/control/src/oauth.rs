//! control/oauth: who says what an OAuth token is worth. Read by qmail-authnet.

use std::path::PathBuf;

use crate::keyed::Keyed;
use crate::url::WebUrl;
use crate::{ControlError, Root};

/// The file's name.
pub const FILE: &str = "oauth";

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Issuer {
    /// Token introspection (RFC 7662), with the client's name and the file of its secret.
    Introspection { url: WebUrl, client: Option<(String, PathBuf)> },
    /// The UserInfo endpoint (OpenID Connect Core §5.3), with the token itself.
    UserInfo { url: WebUrl },
}

/// The configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oauth {
    pub issuer: Issuer,
    /// Authorities that are trusted instead of the system's.
    pub cafile: Option<PathBuf>,
    /// Scopes that a token must have, divided by blanks.
    pub scope: Option<String>,
    /// Whom a token must be meant for.
    pub audience: Option<String>,
    /// Who must have issued it.
    pub iss: Option<String>,
    /// The member of the answer that names the account.
    pub claim: String,
    /// What is put behind a name without `@`.
    pub domain: Option<String>,
}

impl Oauth {
    /// Reads `control/oauth`.
    ///
    /// # Errors
    /// Missing, unreadable or malformed; temporary.
    pub fn read(root: &Root) -> Result<Self, ControlError> {
        let missing = || ControlError::new(&root.control_file(FILE), "missing; control/authsources names `oauth`");
        let mut keyed = Keyed::read(root, FILE)?.ok_or_else(missing)?;
        let client = match (keyed.one("clientid")?, keyed.path("clientsecretfile")?) {
            (Some(name), Some(file)) => Some((name, file)),
            (None, None) => None,
            _ => return Err(keyed.wrong("`clientid` and `clientsecretfile` go together")),
        };
        let (introspection, userinfo) = (url(&mut keyed, "introspection")?, url(&mut keyed, "userinfo")?);
        let (issuer, claim) = match (introspection, userinfo) {
            (Some(url), None) => (Issuer::Introspection { url, client }, "username"),
            (None, Some(url)) if client.is_none() => (Issuer::UserInfo { url }, "email"),
            (None, Some(_)) => return Err(keyed.wrong("`clientid` is for `introspection`; `userinfo` is asked with the token")),
            _ => return Err(keyed.wrong("must have either a line `introspection URL` or a line `userinfo URL`")),
        };
        let oauth = Self {
            cafile: keyed.path("cafile")?,
            scope: keyed.one("scope")?,
            audience: keyed.one("audience")?,
            iss: keyed.one("issuer")?,
            claim: keyed.one_or("claim", claim)?,
            domain: keyed.one("domain")?,
            issuer,
        };
        let demands = [&oauth.scope, &oauth.audience, &oauth.iss].iter().any(|demand| demand.is_some());
        if demands && matches!(oauth.issuer, Issuer::UserInfo { .. }) {
            return Err(keyed.wrong("`userinfo` tells neither scope nor audience nor issuer of a token; use `introspection`"));
        }
        keyed.end()?;
        Ok(oauth)
    }
}

fn url(keyed: &mut Keyed, key: &str) -> Result<Option<WebUrl>, ControlError> {
    let Some(text) = keyed.one(key)? else { return Ok(None) };
    WebUrl::parse(&text).map(Some).map_err(|problem| keyed.wrong(format!("`{key}` {problem}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Oauth, ControlError> {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path()).unwrap();
        std::fs::create_dir_all(root.control()).unwrap();
        std::fs::write(root.control_file(FILE), text).unwrap();
        Oauth::read(&root)
    }

    #[test]
    fn defaults_and_values() {
        let oauth = read(
            "introspection https://id.example.org/introspect\nclientid mail\nclientsecretfile oauth.secret\nscope mail send\n\
             audience mail.example.org\nissuer https://id.example.org\ndomain example.org\n",
        )
        .unwrap();
        let Issuer::Introspection { url, client: Some((name, file)) } = &oauth.issuer else { panic!("{oauth:?}") };
        assert_eq!(
            (url.target.as_str(), name.as_str(), file.file_name().unwrap().to_str()),
            ("/introspect", "mail", Some("oauth.secret"))
        );
        assert_eq!(
            (oauth.claim.as_str(), oauth.scope.as_deref(), oauth.domain.as_deref()),
            ("username", Some("mail send"), Some("example.org"))
        );
        let oauth = read("userinfo http://127.0.0.1:1/u\n").unwrap();
        assert_eq!((oauth.claim.as_str(), oauth.audience, oauth.iss), ("email", None, None));
    }

    #[test]
    fn errors_name_the_setting() {
        for (text, part) in [
            ("scope x\n", "either a line `introspection URL`"),
            ("introspection https://a\nuserinfo https://a\n", "either a line `introspection URL`"),
            ("introspection http://a.example/\n", "`introspection` must begin with https://"),
            ("introspection https://a\nclientid x\n", "go together"),
            ("userinfo https://a\nclientid x\nclientsecretfile y\n", "`clientid` is for"),
            ("userinfo https://a\naudience x\n", "tells neither"),
            ("introspection https://a\nclientsecret x\n", "`clientsecret` is no setting"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.problem.contains(part) && error.file.ends_with("control/oauth"), "{text}: {error}");
        }
    }
}
