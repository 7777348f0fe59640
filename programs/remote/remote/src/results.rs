//! What the classic qmail-remote prints (qmail-remote(8), RESULTS): a report about each recipient, then one about the message, each with
//! a NUL behind it. Programs that read it (qmail-rspawn, filters in its place) know it by heart.
//!
//! A report about a recipient begins with `r` (accepted), `h` (refused for good) or `s` (for now); the one about the message with `K`,
//! `Z` or `D`. It is the message's that counts, unless `h` or `s` says otherwise. A failure before anybody was named
//! has no reports about recipients. Where several transactions came to several ends, one that was successful is the message's, and
//! recipients with another end have their own.

use ipc::field::Verdict;

use crate::report::Judgement;

/// How the client's text about a refused recipient goes on behind the address of the server.
const REFUSED: &str = " does not like recipient.";
/// Only where recipients had been accepted before do texts say this.
const AFTER_RECIPIENTS: [&str; 3] = [" failed after I sent the message.", " failed on DATA command.", "Possible duplicate!"];

/// The reports; `judgements` are those of the recipients, in their order.
#[must_use]
pub fn results(judgements: &[Judgement]) -> Vec<u8> {
    let mut reports: Vec<Vec<u8>> = Vec::new();
    let of_message = message(judgements);
    for judgement in judgements {
        let is_own = refuser(judgement).is_some() || of_message.is_some_and(|of_message| !is_told_by(of_message, judgement));
        reports.push(if is_own { own(judgement) } else { b"r".to_vec() });
    }
    if of_message.is_some_and(|of_message| !is_after_recipients(of_message)) {
        // Nobody says anything about those.
        while reports.last().is_some_and(|report| report == b"r") {
            reports.pop();
        }
    }
    reports.push(match (of_message, judgements.iter().find_map(refuser)) {
        (Some(judgement), _) => [&[judgement.verdict.letter()], judgement.text.as_bytes()].concat(),
        (None, server) => [b"D", giving_up(server.unwrap_or_default()).as_bytes()].concat(),
    });
    let ended = reports.into_iter().map(|report| report.into_iter().filter(|b| *b != 0).chain([0]).collect::<Vec<u8>>());
    ended.collect::<Vec<_>>().concat()
}

/// The judgement that speaks for the message: of those that are not about one recipient, the best. `None`: all were refused.
fn message(judgements: &[Judgement]) -> Option<&Judgement> {
    let others = || judgements.iter().filter(|judgement| refuser(judgement).is_none());
    let of = |verdict: Verdict| others().find(|judgement| judgement.verdict == verdict);
    of(Verdict::Success).or_else(|| of(Verdict::Deferral)).or_else(|| of(Verdict::Failure))
}

/// Does the report about the message say what became of this recipient?
fn is_told_by(message: &Judgement, judgement: &Judgement) -> bool {
    let is_same = message.verdict == judgement.verdict;
    is_same && (judgement.verdict == Verdict::Success || message.text == judgement.text)
}

fn own(judgement: &Judgement) -> Vec<u8> {
    let letter = if judgement.verdict == Verdict::Failure { b'h' } else { b's' };
    // Where all were refused the client says so in each text; here the report about the message does.
    let giving_up = refuser(judgement).map(giving_up).unwrap_or_default();
    let text = judgement.text.strip_suffix(giving_up.as_str()).unwrap_or(&judgement.text);
    [&[letter], text.as_bytes()].concat()
}

fn giving_up(server: &str) -> String {
    format!("Giving up on {server}.\n")
}

/// The server that refused this recipient alone.
fn refuser(judgement: &Judgement) -> Option<&str> {
    let line = judgement.text.lines().next().filter(|_| judgement.verdict != Verdict::Success)?;
    line.strip_suffix(REFUSED)
}

fn is_after_recipients(judgement: &Judgement) -> bool {
    judgement.verdict == Verdict::Success || AFTER_RECIPIENTS.iter().any(|text| judgement.text.contains(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judgement(text: &str) -> Judgement {
        let (letter, text) = text.split_at(1);
        match letter {
            "K" => Judgement { verdict: Verdict::Success, ..Judgement::failure(text) },
            "Z" => Judgement::deferral(text),
            _ => Judgement::failure(text),
        }
    }

    #[test]
    fn reports_in_order() {
        const TAKEN: &str = "Kh accepted message.\nRemote host said: 250 ok\n";
        const REFUSED: &str = "Dh does not like recipient.\nRemote host said: 550 no\n";
        const GIVEN_UP: &str = "Dh does not like recipient.\nRemote host said: 550 no\nGiving up on h.\n";
        const GREY: &str = "Zh does not like recipient.\nRemote host said: 450 later\n";
        const DIED: &str = "ZConnected to h but connection died. (#4.4.2)\n";
        const DUPLICATE: &str = "ZConnected to h but connection died. Possible duplicate! (#4.4.2)\n";
        let h = |text: &str| format!("h{}\0", &text[1..]);
        let s = |text: &str| format!("s{}\0", &text[1..]);
        for (judgements, expected) in [
            (&[TAKEN][..], format!("r\0{TAKEN}\0")),
            (&[TAKEN, TAKEN], format!("r\0r\0{TAKEN}\0")),
            (&[REFUSED], format!("{}DGiving up on h.\n\0", h(REFUSED))),
            (&[GIVEN_UP, GIVEN_UP], format!("{0}{0}DGiving up on h.\n\0", h(REFUSED))),
            (&[GREY, REFUSED], format!("{}{}DGiving up on h.\n\0", s(GREY), h(REFUSED))),
            (&[TAKEN, REFUSED, GREY], format!("r\0{}{}{TAKEN}\0", h(REFUSED), s(GREY))),
            (&[DIED], format!("{DIED}\0")),
            (&[DIED, DIED], format!("{DIED}\0")),
            (&[DIED, REFUSED, DIED], format!("r\0{}{DIED}\0", h(REFUSED))),
            (&[DUPLICATE, DUPLICATE], format!("r\0r\0{DUPLICATE}\0")),
            (
                &["Dh failed after I sent the message.\n", REFUSED],
                format!("r\0{}Dh failed after I sent the message.\n\0", h(REFUSED)),
            ),
            // Two transactions with two ends.
            (
                &[TAKEN, DUPLICATE, "Kh accepted message.\nRemote host said: 250 too\n"],
                format!("r\0{}r\0{TAKEN}\0", s(DUPLICATE)),
            ),
            (&[DIED, "Dno\n"], format!("r\0{}{DIED}\0", h("Dno\n"))),
        ] {
            let judgements: Vec<Judgement> = judgements.iter().map(|text| judgement(text)).collect();
            let got = results(&judgements);
            assert_eq!(String::from_utf8(got).unwrap(), expected);
        }
    }
}
