//! Extended regular expressions (POSIX.1-2017 XBD §9.4) over bytes, without regard to case: what an administrator writes in a list.
//!
//! Guarantees: matching takes time in proportion to the text and the expression, whatever they are (no backtracking), and no memory but
//! two lists of places in the expression; an expression has at most [`PLACES_MAX`] of them. Compiling it takes no more: what stands for
//! nothing is not repeated, and neither parentheses nor repetitions of repetitions go deeper than a stack bears.
//! Never: back-references, collating elements and equivalence classes (`[[.a.]]`, `[[=a=]]`), letters behind a backslash. They are errors.
//! Used by `control/badmailfrom` and its like ([`crate::pattern`]).

/// Places of a compiled expression: repetitions count as often as they are repeated.
pub const PLACES_MAX: usize = 4096;
/// Largest number in `{}` (RE_DUP_MAX of POSIX).
const REPEAT_MAX: u16 = 255;
/// Parentheses within parentheses.
const DEPTH_MAX: u8 = 32;
/// Repetitions of a repetition, as `a{2}{3}`, which POSIX leaves open.
const REPETITIONS_MAX: u8 = 8;

/// A compiled expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ere {
    places: Vec<Place>,
}

/// A set of bytes, a bit for each.
type Set = [u64; 4];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// One byte of the set, then the next place.
    Byte(Box<Set>),
    Start,
    End,
    /// Both.
    Split(usize, usize),
    Jump(usize),
    Found,
}

#[derive(Debug, Clone)]
enum Node {
    Empty,
    Byte(Box<Set>),
    Start,
    End,
    All(Vec<Node>),
    Any(Vec<Node>),
    Repeat(Box<Node>, u16, Option<u16>),
}

impl Ere {
    /// Compiles an expression.
    ///
    /// # Errors
    /// What is wrong with it, for people; permanent.
    pub fn new(expression: &[u8]) -> Result<Self, &'static str> {
        let mut parser = Parser { rest: expression, depth: 0 };
        let node = parser.alternatives()?;
        if !parser.rest.is_empty() {
            return Err("has a `)` without `(`");
        }
        let mut ere = Self { places: Vec::new() };
        ere.emit(&node)?;
        ere.push(Place::Found)?;
        Ok(ere)
    }

    /// How large it is; at most [`PLACES_MAX`].
    #[must_use]
    pub fn places(&self) -> usize {
        self.places.len()
    }

    /// Is it anywhere in `text`?
    #[must_use]
    pub fn is_in(&self, text: &[u8]) -> bool {
        let (mut now, mut next) = (Places::new(self.places.len()), Places::new(self.places.len()));
        for at in 0..=text.len() {
            // It may begin at each byte, and behind the last.
            if self.follow(0, at, text.len(), &mut now) {
                return true;
            }
            let Some(byte) = text.get(at) else { return false };
            next.clear();
            let mut found = false;
            for place in &now.list {
                if let Some(Place::Byte(set)) = self.places.get(*place)
                    && has(set, *byte)
                {
                    found |= self.follow(place.saturating_add(1), at.saturating_add(1), text.len(), &mut next);
                }
            }
            if found {
                return true;
            }
            std::mem::swap(&mut now, &mut next);
        }
        false
    }

    /// Adds the place and all that are reached from it without a byte; true if that is the end.
    fn follow(&self, place: usize, at: usize, len: usize, places: &mut Places) -> bool {
        let mut open = vec![place];
        while let Some(place) = open.pop() {
            if !places.insert(place) {
                continue;
            }
            match self.places.get(place) {
                Some(Place::Found) | None => return true,
                Some(Place::Start) if at == 0 => open.push(place.saturating_add(1)),
                Some(Place::End) if at == len => open.push(place.saturating_add(1)),
                Some(Place::Split(a, b)) => open.extend([*b, *a]),
                Some(Place::Jump(to)) => open.push(*to),
                Some(Place::Byte(_) | Place::Start | Place::End) => {}
            }
        }
        false
    }

    fn push(&mut self, place: Place) -> Result<usize, &'static str> {
        if self.places.len() >= PLACES_MAX {
            return Err("is too large when its repetitions are written out");
        }
        self.places.push(place);
        Ok(self.places.len().saturating_sub(1))
    }

    fn set(&mut self, at: usize, place: Place) {
        if let Some(old) = self.places.get_mut(at) {
            *old = place;
        }
    }

    fn emit(&mut self, node: &Node) -> Result<(), &'static str> {
        match node {
            Node::Empty => {}
            Node::Byte(set) => drop(self.push(Place::Byte(set.clone()))?),
            Node::Start => drop(self.push(Place::Start)?),
            Node::End => drop(self.push(Place::End)?),
            Node::All(nodes) => nodes.iter().try_for_each(|node| self.emit(node))?,
            Node::Any(nodes) => self.emit_any(nodes)?,
            Node::Repeat(node, least, most) => self.emit_repeated(node, *least, *most)?,
        }
        Ok(())
    }

    fn emit_any(&mut self, nodes: &[Node]) -> Result<(), &'static str> {
        let mut ends = Vec::new();
        for (number, node) in nodes.iter().enumerate() {
            if number.saturating_add(1) == nodes.len() {
                self.emit(node)?;
                continue;
            }
            let split = self.push(Place::Found)?;
            self.emit(node)?;
            ends.push(self.push(Place::Found)?);
            self.set(split, Place::Split(split.saturating_add(1), self.places.len()));
        }
        let end = self.places.len();
        ends.into_iter().for_each(|at| self.set(at, Place::Jump(end)));
        Ok(())
    }

    fn emit_repeated(&mut self, node: &Node, least: u16, most: Option<u16>) -> Result<(), &'static str> {
        for _ in 0..least {
            let before = self.places.len();
            self.emit(node)?;
            // Nothing is nothing, however often.
            if self.places.len() == before {
                return Ok(());
            }
        }
        let Some(most) = most else {
            let split = self.push(Place::Found)?;
            self.emit(node)?;
            self.push(Place::Jump(split))?;
            self.set(split, Place::Split(split.saturating_add(1), self.places.len()));
            return Ok(());
        };
        let mut splits = Vec::new();
        for _ in least..most {
            splits.push(self.push(Place::Found)?);
            self.emit(node)?;
        }
        let end = self.places.len();
        splits.into_iter().for_each(|at| self.set(at, Place::Split(at.saturating_add(1), end)));
        Ok(())
    }
}

