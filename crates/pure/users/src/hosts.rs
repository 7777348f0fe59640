//! Sets of host names as `rcpthosts`, `locals` and `percenthack` list them: `dom` means that name, `.dom` every name below it.
//!
//! Hashed, so that a list of a million domains answers as fast as one of ten.

use std::collections::HashSet;

use crate::list_lines;

/// A list of host names, compared without case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostSet(HashSet<Box<[u8]>>);

impl HostSet {
    /// One name a line.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        list_lines(text).map(|(_, line)| line).collect()
    }

    /// The name itself, or a `.suffix` of it? (rcpthosts)
    #[must_use]
    pub fn contains(&self, host: &[u8]) -> bool {
        let host = host.to_ascii_lowercase();
        suffixes(&host).any(|suffix| self.0.contains(suffix))
    }

    /// The name itself? (locals, percenthack: there `.dom` has no meaning)
    #[must_use]
    pub fn contains_exact(&self, host: &[u8]) -> bool {
        self.0.contains(host.to_ascii_lowercase().as_slice())
    }

    pub fn insert(&mut self, host: &[u8]) {
        self.0.insert(host.to_ascii_lowercase().into());
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(AsRef::as_ref)
    }
}

impl<T: AsRef<[u8]>> FromIterator<T> for HostSet {
    fn from_iter<I: IntoIterator<Item = T>>(hosts: I) -> Self {
        Self(hosts.into_iter().map(|host| host.as_ref().to_ascii_lowercase().into()).collect())
    }
}

/// `a.b.c`, `.b.c`, `.c`: the keys under which lists and maps may hold a host. Not the empty one.
pub fn suffixes(host: &[u8]) -> impl Iterator<Item = &[u8]> {
    let dots = host.iter().zip(0..).skip(1).filter(|(b, _)| **b == b'.').map(|(_, at)| at);
    std::iter::once(0).chain(dots).filter_map(|at: usize| host.get(at..)).filter(|suffix| !suffix.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_names_and_suffixes() {
        let hosts = HostSet::parse(b"Example.org\n.sub.example.NET\n# no.example\n");
        let table = [
            ("example.org", true),
            ("EXAMPLE.ORG", true),
            ("a.example.org", false),
            ("sub.example.net", false),
            ("a.sub.example.net", true),
            ("a.b.sub.example.net", true),
            ("asub.example.net", false),
            ("no.example", false),
            ("", false),
        ];
        for (host, expected) in table {
            assert_eq!(hosts.contains(host.as_bytes()), expected, "{host}");
        }
        assert!(hosts.contains_exact(b"example.ORG"));
        assert!(!hosts.contains_exact(b"a.sub.example.net"));
    }

    #[test]
    fn suffixes_are_tried_from_the_longest() {
        let got: Vec<_> = suffixes(b"a.b.c").collect();
        assert_eq!(got, [&b"a.b.c"[..], b".b.c", b".c"]);
        assert_eq!(suffixes(b"").count(), 0);
    }
}
