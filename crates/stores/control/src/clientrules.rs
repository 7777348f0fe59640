//! `control/tcp.smtp`, or as tcprules(1) compiles it `control/tcp.smtp.cdb`: who may connect to the service `smtp`, and what holds for him.
//!
//! Guarantees: the database is read as a whole, so that nothing is opened once strangers talk. A line that is no rule is an error with its
//! number, never a rule less: what a `deny` was meant to keep out stays out; nor a variable less. The text comes first, a database counts where there is none.
//! Never here: names of clients (`=host`) and ident (`user@`). This server asks for neither; such rules fit nobody.

use std::collections::HashMap;
use std::net::IpAddr;

use users::rules::{Client, DATA_LEN_MAX, Rule, compile, find};

use crate::{ControlError, Root};

/// The file of rules.
pub const TEXT: &str = "tcp.smtp";
/// The same, compiled.
pub const DATABASE: &str = "tcp.smtp.cdb";
/// Variables that say something to qmail-smtpd itself (qmail-family §2.4). All of a rule's are in the environment of the programs that
/// qmail-hook runs.
const KNOWN: [&[u8]; 15] = [
    b"RELAYCLIENT",
    b"DATABYTES",
    b"QMAILQUEUE",
    b"RCPTCHECK",
    b"RCPTCHECKRELAYCLIENT",
    b"SMTPD_GREETDELAY",
    b"GREETDELAY",
    b"NOBADHELO",
    b"DISABLE_BADMAILFROM",
    b"DISABLE_MAXRCPT",
    b"DISABLE_SPP",
    b"REJECTNULLSENDERS",
    b"BRTLIMIT",
    b"ENABLE_SPP",
    b"RBLSMTPD",
];
/// Longest variables of a rule in all, in bytes: they go along with each question to qmail-hook.
const VARIABLES_LEN_MAX: usize = 8 * 1024;
const TOO_MUCH: &str = "has more than 8192 bytes of variables";

/// Of a rule's data.
fn variables_len(data: &[u8]) -> usize {
    data.split(|b| *b == 0).filter_map(|part| part.strip_prefix(b"+")).map(<[u8]>::len).sum()
}

/// What counts for a client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientRule {
    pub is_denied: bool,
    /// He may send anywhere; this is appended to his recipients (RELAYCLIENT).
    pub relay_client: Option<Vec<u8>>,
    /// Bytes of a message instead of `databytes`; 0 for no bound.
    pub databytes: Option<u64>,
    /// All variables of the rule, in their order.
    pub variables: Vec<(Vec<u8>, Vec<u8>)>,
}

