//! A `.qmail` file's text as a list of instructions (dot-qmail(5)).
//!
//! Reading never fails: where the classic program would stop with an error after it had carried out the lines before, the plan
//! ends with that [`Refusal`], so that whoever carries it out does the same lines and then says the same text.

use std::fmt;

/// One line that does something. The bytes are the line's, without the mark in front and without blanks at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instruction<'a> {
    /// Append to this mbox file: `/path` or `./path`.
    Mbox(&'a [u8]),
    /// Deliver into this Maildir; the path ends with `/`.
    Maildir(&'a [u8]),
    /// `/bin/sh -c` this.
    Program(&'a [u8]),
    /// Send a copy to this address.
    Forward(&'a [u8]),
}

/// Why a plan ends before its last line, or cannot begin. All are temporary: the owner can repair the file, and no mail is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The first line is empty: somebody is still writing the file.
    FirstLineBlank,
    /// A file or Maildir line in a forward-only file.
    FileButForwardOnly,
    /// A program line in a forward-only file.
    ProgramButForwardOnly,
    /// A line with a NUL in it. (Classic: the line silently ends there.)
    Nul,
}

impl Refusal {
    /// Always: see the type.
    #[must_use]
    pub fn is_temporary(self) -> bool {
        true
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FirstLineBlank => "Uh-oh: first line of .qmail file is blank. (#4.2.1)",
            Self::FileButForwardOnly => "Uh-oh: .qmail has file delivery but has x bit set. (#4.7.0)",
            Self::ProgramButForwardOnly => "Uh-oh: .qmail has prog delivery but has x bit set. (#4.7.0)",
            Self::Nul => "Uh-oh: .qmail file holds a NUL. (#4.7.0)",
        })
    }
}

impl std::error::Error for Refusal {}

/// What a `.qmail` file says, in its order. Forwards are all sent together, after everything else (dot-qmail(5)).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan<'a> {
    /// To be carried out in order.
    pub instructions: Vec<Instruction<'a>>,
    /// Said after the instructions, in place of sending the forwards.
    pub refusal: Option<Refusal>,
}

impl<'a> Plan<'a> {
    /// Reads `text`; an empty file is read as `default_delivery`, which the owner's x bit does not restrict.
    /// `is_forward_only`: the file has its owner's x bit.
    #[must_use]
    pub fn new(text: &'a [u8], is_forward_only: bool, default_delivery: &'a [u8]) -> Self {
        let (text, mut is_forward_only) = if text.is_empty() { (default_delivery, false) } else { (text, is_forward_only) };
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        let mut plan = Self::default();
        for (number, line) in text.split(|b| *b == b'\n').enumerate() {
            let line = trim_end(line);
            if line == b"+list" {
                is_forward_only = true;
            }
            match instruction(line, number == 0, is_forward_only) {
                Ok(None) => {}
                Ok(Some(instruction)) => plan.instructions.push(instruction),
                Err(refusal) => {
                    plan.refusal = Some(refusal);
                    break;
                }
            }
        }
        plan
    }

    /// Does carrying it out need `exec`?
    #[must_use]
    pub fn has_program(&self) -> bool {
        self.instructions.iter().any(|instruction| matches!(instruction, Instruction::Program(_)))
    }

    /// Does any line lead to an absolute path?
    #[must_use]
    pub fn has_absolute_path(&self) -> bool {
        self.instructions.iter().any(
            |instruction| matches!(instruction, Instruction::Mbox(path) | Instruction::Maildir(path) if path.starts_with(b"/")),
        )
    }
}

fn trim_end(line: &[u8]) -> &[u8] {
    let end = line.iter().rposition(|b| !matches!(b, b' ' | b'\t')).map_or(0, |last| last.saturating_add(1));
    line.get(..end).unwrap_or(line)
}

fn instruction(line: &[u8], is_first: bool, is_forward_only: bool) -> Result<Option<Instruction<'_>>, Refusal> {
    let Some((mark, rest)) = line.split_first() else {
        return if is_first { Err(Refusal::FirstLineBlank) } else { Ok(None) };
    };
    if *mark != b'#' && line.contains(&0) {
        return Err(Refusal::Nul);
    }
    Ok(Some(match mark {
        b'#' | b'+' => return Ok(None),
        b'.' | b'/' if is_forward_only => return Err(Refusal::FileButForwardOnly),
        b'|' if is_forward_only => return Err(Refusal::ProgramButForwardOnly),
        b'.' | b'/' if line.ends_with(b"/") => Instruction::Maildir(line),
        b'.' | b'/' => Instruction::Mbox(line),
        b'|' => Instruction::Program(rest),
        b'&' => Instruction::Forward(rest),
        _ => Instruction::Forward(line),
    }))
}

#[cfg(test)]
mod tests {
    use super::Instruction::{Forward, Maildir, Mbox, Program};
    use super::*;

