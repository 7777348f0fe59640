//! Verdicts on their way back to qmail-send, and the texts that no server had a part in: those of the classic qmail-remote.

use ipc::field::Verdict;
use ipc::job::{Answer, Outcome};
use ipc::{DATAGRAM_LEN_MAX, Message as _, clip};

/// A verdict on a whole job or one recipient, with its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    pub verdict: Verdict,
    pub text: String,
    /// The server that took it reports what becomes of it (RFC 3461).
    pub passed_on: bool,
    /// The server that took it keeps the time to deliver it by (RFC 2852).
    pub keeps_time: bool,
}

impl Judgement {
    pub fn deferral(text: impl Into<String>) -> Self {
        Self { verdict: Verdict::Deferral, text: text.into(), passed_on: false, keeps_time: false }
    }

    pub fn failure(text: impl Into<String>) -> Self {
        Self { verdict: Verdict::Failure, text: text.into(), passed_on: false, keeps_time: false }
    }
}

impl From<&smtp::client::Outcome> for Judgement {
    fn from(outcome: &smtp::client::Outcome) -> Self {
        use smtp::client::Outcome as Said;
        let verdict = match outcome {
            Said::Delivered(_) => Verdict::Success,
            Said::Deferred(_) | Said::Next => Verdict::Deferral,
            Said::Failed(_) => Verdict::Failure,
        };
        Self { verdict, text: outcome.text().to_owned(), passed_on: false, keeps_time: false }
    }
}

/// No address could be connected to.
pub const NO_CONNECTION: &str = "Sorry, I wasn't able to establish an SMTP connection. (#4.4.1)\n";
/// A connection that ended before anybody was named on it.
#[must_use]
pub fn died(host: &str) -> String {
    format!("Connected to {host} but connection died. (#4.4.2)\n")
}

/// The same as [`NO_CONNECTION`] of an LMTP server (control/lmtproutes).
const NO_LMTP_CONNECTION: &str = "Sorry, I wasn't able to establish an LMTP connection. (#4.4.1)\n";
/// And of a relay of control/qmtproutes.
pub const NO_QMTP_CONNECTION: &str = "Sorry, I wasn't able to establish a QMTP connection. (#4.4.1)\n";
/// Two control files that do not go together.
pub const NO_TLS_BY_QMTP: &str = "control/tlspolicy demands TLS for a host of control/qmtproutes, and QMTP has none. (#4.3.5)\n";
/// The DNS did not answer.
pub const DNS_TEMPORARY: &str = "CNAME lookup failed temporarily. (#4.4.3)\n";
/// A relay of smtproutes does not exist: our own mistake, so the mail waits for its repair.
pub const NO_RELAY: &str = "Sorry, I couldn't find any host by that name. (#4.1.2)\n";
/// The name exists without MX and addresses.
pub const NO_EXCHANGER: &str = "Sorry, I couldn't find a mail exchanger or IP address. (#5.4.4)\n";
/// RFC 7505 §4.
pub const NULL_MX: &str = "Sorry, that domain does not accept mail. (#5.1.10)\n";
pub const LOOP_TO_ONESELF: &str = "Sorry. Although I'm listed as a best-preference MX or A for that host,\n\
    it isn't in my control/locals file, so I don't treat it as local. (#5.4.6)\n";
pub const UNREADABLE: &str = "Unable to read message. (#4.3.0)\n";

/// No address could be connected to.
#[must_use]
pub fn no_connection(protocol: smtp::client::Protocol) -> &'static str {
    match protocol {
        smtp::client::Protocol::Smtp => NO_CONNECTION,
        smtp::client::Protocol::Lmtp => NO_LMTP_CONNECTION,
    }
}

/// The name does not exist. `host` is printable.
#[must_use]
pub fn no_such_host(host: &str) -> String {
    format!("Sorry, I couldn't find any host named {host}. (#5.1.2)\n")
}

/// RFC 8689 §5: no host for the message supports REQUIRETLS; `host` was the last one.
#[must_use]
pub fn no_requiretls(host: &str) -> String {
    format!("{host} does not support REQUIRETLS, which this message needs. (#5.7.30)\n")
}

