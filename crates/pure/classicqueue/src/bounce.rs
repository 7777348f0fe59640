//! bounce/N: what was said of the recipients that failed so far, as it will stand in the bounce (QSBMF).
//!
//! A paragraph is `<address>:`, the lines of the report, an empty line. No report has an empty line in it, for qmail-send fills those with
//! a `/`. An address has a `_` where it had a newline.

use wire::Address;

/// What was said of one recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paragraph {
    /// `None`: text that names nobody.
    pub address: Option<Address>,
    pub report: Vec<u8>,
}

/// The paragraphs of a bounce's text. No byte of a report is lost, whoever wrote the file: text without an address is a paragraph of its own
/// at the front, or goes with the one before.
#[must_use]
pub fn paragraphs(text: &[u8]) -> Vec<Paragraph> {
    let mut found: Vec<Paragraph> = Vec::new();
    let mut is_first_line = true;
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        if line == b"\n" {
            is_first_line = true;
            continue;
        }
        match head(line).filter(|_| is_first_line) {
            Some(address) => found.push(Paragraph { address: Some(address), report: Vec::new() }),
            None => {
                if found.is_empty() {
                    found.push(Paragraph { address: None, report: Vec::new() });
                }
                if let Some(last) = found.last_mut() {
                    last.report.extend_from_slice(line);
                }
            }
        }
        is_first_line = false;
    }
    found
}

/// `<address>:`
fn head(line: &[u8]) -> Option<Address> {
    Address::new(line.strip_suffix(b"\n")?.strip_suffix(b">:")?.strip_prefix(b"<")?).ok()
}

/// As [`paragraphs`] reads it, for one recipient more.
#[must_use]
pub fn bounce_text(address: &[u8], report: &[u8]) -> Vec<u8> {
    let mut text = vec![b'<'];
    text.extend(address.iter().map(|byte| if matches!(byte, b'\n' | 0) { b'_' } else { *byte }));
    text.extend_from_slice(b">:\n");
    text.extend_from_slice(report);
    if !report.is_empty() && !report.ends_with(b"\n") {
        text.push(b'\n');
    }
    for at in (1..text.len().saturating_sub(1)).rev() {
        if text.get(at) == Some(&b'\n')
            && text.get(at.wrapping_sub(1)) == Some(&b'\n')
            && let Some(byte) = text.get_mut(at)
        {
            *byte = b'/';
        }
    }
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn a(text: &str) -> Option<Address> {
        Address::new(text.as_bytes()).ok()
    }

    #[test]
    fn paragraphs_of_the_reference() {
        let text = b"<ann@a.example>:\nSorry, no mailbox here by that name. (#5.1.1)\n\n<bob@b.example>:\n192.0.2.1 does not like recipient.\nRemote host said: 550 no\nGiving up on 192.0.2.1.\n\n";
        let found = paragraphs(text);
        assert_eq!(found.len(), 2);
        assert_eq!(
            found[0],
            Paragraph { address: a("ann@a.example"), report: b"Sorry, no mailbox here by that name. (#5.1.1)\n".to_vec() }
        );
        assert_eq!(found[1].address, a("bob@b.example"));
        assert!(found[1].report.ends_with(b"Giving up on 192.0.2.1.\n"));
        let again: Vec<u8> =
            found.iter().flat_map(|one| bounce_text(one.address.as_ref().unwrap().as_bytes(), &one.report)).collect();
        assert_eq!(again, text);
    }

    #[test]
    fn text_that_names_nobody_is_kept() {
        assert_eq!(paragraphs(b""), []);
        assert_eq!(paragraphs(b"what is this"), [Paragraph { address: None, report: b"what is this".to_vec() }]);
        let one = paragraphs(b"<ann@a>:\nNo.\n\nmore of it\n<bob@b>:\nin the middle\n");
        assert_eq!(one, [Paragraph { address: a("ann@a"), report: b"No.\nmore of it\n<bob@b>:\nin the middle\n".to_vec() }]);
    }

    #[test]
    fn a_report_has_no_empty_line() {
        assert_eq!(bounce_text(b"a@b", b"one\n\n\ntwo"), b"<a@b>:\none\n//two\n\n".map(|byte| byte));
        assert_eq!(bounce_text(b"a@b", b""), b"<a@b>:\n\n");
        assert_eq!(bounce_text(b"a\nb@b", b"x\n"), b"<a_b@b>:\nx\n\n");
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(report in "[a-z<>:\n]{0,40}", address in "[a-z<>:@]{0,10}") {
            let found = paragraphs(&bounce_text(address.as_bytes(), report.as_bytes()));
            prop_assert_eq!(found.len(), 1);
            prop_assert_eq!(&found[0].address, &a(&address));
            let text = |bytes: &[u8]| bytes.iter().copied().filter(|byte| !matches!(byte, b'\n' | b'/')).collect::<Vec<u8>>();
            prop_assert_eq!(text(&found[0].report), text(report.as_bytes()));
        }
    }
}
