//! Extended regular expressions (POSIX.1-2017 XBD §9.4) over bytes, without regard to case: what an administrator writes in a list.
//!
//! The grammar is here, since no library reads that of POSIX; the machine is the `regex` project's, built from what the grammar means.
//!
//! Guarantees: matching takes time in proportion to the text times the expression, whatever they are (no backtracking); a compiled
//! expression has at most [`BYTES_MAX`]. Compiling takes no more: what stands for nothing is not repeated, and neither parentheses nor
//! repetitions of repetitions go deeper than a stack bears.
//! Never: back-references, collating elements and equivalence classes (`[[.a.]]`, `[[=a=]]`), letters behind a backslash. They are errors.
//! Used by `control/badmailfrom` and its like ([`crate::pattern`]).

use regex_automata::nfa::thompson::pikevm::PikeVM;
use regex_automata::nfa::thompson::{Compiler, Config, WhichCaptures};
use regex_syntax::hir::{Class, ClassBytes, ClassBytesRange, Hir, Look, Repetition};

/// Memory of a compiled expression: repetitions count as often as they are repeated.
pub const BYTES_MAX: usize = 1024 * 1024;
/// Largest number in `{}` (RE_DUP_MAX of POSIX).
const REPEAT_MAX: u16 = 255;
/// Parentheses within parentheses.
const DEPTH_MAX: u8 = 32;
/// Repetitions of a repetition, as `a{2}{3}`, which POSIX leaves open.
const REPETITIONS_MAX: u8 = 8;

/// A compiled expression.
#[derive(Debug, Clone)]
pub struct Ere {
    written: Box<[u8]>,
    machine: PikeVM,
}

/// Two are equal that are written alike.
impl PartialEq for Ere {
    fn eq(&self, other: &Self) -> bool {
        self.written == other.written
    }
}

impl Eq for Ere {}

impl Ere {
    /// Compiles an expression.
    ///
    /// # Errors
    /// What is wrong with it, for people; permanent.
    pub fn new(expression: &[u8]) -> Result<Self, &'static str> {
        const TOO_LARGE: &str = "is too large when its repetitions are written out";
        let mut parser = Parser { rest: expression, depth: 0 };
        let meaning = parser.alternatives()?;
        if !parser.rest.is_empty() {
            return Err("has a `)` without `(`");
        }
        let config = Config::new().utf8(false).which_captures(WhichCaptures::None).nfa_size_limit(Some(BYTES_MAX));
        let states = Compiler::new().configure(config).build_from_hir(&meaning).map_err(|_| TOO_LARGE)?;
        let machine = PikeVM::builder().build_from_nfa(states).map_err(|_| TOO_LARGE)?;
        Ok(Self { written: expression.into(), machine })
    }

    /// Its memory in bytes; at most [`BYTES_MAX`] and a little.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.machine.get_nfa().memory_usage()
    }

    /// Is it anywhere in `text`?
    #[must_use]
    pub fn is_in(&self, text: &[u8]) -> bool {
        self.machine.is_match(&mut self.machine.create_cache(), text)
    }
}

struct Parser<'a> {
    rest: &'a [u8],
    depth: u8,
}