/// Places, each once.
#[derive(Debug)]
struct Places {
    list: Vec<usize>,
    are_in: Vec<bool>,
}

impl Places {
    fn new(len: usize) -> Self {
        Self { list: Vec::new(), are_in: vec![false; len.saturating_add(1)] }
    }

    fn insert(&mut self, place: usize) -> bool {
        let Some(is_in) = self.are_in.get_mut(place) else { return true };
        if std::mem::replace(is_in, true) {
            return false;
        }
        self.list.push(place);
        true
    }

    fn clear(&mut self) {
        for place in self.list.drain(..) {
            if let Some(is_in) = self.are_in.get_mut(place) {
                *is_in = false;
            }
        }
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

    fn alternatives(&mut self) -> Result<Node, &'static str> {
        let mut nodes = vec![self.sequence()?];
        while self.take_if(b'|') {
            nodes.push(self.sequence()?);
        }
        Ok(Node::Any(nodes))
    }

    fn sequence(&mut self) -> Result<Node, &'static str> {
        let mut nodes = Vec::new();
        while !matches!(self.rest.first(), None | Some(b'|' | b')')) {
            let mut node = self.atom()?;
            let mut repetitions = 0u8;
            while let Some((least, most)) = self.repetition()? {
                repetitions = repetitions.saturating_add(1);
                if repetitions > REPETITIONS_MAX {
                    return Err("has too many repetitions of one repetition");
                }
                node = Node::Repeat(Box::new(node), least, most);
            }
            nodes.push(node);
        }
        Ok(Node::All(nodes))
    }

    fn atom(&mut self) -> Result<Node, &'static str> {
        Ok(match self.take() {
            None => Node::Empty,
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
            Some(b'[') => Node::Byte(Box::new(self.bracket()?)),
            Some(b'.') => Node::Byte(Box::new([u64::MAX; 4])),
            Some(b'^') => Node::Start,
            Some(b'$') => Node::End,
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
    fn repetition(&mut self) -> Result<Option<(u16, Option<u16>)>, &'static str> {
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

    fn number(&mut self) -> Option<u16> {
        let mut number = None;
        while let Some(digit) = self.rest.first().filter(|b| b.is_ascii_digit()).copied() {
            self.take();
            let next = number.unwrap_or(0u16).checked_mul(10)?.checked_add(u16::from(digit.saturating_sub(b'0')))?;
            number = Some(next).filter(|number| *number <= REPEAT_MAX);
            number?;
        }
        number
    }

    fn bracket(&mut self) -> Result<Set, &'static str> {
        const OPEN: &str = "has a `[` without `]`";
        let is_negated = self.take_if(b'^');
        let mut set = Set::default();
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
                add(&mut set, low);
                continue;
            }
            self.take();
            let high = self.take().ok_or(OPEN)?;
            if high < low {
                return Err("has a range whose end comes before its beginning");
            }
            (low..=high).for_each(|byte| add(&mut set, byte));
        }
        if is_negated {
            set.iter_mut().for_each(|word| *word = !*word);
        }
        Ok(set)
    }

    /// Behind `[:`.
    fn class(&mut self, set: &mut Set) -> Result<(), &'static str> {
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
        (0..=u8::MAX).filter(|byte| is_in(*byte)).for_each(|byte| add(set, byte));
        Ok(())
    }
}

fn one(byte: u8) -> Node {
    let mut set = Set::default();
    add(&mut set, byte);
    Node::Byte(Box::new(set))
}

/// The byte in both cases.
fn add(set: &mut Set, byte: u8) {
    for byte in [byte.to_ascii_lowercase(), byte.to_ascii_uppercase()] {
        if let Some(word) = set.get_mut(usize::from(byte >> 6)) {
            *word |= 1 << (byte & 63);
        }
    }
}

fn has(set: &Set, byte: u8) -> bool {
    set.get(usize::from(byte >> 6)).is_some_and(|word| word >> (byte & 63) & 1 == 1)
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
        assert!(Ere::new("()".repeat(1_000_000).as_bytes()).is_ok_and(|ere| ere.places() == 1));
        // Nothing, 255^31 times.
        let nested = format!("{}{}", "(".repeat(31), "){255}".repeat(31));
        assert!(Ere::new(nested.as_bytes()).is_ok_and(|ere| ere.places() == 1 && ere.is_in(b"x")));
        assert!(Ere::new(format!("{}a{}", "(".repeat(31), "){255}".repeat(31)).as_bytes()).is_err());
        assert!(Ere::new("a|".repeat(1_000_000).as_bytes()).is_err());
    }
}