    type Expected = (&'static [Instruction<'static>], Option<Refusal>);

    fn plan(text: &str) -> Plan<'_> {
        Plan::new(text.as_bytes(), false, b"./Default/")
    }

    #[test]
    fn lines_are_read_as_dot_qmail_5_says() {
        let table: &[(&str, Expected)] = &[
            ("", (&[Maildir(b"./Default/")], None)),
            ("\n", (&[], Some(Refusal::FirstLineBlank))),
            (" \t\n./Mailbox\n", (&[], Some(Refusal::FirstLineBlank))),
            ("\t", (&[], Some(Refusal::FirstLineBlank))),
            ("./Mailbox\n\n \n./b/\n", (&[Mbox(b"./Mailbox"), Maildir(b"./b/")], None)),
            ("#\n", (&[], None)),
            ("# \0\n\n./x", (&[Mbox(b"./x")], None)),
            ("./Mailbox", (&[Mbox(b"./Mailbox")], None)),
            ("./Mailbox \t \n", (&[Mbox(b"./Mailbox")], None)),
            ("./Maildir/ \n", (&[Maildir(b"./Maildir/")], None)),
            ("/var/mail/joe\n", (&[Mbox(b"/var/mail/joe")], None)),
            ("/a/b/\n", (&[Maildir(b"/a/b/")], None)),
            (".hidden/x/\n", (&[Maildir(b".hidden/x/")], None)),
            (".\n/\n", (&[Mbox(b"."), Maildir(b"/")], None)),
            ("|prog a  b \n", (&[Program(b"prog a  b")], None)),
            ("| prog\n", (&[Program(b" prog")], None)),
            ("|\n", (&[Program(b"")], None)),
            ("&joe@x.y\n", (&[Forward(b"joe@x.y")], None)),
            ("joe@x.y\n", (&[Forward(b"joe@x.y")], None)),
            ("&\n", (&[Forward(b"")], None)),
            ("& joe\n", (&[Forward(b" joe")], None)),
            (" joe@x\n", (&[Forward(b" joe@x")], None)),
            ("&&joe\n", (&[Forward(b"&joe")], None)),
            ("+list\n&a@b\n", (&[Forward(b"a@b")], None)),
            ("+list \n./x\n", (&[], Some(Refusal::FileButForwardOnly))),
            ("./x\n+list\n&a@b\n|y\n&c@d\n", (&[Mbox(b"./x"), Forward(b"a@b")], Some(Refusal::ProgramButForwardOnly))),
            ("+lists\n+\n+ list\n./x\n", (&[Mbox(b"./x")], None)),
            ("+LIST\n|x\n", (&[Program(b"x")], None)),
            ("./a\0b\n", (&[], Some(Refusal::Nul))),
            ("a@b\n|x\0y\n", (&[Forward(b"a@b")], Some(Refusal::Nul))),
            ("a@b\r\n", (&[Forward(b"a@b\r")], None)),
        ];
        for (text, (instructions, refusal)) in table {
            let plan = plan(text);
            assert_eq!((&plan.instructions[..], plan.refusal), (*instructions, *refusal), "{text:?}");
        }
    }

    #[test]
    fn the_x_bit_allows_forwards_alone_but_not_for_an_empty_file() {
        let read = |text: &'static [u8]| Plan::new(text, true, b"./Mailbox\n");
        assert_eq!(read(b""), Plan { instructions: vec![Mbox(b"./Mailbox")], refusal: None });
        assert_eq!(read(b"a@b\n"), Plan { instructions: vec![Forward(b"a@b")], refusal: None });
        assert_eq!(read(b"a@b\n./x\n"), Plan { instructions: vec![Forward(b"a@b")], refusal: Some(Refusal::FileButForwardOnly) });
        assert_eq!(read(b"|x\n").refusal, Some(Refusal::ProgramButForwardOnly));
        assert_eq!(read(b"./x/\n").refusal, Some(Refusal::FileButForwardOnly));
    }

    #[test]
    fn a_default_delivery_may_be_several_lines_or_nothing() {
        let read = |default: &'static [u8]| Plan::new(b"", false, default);
        assert_eq!(read(b"|a\n./b/").instructions, [Program(b"a"), Maildir(b"./b/")]);
        assert_eq!(read(b"").refusal, Some(Refusal::FirstLineBlank));
        assert_eq!(read(b"#"), Plan::default());
    }

    #[test]
    fn what_needs_more_than_a_confined_worker_is_seen() {
        let of = |text| (plan(text).has_program(), plan(text).has_absolute_path());
        assert_eq!(of("./a/\n&b@c\n"), (false, false));
        assert_eq!(of("./a/\n|x\n"), (true, false));
        assert_eq!(of("/a\n"), (false, true));
        assert_eq!(of("/a/\n#|\n"), (false, true));
    }

    #[test]
    fn texts_carry_an_enhanced_code_of_the_temporary_class() {
        use Refusal::*;
        for refusal in [FirstLineBlank, FileButForwardOnly, ProgramButForwardOnly, Nul] {
            assert!(refusal.is_temporary());
            assert!(refusal.to_string().contains("(#4."), "{refusal}");
        }
    }
}