impl Parser<'_> {
    fn take(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn take_if(&mut self, byte: u8) -> bool {
        let is = self.rest.first() == Some(&byte);
        if is {
            self.take();
        }
        is
    }

    fn alternatives(&mut self) -> Result<Hir, &'static str> {
        let mut nodes = vec![self.sequence()?];
        while self.take_if(b'|') {
            nodes.push(self.sequence()?);
        }
        Ok(Hir::alternation(nodes))
    }

    fn sequence(&mut self) -> Result<Hir, &'static str> {
        let mut nodes = Vec::new();
        while !matches!(self.rest.first(), None | Some(b'|' | b')')) {
            let mut node = self.atom()?;
            let mut repetitions = 0u8;
            while let Some((least, most)) = self.repetition()? {
                repetitions = repetitions.saturating_add(1);
                if repetitions > REPETITIONS_MAX {
                    return Err("has too many repetitions of one repetition");
                }
                node = Hir::repetition(Repetition { min: least, max: most, greedy: true, sub: Box::new(node) });
            }
            nodes.push(node);
        }
        Ok(Hir::concat(nodes))
    }

    fn atom(&mut self) -> Result<Hir, &'static str> {
        Ok(match self.take() {
            None => Hir::empty(),
            Some(b'(') => {
                self.depth = self.depth.saturating_add(1);
                if self.depth > DEPTH_MAX {
                    return Err("has too many parentheses within parentheses");
                }
                let node = self.alternatives()?;
                if !self.take_if(b')') {
                    return Err("has a `(` without `)`");
                }
                self.depth = self.depth.saturating_sub(1);
                node
            }
            Some(b'[') => Hir::class(Class::Bytes(self.bracket()?)),
            Some(b'.') => Hir::class(Class::Bytes(ClassBytes::new([ClassBytesRange::new(0, u8::MAX)]))),
            Some(b'^') => Hir::look(Look::Start),
            Some(b'$') => Hir::look(Look::End),
            Some(b'*' | b'+' | b'?' | b'{') => {
                return Err("repeats nothing: before `*`, `+`, `?` and `{` something has to stand");
            }
            Some(b'\\') => match self.take() {
                Some(byte) if !byte.is_ascii_alphanumeric() => one(byte),
                Some(_) => return Err("has a backslash before a letter or digit"),
                None => return Err("ends in a backslash"),
            },
            Some(byte) => one(byte),
        })
    }

    /// What stands behind an atom: at least and at most so often.
    fn repetition(&mut self) -> Result<Option<(u32, Option<u32>)>, &'static str> {
        Ok(match self.rest.first() {
            Some(b'*') => self.take().map(|_| (0, None)),
            Some(b'+') => self.take().map(|_| (1, None)),
            Some(b'?') => self.take().map(|_| (0, Some(1))),
            Some(b'{') => {
                self.take();
                const WRONG: &str = "has no numbers up to 255 between `{` and `}`";
                let least = self.number().ok_or(WRONG)?;
                let most = match self.take() {
                    Some(b'}') => return Ok(Some((least, Some(least)))),
                    Some(b',') if self.take_if(b'}') => return Ok(Some((least, None))),
                    Some(b',') => self.number().ok_or(WRONG)?,
                    _ => return Err(WRONG),
                };
                if !self.take_if(b'}') || most < least {
                    return Err(WRONG);
                }
                Some((least, Some(most)))
            }
            _ => None,
        })
    }

    fn number(&mut self) -> Option<u32> {
        let mut number = None;
        while let Some(digit) = self.rest.first().filter(|b| b.is_ascii_digit()).copied() {
            self.take();
            let next = number.unwrap_or(0u16).checked_mul(10)?.checked_add(u16::from(digit.saturating_sub(b'0')))?;
            number = Some(next).filter(|number| *number <= REPEAT_MAX);
            number?;
        }
        number.map(u32::from)
    }

    fn bracket(&mut self) -> Result<ClassBytes, &'static str> {
        const OPEN: &str = "has a `[` without `]`";
        let is_negated = self.take_if(b'^');
        let mut set = ClassBytes::empty();
        let mut is_first = true;
        loop {
            let low = match self.take().ok_or(OPEN)? {
                b']' if !is_first => break,
                b'[' if self.rest.first() == Some(&b':') => {
                    self.take();
                    self.class(&mut set)?;
                    is_first = false;
                    continue;
                }
                b'[' if matches!(self.rest.first(), Some(b'.' | b'=')) => {
                    return Err("has a collating element, which is not known here");
                }
                byte => byte,
            };
            is_first = false;
            let is_range = self.rest.first() == Some(&b'-') && self.rest.get(1).is_some_and(|b| *b != b']');
            if !is_range {
                set.push(ClassBytesRange::new(low, low));
                continue;
            }
            self.take();
            let high = self.take().ok_or(OPEN)?;
            if high < low {
                return Err("has a range whose end comes before its beginning");
            }
            set.push(ClassBytesRange::new(low, high));
        }
        // Both cases of what is named; then what is left.
        set.case_fold_simple();
        if is_negated {
            set.negate();
        }
        Ok(set)
    }

    /// Behind `[:`.
    fn class(&mut self, set: &mut ClassBytes) -> Result<(), &'static str> {
        const WRONG: &str = "has no class like `[:alpha:]`";
        let end = self.rest.windows(2).position(|two| two == b":]").ok_or(WRONG)?;
        let (name, rest) = self.rest.split_at_checked(end).ok_or(WRONG)?;
        self.rest = rest.get(2..).unwrap_or_default();
        let is_in: fn(u8) -> bool = match name {
            b"alpha" | b"upper" | b"lower" => |b| b.is_ascii_alphabetic(),
            b"digit" => |b| b.is_ascii_digit(),
            b"alnum" => |b| b.is_ascii_alphanumeric(),
            b"xdigit" => |b| b.is_ascii_hexdigit(),
            b"space" => |b| matches!(b, b'\t'..=b'\r' | b' '),
            b"blank" => |b| matches!(b, b'\t' | b' '),
            b"cntrl" => |b| b.is_ascii_control(),
            b"punct" => |b| b.is_ascii_punctuation(),
            b"graph" => |b| b.is_ascii_graphic(),
            b"print" => |b| b.is_ascii_graphic() || b == b' ',
            _ => return Err(WRONG),
        };
        (0..=u8::MAX).filter(|byte| is_in(*byte)).for_each(|byte| set.push(ClassBytesRange::new(byte, byte)));
        Ok(())
    }
}