/// RFC 2852 §4.1.3: no host for the message keeps the time to deliver it by; `host` was the last one.
#[must_use]
pub fn no_deliverby(host: &str) -> String {
    format!("{host} does not support DELIVERBY, which this message needs. (#5.3.3)\n")
}

/// RFC 2852 §4.1.2: the least time of `host` is longer than what is left.
#[must_use]
pub fn too_little_time(host: &str) -> String {
    format!("{host} wants more time than is left to deliver this message by. (#5.4.7)\n")
}

/// The time to deliver the message by is over.
pub const TOO_LATE: &str = "Sorry, it could not be delivered by the time that was asked for. (#5.4.7)\n";

/// The datagrams of a job's answer: as many as the texts need, the last one marked.
#[must_use]
pub fn answers(number: u64, judgements: Vec<Judgement>) -> Vec<Vec<u8>> {
    /// Room for the fields around the outcomes, and for those around a text.
    const FRAME_LEN: usize = 64;
    let (mut datagrams, mut outcomes, mut len) = (Vec::new(), Vec::new(), FRAME_LEN);
    let those = |is: fn(&Judgement) -> bool| {
        let numbered = (0u32..).zip(&judgements);
        numbered.filter(|(_, judgement)| is(judgement)).map(|(recipient, _)| recipient).collect::<Vec<u32>>()
    };
    let (passed_on, time_kept) = (those(|judgement| judgement.passed_on), those(|judgement| judgement.keeps_time));
    if !passed_on.is_empty() {
        datagrams.push(Answer::PassedOn { number, recipients: passed_on }.encode());
    }
    if !time_kept.is_empty() {
        datagrams.push(Answer::TimeKept { number, recipients: time_kept }.encode());
    }
    for (recipient, judgement) in (0u32..).zip(judgements) {
        let text = clip(judgement.text.as_bytes());
        if len + text.len() + FRAME_LEN > DATAGRAM_LEN_MAX {
            datagrams.push(done(number, std::mem::take(&mut outcomes), false));
            len = FRAME_LEN;
        }
        len += text.len() + FRAME_LEN;
        outcomes.push(Outcome { recipient, verdict: judgement.verdict, text: text.into() });
    }
    datagrams.push(done(number, outcomes, true));
    datagrams
}

fn done(number: u64, outcomes: Vec<Outcome>, last: bool) -> Vec<u8> {
    Answer::Done { number, outcomes, untried: Vec::new(), last }.encode()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_texts_fit_into_datagrams_and_each_recipient_stands_once() {
        for (count, len) in [(0, 0), (1, 0), (1, 5000), (100, 100), (100, 4096), (100, 9999)] {
            let datagrams = answers(7, vec![Judgement::deferral("x".repeat(len)); count]);
            let mut next = 0;
            for (at, datagram) in datagrams.iter().enumerate() {
                assert!(datagram.len() <= DATAGRAM_LEN_MAX);
                let Answer::Done { number, outcomes, untried, last } = Answer::decode(datagram).unwrap() else { panic!() };
                assert_eq!((number, untried.len(), last), (7, 0, at + 1 == datagrams.len()));
                for outcome in outcomes {
                    assert_eq!((outcome.recipient, outcome.text.len()), (next, len.min(4096)));
                    next += 1;
                }
            }
            assert_eq!(next as usize, count);
        }
    }

    #[test]
    fn who_is_passed_on_is_said_first() {
        let judgement = |passed_on: bool| Judgement { passed_on, keeps_time: !passed_on, ..Judgement::failure("no") };
        let datagrams = answers(7, [true, false, true].map(judgement).to_vec());
        let passed_on = Answer::PassedOn { number: 7, recipients: vec![0, 2] };
        let time_kept = Answer::TimeKept { number: 7, recipients: vec![1] };
        let said = [&datagrams[0], &datagrams[1]].map(|datagram| Answer::decode(datagram));
        assert_eq!((said, datagrams.len()), ([Ok(passed_on), Ok(time_kept)], 3));
    }
}
