//! What a rule of `control/tcp.smtp`, a listener's options or the environment say of one connection (qmail-family §2.4).

use std::time::Duration;

use control::Plugins;
use smtp::server::{Stage, Stages, Terms};

/// Programs for one connection.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Programs {
    /// In the place of qmail-queue.
    pub(crate) queue: Option<Vec<u8>>,
    /// Judges recipients.
    pub(crate) check: Option<Vec<u8>>,
    /// Those of relay clients, too.
    pub(crate) checks_relay_clients: bool,
    /// What the programs find in their environment for the rule's sake.
    pub(crate) environment: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The terms, by the values of variables; `greet_delay_s` is that of the control file.
pub(crate) fn terms<V: AsRef<[u8]>>(value: impl Fn(&str) -> Option<V>, greet_delay_s: u64) -> Terms {
    let number = |name: &str| value(name).and_then(|value| control::read::int_of(value.as_ref()));
    let delay_s = number("SMTPD_GREETDELAY").or_else(|| number("GREETDELAY")).unwrap_or(greet_delay_s);
    Terms {
        greet_delay: Duration::from_secs(delay_s.min(control::smtpd::GREET_DELAY_MAX_S)),
        any_helo: value("NOBADHELO").is_some(),
        any_sender: value("DISABLE_BADMAILFROM").is_some(),
        null_senders: number("REJECTNULLSENDERS").map(|number| number > 0),
        any_number: value("DISABLE_MAXRCPT").is_some(),
        bad_recipients_max: number("BRTLIMIT").map(|number| u32::try_from(number).unwrap_or(u32::MAX)),
    }
}

/// RBLSMTPD, as rblsmtpd(1) has it: `-TEXT` refuses for good, TEXT for now, and nothing refuses nobody.
pub(crate) fn listed(value: Option<&[u8]>) -> Option<Box<[u8]>> {
    match value? {
        [] => None,
        [b'-', text @ ..] => Some([b"553 5.7.1 ", text].concat().into()),
        text => Some([b"451 4.7.1 ", text].concat().into()),
    }
}

/// The stages at which there are plugins; and those of a transaction, which a plugin of another stage may refuse (`LM`, `LR`, `LD`).
pub(crate) fn stages(plugins: &Plugins) -> Stages {
    if plugins.is_empty() {
        return Stages::default();
    }
    let with =
        |stages: Stages, (stage, plugins): (Stage, &Vec<Vec<u8>>)| if plugins.is_empty() { stages } else { stages.with(stage) };
    Stage::ALL.into_iter().zip(&plugins.0).fold(Stages::default(), with).with(Stage::Mail).with(Stage::Rcpt).with(Stage::Data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_and_their_bounds() {
        let none = |_: &str| None::<&[u8]>;
        assert_eq!(terms(none, 0), Terms::default());
        assert_eq!(terms(none, 5).greet_delay, Duration::from_secs(5));
        let all = |name: &str| match name {
            "SMTPD_GREETDELAY" => Some("99999"),
            "REJECTNULLSENDERS" => Some("0"),
            "BRTLIMIT" => Some("7x"),
            "NOBADHELO" | "DISABLE_BADMAILFROM" | "DISABLE_MAXRCPT" => Some(""),
            _ => None,
        };
        let expected = Terms {
            greet_delay: Duration::from_secs(control::smtpd::GREET_DELAY_MAX_S),
            any_helo: true,
            any_sender: true,
            null_senders: Some(false),
            any_number: true,
            bad_recipients_max: Some(7),
        };
        assert_eq!(terms(all, 5), expected);
    }

    #[test]
    fn what_a_list_says() {
        for (value, reply) in [
            (None, None),
            (Some(""), None),
            (Some("-go away"), Some("553 5.7.1 go away")),
            (Some("later"), Some("451 4.7.1 later")),
            (Some("-"), Some("553 5.7.1 ")),
        ] {
            assert_eq!(listed(value.map(str::as_bytes)).as_deref(), reply.map(str::as_bytes));
        }
    }

    #[test]
    fn a_stage_has_the_number_of_its_section() {
        let names = ["connection", "helo", "mail", "rcpt", "data", "auth"];
        assert_eq!(control::hooks::SECTIONS, names);
        for (number, stage) in Stage::ALL.into_iter().enumerate() {
            let mut plugins = Plugins::default();
            plugins.0[number].push(b"/x".to_vec());
            let of_transactions = [Stage::Mail, Stage::Rcpt, Stage::Data];
            for other in Stage::ALL {
                assert_eq!(stages(&plugins).has(other), other == stage || of_transactions.contains(&other));
            }
            assert_eq!(format!("{stage:?}").to_ascii_lowercase(), names[number]);
        }
    }
}