/// The byte in both cases.
fn one(byte: u8) -> Hir {
    let mut set = ClassBytes::new([ClassBytesRange::new(byte, byte)]);
    set.case_fold_simple();
    Hir::class(Class::Bytes(set))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions() {
        for (expression, text, is_in) in [
            ("", "anything", true),
            ("b", "abc", true),
            ("B", "abc", true),
            ("^b", "abc", false),
            ("^a", "abc", true),
            ("c$", "abc", true),
            ("b$", "abc", false),
            ("^$", "", true),
            ("^$", "x", false),
            ("a.c", "abc", true),
            ("a\\.c", "abc", false),
            ("a\\.c", "a.c", true),
            ("ab*c", "ac", true),
            ("ab+c", "ac", false),
            ("ab?c", "abbc", false),
            ("^(ab){2}$", "abab", true),
            ("^(ab){2}$", "ababab", false),
            ("^a{2,}$", "a", false),
            ("^a{2,}$", "aaaa", true),
            ("^a{1,3}$", "aaaa", false),
            ("^(a|bc|)d$", "bcd", true),
            ("^(a|bc|)d$", "d", true),
            ("^(a|bc|)d$", "bd", false),
            ("a|b", "xbx", true),
            ("[!%#:*^(){}]", "a%b@c", true),
            ("[!%#:*^(){}]", "ab@c", false),
            ("@.*@", "a@b@c", true),
            ("@.*@", "a@bc", false),
            ("[]a]", "]", true),
            ("[^]a]", "]a", false),
            ("[a-c]x", "BX", true),
            ("[a-]x", "-x", true),
            ("[[:digit:]]{3}", "ab123", true),
            ("[[:digit:][:alpha:]_]", "-", false),
            ("[\\.]", "\\", true),
            ("(a*)*b", "aaaaaaaaaaaaaaaaaaaaaaaac", false),
            ("bad\\.domain\\.com", "x@Bad.Domain.Com.example", true),
            ("$a", "a", false),
            ("a^", "a", false),
        ] {
            let ere = Ere::new(expression.as_bytes()).unwrap();
            assert_eq!(ere.is_in(text.as_bytes()), is_in, "{expression} {text}");
        }
    }

    #[test]
    fn what_is_no_expression_is_said() {
        for bad in [
            "(",
            ")",
            "a)",
            "(a",
            "[",
            "[a",
            "[]",
            "*",
            "+a",
            "a|*",
            "{1}",
            "a{",
            "a{x}",
            "a{2,1}",
            "a{256}",
            "a\\",
            "\\d",
            "[b-a]",
            "[[:no:]]",
            "[[:alpha]",
            "[[.a.]]",
            "((a{255}){255}){255}",
            "((a{0,255}){0,255}){0,255}",
            "((a*){255}){255}",
            "a?????????",
            "a{2}{2}{2}{2}{2}{2}{2}{2}{2}",
            "a{99999999}",
            "a{1",
        ] {
            assert!(Ere::new(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(Ere::new(&[b'('; 1000]).is_err());
    }

    #[test]
    fn a_bomb_is_an_error_or_costs_nothing() {
        // Deeper than any stack, had it been taken.
        for repetition in ["?", "*", "+", "{1}", "{255}"] {
            assert!(Ere::new(format!("a{}", repetition.repeat(1_000_000)).as_bytes()).is_err(), "{repetition}");
            assert!(Ere::new(format!("(){}", repetition.repeat(1_000_000)).as_bytes()).is_err(), "{repetition}");
        }
        assert!(Ere::new("(".repeat(1_000_000).as_bytes()).is_err());
        assert!(Ere::new("()".repeat(1_000_000).as_bytes()).is_ok_and(|ere| ere.bytes() < 1024));
        // Nothing, 255^31 times.
        let nested = format!("{}{}", "(".repeat(31), "){255}".repeat(31));
        assert!(Ere::new(nested.as_bytes()).is_ok_and(|ere| ere.bytes() < 1024 && ere.is_in(b"x")));
        assert!(Ere::new(format!("{}a{}", "(".repeat(31), "){255}".repeat(31)).as_bytes()).is_err());
        assert!(Ere::new("a|".repeat(1_000_000).as_bytes()).is_err());
    }
}
