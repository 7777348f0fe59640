//! `control/tcp.smtp`, or as tcprules(1) compiles it `control/tcp.smtp.cdb`: who may connect to the service `smtp`, and what holds for him.
//!
//! Guarantees: the database is read as a whole, so that nothing is opened once strangers talk. A line that is no rule is an error with its
//! number, never a rule less: what a `deny` was meant to keep out stays out. The text comes first, a database counts where there is none.
//! Never here: names of clients (`=host`) and ident (`user@`). This server asks for neither; such rules fit nobody.

use std::collections::HashMap;
use std::net::IpAddr;

use users::rules::{Client, DATA_LEN_MAX, Rule, compile, find};

use crate::{ControlError, Root};

/// The file of rules.
pub const TEXT: &str = "tcp.smtp";
/// The same, compiled.
pub const DATABASE: &str = "tcp.smtp.cdb";
/// Variables that say something here; all others are for the programs of a tcpserver.
const KNOWN: [&[u8]; 2] = [b"RELAYCLIENT", b"DATABYTES"];

/// What counts for a client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientRule {
    pub is_denied: bool,
    /// He may send anywhere; this is appended to his recipients (RELAYCLIENT).
    pub relay_client: Option<Vec<u8>>,
    /// Bytes of a message instead of `databytes`; 0 for no bound.
    pub databytes: Option<u64>,
}

/// Rules by the address of the client.
#[derive(Debug, Clone, Default)]
pub struct ClientRules {
    text: HashMap<Vec<u8>, Vec<u8>>,
    database: Option<Vec<u8>>,
}

impl ClientRules {
    /// Reads the rules; none without a file.
    ///
    /// # Errors
    /// Unreadable, a line that is no rule, or no database; temporary.
    pub fn read(root: &Root) -> Result<Self, ControlError> {
        let Some(text) = root.text(TEXT)? else {
            let rules = Self { text: HashMap::new(), database: root.text(DATABASE)? };
            // A database that cannot be searched would let in whom it denies.
            let is_sound = rules.rule(IpAddr::from([127, 0, 0, 1])).is_ok();
            let wrong = || ControlError::new(&root.control_file(DATABASE), "is no database of tcprules; compile it again");
            return if is_sound { Ok(rules) } else { Err(wrong()) };
        };
        let mut rules = HashMap::new();
        for (line, number) in text.split(|b| *b == b'\n').zip(1u32..) {
            let wrong = |why: &str| {
                let shown = wire::escape::visible(users::trim_end(line));
                ControlError::new(&root.control_file(TEXT), format!("line {number}: `{shown}` {why}"))
            };
            let line = users::trim_end(line);
            if !line.is_empty() && !line.starts_with(b"#") && !line.contains(&b':') {
                return Err(wrong("has no colon; write ADDRESS:allow or ADDRESS:deny"));
            }
            let records = compile(line).map_err(|_| {
                wrong("is no rule; write ADDRESS:allow or ADDRESS:deny, and behind it any number of ,NAME=\"VALUE\"")
            })?;
            // As in the database, the first of several rules for one address counts.
            for (address, data) in records {
                rules.entry(address).or_insert(data);
            }
        }
        Ok(Self { text: rules, database: None })
    }

    /// What counts for a client: allowed and nothing else where no rule fits.
    #[must_use]
    pub fn of(&self, client: IpAddr) -> ClientRule {
        let Ok(found) = self.rule(client) else { return ClientRule { is_denied: true, ..ClientRule::default() } };
        let Some(rule) = found else { return ClientRule::default() };
        let value = |name: &[u8]| {
            // The last one counts, as in an environment.
            let mut values = rule.variables.iter().filter_map(|variable| variable.strip_prefix(name)?.strip_prefix(b"="));
            values.next_back().map(<[u8]>::to_vec)
        };
        ClientRule {
            is_denied: rule.is_denied,
            relay_client: value(b"RELAYCLIENT"),
            databytes: value(b"DATABYTES").and_then(|value| crate::read::int_of(&value)),
        }
    }

    fn rule(&self, client: IpAddr) -> std::io::Result<Option<Rule>> {
        let ip = client.to_canonical().to_string();
        let client = Client { ip: ip.as_bytes(), host: None, info: None };
        find(client, |key| match &self.database {
            Some(database) => wire::cdb::find(&database[..], key, DATA_LEN_MAX),
            None => Ok(self.text.get(key).cloned()),
        })
    }