impl ClientRule {
    /// The value of a variable; of several the last.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&[u8]> {
        self.variables.iter().rev().find(|(known, _)| known == name.as_bytes()).map(|(_, value)| &value[..])
    }
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
            let wrong = |why: &str| Err(ControlError::new(&root.control_file(DATABASE), why));
            let records = rules.database.as_deref().and_then(wire::cdb::records).unwrap_or_default();
            if !is_sound {
                return wrong("is no database of tcprules; compile it again");
            }
            if let Some((address, _)) = records.iter().find(|(_, data)| variables_len(data) > VARIABLES_LEN_MAX) {
                return wrong(&format!("{TOO_MUCH} for `{}`", wire::escape::visible(address)));
            }
            return Ok(rules);
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
            if records.iter().any(|(_, data)| variables_len(data) > VARIABLES_LEN_MAX) {
                return Err(wrong(TOO_MUCH));
            }
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
        let mut found = ClientRule { is_denied: rule.is_denied, ..ClientRule::default() };
        for variable in &rule.variables {
            let Some(equals) = variable.iter().position(|b| *b == b'=') else { continue };
            let (name, value) = variable.split_at_checked(equals).unwrap_or_default();
            found.variables.push((name.to_vec(), value.get(1..).unwrap_or_default().to_vec()));
        }
        // The last one counts, as in an environment.
        found.relay_client = found.value("RELAYCLIENT").map(<[u8]>::to_vec);
        found.databytes = found.value("DATABYTES").and_then(crate::read::int_of);
        found
    }

    /// All values that a variable has in any rule: what qmail-hook may have to run.
    #[must_use]
    pub fn values_of(&self, name: &str) -> Vec<Vec<u8>> {
        let records = self.database.as_deref().and_then(wire::cdb::records).unwrap_or_default();
        let data = self.text.values().map(Vec::as_slice).chain(records.iter().map(|(_, data)| data.as_ref()));
        let variables = data.flat_map(|data| data.split(|b| *b == 0).filter_map(|part| part.strip_prefix(b"+")));
        variables.filter_map(|variable| Some(variable.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?.to_vec())).collect()
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

    const RULES: &str = "# ours\n127.:allow,RELAYCLIENT=\"\"\n192.0.2.7:allow,RELAYCLIENT=/@gate/,DATABYTES=\"10\",QMAILQUEUE=/x y/,FOO=\"1\"\n\
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
                let expected = ClientRule { is_denied: denied, relay_client, databytes, variables: Vec::new() };
                let found = rules.of(client.parse().unwrap());
                assert_eq!(found.value("QMAILQUEUE"), (client == "192.0.2.7").then_some(&b"x y"[..]));
                assert_eq!(ClientRule { variables: Vec::new(), ..found }, expected, "{client}");
            }
            assert_eq!(rules.values_of("QMAILQUEUE"), [b"x y".to_vec()]);
        }
        let (_dir, root) = root(&[(TEXT, RULES.as_bytes())]);
        assert_eq!(ClientRules::read(&root).unwrap().without_effect(), [b"FOO".to_vec()]);
    }

    #[test]
    fn more_variables_than_can_be_handed_on_are_an_error_in_text_and_database() {
        for (len, is_right) in [(VARIABLES_LEN_MAX - 2, true), (VARIABLES_LEN_MAX - 1, false)] {
            let line = format!("10.:deny\n192.0.2.1:allow,A=/{}/,QMAILQUEUE=//\n", "x".repeat(len - "QMAILQUEUE=".len()));
            let mut writer = wire::cdb::Writer::new();
            for line in line.split_inclusive('\n') {
                compile(line.as_bytes()).unwrap().iter().for_each(|(key, data)| writer.add(key, data));
            }
            let database = writer.finish().unwrap();
            for (name, bytes, said) in [(TEXT, line.as_bytes(), "line 2: "), (DATABASE, &database[..], "for `192.0.2.1`")] {
                let (_dir, root) = root(&[(name, bytes)]);
                match ClientRules::read(&root) {
                    Ok(rules) => {
                        assert!(is_right, "{name} {len}");
                        assert_eq!(rules.of([192, 0, 2, 1].into()).variables.len(), 2, "{name}");
                    }
                    Err(error) => {
                        let error = error.to_string();
                        assert!(!is_right && error.contains(TOO_MUCH) && error.contains(said), "{error}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_rule_for_an_address_of_version_4_in_the_form_of_version_6_fits() {
        let text = b"::ffff:192.0.2.1:deny\n[::FFFF:192.0.2.2]:deny\n::ffff:c000:0203:deny\n::ffff:10.0.0.0/104:deny\n:allow\n";
        let (_dir, root) = root(&[(TEXT, text)]);
        let rules = ClientRules::read(&root).unwrap();
        for (client, is_denied) in [
            ("192.0.2.1", true),
            ("::ffff:192.0.2.1", true),
            ("192.0.2.2", true),
            ("192.0.2.3", true),
            ("192.0.2.4", false),
            ("10.9.9.9", true),
            ("11.9.9.9", false),
        ] {
            assert_eq!(rules.of(client.parse().unwrap()).is_denied, is_denied, "{client}");
        }
        for bad in ["::ffff:10.0.0.0/100:deny\n", "::ffff:0.0.0.0/96:deny\n"] {
            let (_dir, root) = self::root(&[(TEXT, bad.as_bytes())]);
            assert!(ClientRules::read(&root).unwrap_err().to_string().contains("is no rule"), "{bad}");
        }
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
