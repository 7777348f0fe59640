//! What the lists of refusals, a rule of `control/tcp.smtp` or the environment say of one connection (qmail-family §2.4), for SMTP and QMTP.

use std::time::Duration;

use smtp::server::{Refusals, Terms};

/// The terms, by the values of variables; `greet_delay_s` is that of the control file.
pub fn terms<V: AsRef<[u8]>>(value: impl Fn(&str) -> Option<V>, greet_delay_s: u64) -> Terms {
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
#[must_use]
pub fn listed(value: Option<&[u8]>) -> Option<Box<[u8]>> {
    match value? {
        [] => None,
        [b'-', text @ ..] => Some([b"553 5.7.1 ", text].concat().into()),
        text => Some([b"451 4.7.1 ", text].concat().into()),
    }
}

/// The lists as the machines have them.
#[must_use]
pub fn refusals(lists: control::Refusals) -> Refusals {
    Refusals {
        bad_senders: lists.bad_senders,
        bad_senders_of_strangers: lists.bad_senders_of_strangers,
        bad_recipients: lists.bad_recipients,
        bad_recipients_of_strangers: lists.bad_recipients_of_strangers,
        bad_helos: lists.bad_helos,
        bad_helos_of_strangers: lists.bad_helos_of_strangers,
        valid_recipients: lists.valid_recipients,
        null_senders: lists.null_senders,
        relay_tests: lists.relay_tests,
    }
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
}