    /// Names of variables in the text that say nothing here, once each.
    #[must_use]
    pub fn without_effect(&self) -> Vec<Vec<u8>> {
        let variables = self.text.values().flat_map(|data| data.split(|b| *b == 0).filter_map(|part| part.strip_prefix(b"+")));
        let names = variables.filter_map(|variable| variable.split(|b| *b == b'=').next());
        let mut names: Vec<Vec<u8>> = names.filter(|name| !KNOWN.contains(name)).map(<[u8]>::to_vec).collect();
        names.sort();
        names.dedup();
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path()).unwrap();
        std::fs::create_dir_all(root.control()).unwrap();
        for (name, text) in files {
            std::fs::write(root.control_file(name), text).unwrap();
        }
        (dir, root)
    }

    const RULES: &str = "# ours\n127.:allow,RELAYCLIENT=\"\"\n192.0.2.7:allow,RELAYCLIENT=/@gate/,DATABYTES=\"10\",QMAILQUEUE=/x y/\n\
        192.0.2.10-12:deny\n192.0.2.10:allow\n10.:allow,DATABYTES=\"0\"\r\n:deny\n";

    #[test]
    fn the_most_special_rule_counts_in_text_and_database() {
        let mut writer = wire::cdb::Writer::new();
        for line in RULES.replace('\r', "").split_inclusive('\n') {
            compile(line.as_bytes()).unwrap().iter().for_each(|(key, data)| writer.add(key, data));
        }
        let database = writer.finish().unwrap();
        for files in [[(TEXT, RULES.as_bytes()), (DATABASE, b"not looked at")].as_slice(), &[(DATABASE, &database[..])]] {
            let (_dir, root) = root(files);
            let rules = ClientRules::read(&root).unwrap();
            for (client, denied, relay, databytes) in [
                ("127.0.0.2", false, Some(""), None),
                ("::ffff:127.0.0.2", false, Some(""), None),
                ("192.0.2.7", false, Some("@gate"), Some(10)),
                ("192.0.2.10", true, None, None),
                ("192.0.2.12", true, None, None),
                ("192.0.2.13", true, None, None),
                ("10.9.8.7", false, None, Some(0)),
                ("100.9.8.7", true, None, None),
                ("::1", true, None, None),
            ] {
                let relay_client = relay.map(|suffix: &str| suffix.as_bytes().to_vec());
                let expected = ClientRule { is_denied: denied, relay_client, databytes };
                assert_eq!(rules.of(client.parse().unwrap()), expected, "{client}");
            }
        }
        let (_dir, root) = root(&[(TEXT, RULES.as_bytes())]);
        assert_eq!(ClientRules::read(&root).unwrap().without_effect(), [b"QMAILQUEUE".to_vec()]);
    }

    #[test]
    fn without_rules_everybody_may_connect_and_nobody_may_relay() {
        for files in
            [&[][..], &[(TEXT, &b""[..])], &[(TEXT, b"# none\n")], &[(DATABASE, &wire::cdb::Writer::new().finish().unwrap())]]
        {
            let (_dir, root) = root(files);
            assert_eq!(ClientRules::read(&root).unwrap().of("192.0.2.1".parse().unwrap()), ClientRule::default());
        }
    }

    #[test]
    fn what_is_no_rule_is_named_and_lets_nobody_in() {
        for (file, text, problem) in [
            (TEXT, &b"10.:allow\n10.1:denied\n"[..], "control/tcp.smtp: line 2: `10.1:denied` is no rule"),
            (TEXT, b"10.:allow,RELAYCLIENT\n", "line 1: "),
            (TEXT, b"\n\n10.\n", "line 3: `10.` has no colon"),
            (TEXT, b"1-x.:allow\n", "line 1: "),
            (DATABASE, b"", "control/tcp.smtp.cdb: is no database"),
            (DATABASE, b"# text\n:deny\n", "control/tcp.smtp.cdb: is no database"),
        ] {
            let (_dir, root) = root(&[(file, text)]);
            let error = ClientRules::read(&root).unwrap_err();
            assert!(error.is_temporary() && error.to_string().contains(problem), "{error}");
        }
    }
}
