//! Which `.qmail` files speak for an address, in the order they are tried (dot-qmail(5), "EXTENSION ADDRESSES").
//!
//! For dash `-` and ext `a-b-c`: `.qmail-a-b-c`, `.qmail-a-b-default`, `.qmail-a-default`, `.qmail-default`. In file names ext is
//! in lower case with `:` for each `.`; so no name made here has a component `.` or `..` that comes from an address.
//! A `/` stays (dash `-/` keeps the files in a directory of their own, a documented use); whoever opens names for virtual
//! users takes single components only ([`is_one_component`]).

/// Extensions longer than this name no file: more than a path may have (PATH_MAX), so nothing could be there.
pub const EXT_LEN_MAX: usize = 4096;

/// A file name to try, and what it means when it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Relative to the home directory; holds no NUL if dash and ext hold none.
    pub name: Vec<u8>,
    /// Where in ext (as given, in its own case) `DEFAULT` begins, if the name ends with `default`.
    pub default_at: Option<usize>,
}

/// The names to try for `dash` and `ext`: at least one, at most one more than ext has hyphens plus two.
pub fn candidates(dash: &[u8], ext: &[u8]) -> impl Iterator<Item = Candidate> {
    let stem = [b".qmail", dash].concat();
    let ext = if ext.len() > EXT_LEN_MAX { Vec::new() } else { file_form(ext) };
    let exact = Candidate { name: [&stem[..], &ext].concat(), default_at: ext.strip_suffix(b"default").map(<[u8]>::len) };
    let ends: Vec<usize> = (0..=ext.len()).rev().filter(|end| *end == 0 || ext.get(end.wrapping_sub(1)) == Some(&b'-')).collect();
    let defaults = ends.into_iter().map(move |end| {
        let prefix = ext.get(..end).unwrap_or_default();
        Candidate { name: [&stem[..], prefix, b"default"].concat(), default_at: Some(end) }
    });
    std::iter::once(exact).chain(defaults)
}

/// The two files whose being there decides the sender of forwarded copies: `…-owner` and `…-owner-default`.
#[must_use]
pub fn owner_names(dash: &[u8], ext: &[u8]) -> [Vec<u8>; 2] {
    let stem = [b".qmail", dash, &file_form(ext)[..]].concat();
    [[&stem[..], b"-owner"].concat(), [&stem[..], b"-owner-default"].concat()]
}

/// The envelope sender of forwarded copies (NEWSENDER), given which of [`owner_names`] exist.
///
/// Bounces (`<>`) and double bounces (`#@[]`) keep their sender; the form `…-owner-@host-@[]` asks for VERP (§3.6).
#[must_use]
pub fn new_sender(sender: &[u8], local: &[u8], host: &[u8], has_owner: bool, has_owner_default: bool) -> Vec<u8> {
    match sender {
        b"" | b"#@[]" => sender.to_vec(),
        _ if !has_owner => sender.to_vec(),
        _ if has_owner_default => [local, b"-owner-@", host, b"-@[]"].concat(),
        _ => [local, b"-owner@", host].concat(),
    }
}

/// Is it a name within one directory?
#[must_use]
pub fn is_one_component(name: &[u8]) -> bool {
    !name.is_empty() && !name.contains(&b'/') && name != b"." && name != b".."
}

fn file_form(ext: &[u8]) -> Vec<u8> {
    ext.iter().map(|b| if *b == b'.' { b':' } else { b.to_ascii_lowercase() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(dash: &str, ext: &str) -> Vec<String> {
        candidates(dash.as_bytes(), ext.as_bytes()).map(|c| String::from_utf8(c.name).unwrap()).collect()
    }

    #[test]
    fn the_order_is_exact_then_ever_shorter_defaults() {
        for (dash, ext, expected) in [
            ("", "", &[".qmail", ".qmaildefault"][..]),
            ("-", "", &[".qmail-", ".qmail-default"]),
            ("-", "a", &[".qmail-a", ".qmail-default"]),
            ("-", "a-", &[".qmail-a-", ".qmail-a-default", ".qmail-default"]),
            ("-", "a-b", &[".qmail-a-b", ".qmail-a-default", ".qmail-default"]),
            ("-", "a-b-c", &[".qmail-a-b-c", ".qmail-a-b-default", ".qmail-a-default", ".qmail-default"]),
            ("-", "-x", &[".qmail--x", ".qmail--default", ".qmail-default"]),
            ("-", "A.B-C.d", &[".qmail-a:b-c:d", ".qmail-a:b-default", ".qmail-default"]),
            ("-", "..", &[".qmail-::", ".qmail-default"]),
            ("-/", "a-b", &[".qmail-/a-b", ".qmail-/a-default", ".qmail-/default"]),
            ("-", "x/../y", &[".qmail-x/::/y", ".qmail-default"]),
        ] {
            assert_eq!(names(dash, ext), expected, "{dash:?} {ext:?}");
        }
    }

    #[test]
    fn default_is_what_the_name_left_open() {
        let of = |ext: &'static str| -> Vec<Option<&'static str>> {
            candidates(b"-", ext.as_bytes()).map(|c| c.default_at.map(|at| &ext[at..])).collect()
        };
        assert_eq!(of("List-Sub-joe=X.y"), [None, Some("joe=X.y"), Some("Sub-joe=X.y"), Some("List-Sub-joe=X.y")]);
        assert_eq!(of("a-Default"), [Some("Default"), Some("Default"), Some("a-Default")]);
        assert_eq!(of("default"), [Some("default"), Some("default")]);
        assert_eq!(of(""), [None, Some("")]);
    }

    #[test]
    fn owner_files_decide_the_sender_of_forwards() {
        assert_eq!(owner_names(b"-", b"L.x"), [b".qmail-l:x-owner".to_vec(), b".qmail-l:x-owner-default".to_vec()]);
        for (sender, owner, default, expected) in [
            ("a@b", false, false, "a@b"),
            ("a@b", false, true, "a@b"),
            ("a@b", true, false, "l-owner@h"),
            ("a@b", true, true, "l-owner-@h-@[]"),
            ("", true, true, ""),
            ("#@[]", true, true, "#@[]"),
        ] {
            assert_eq!(new_sender(sender.as_bytes(), b"l", b"h", owner, default), expected.as_bytes());
        }
    }

    #[test]
    fn an_endless_extension_asks_for_the_last_default_only() {
        let ext = vec![b'-'; 1 << 20];
        assert!(candidates(b"-", &ext).count() <= 2);
    }

    proptest! {
        #[test]
        fn names_never_climb_and_defaults_always_fit(dash in "-?/?", ext in prop::collection::vec(any::<u8>(), 0..60)) {
            for candidate in candidates(dash.as_bytes(), &ext) {
                prop_assert!(candidate.name.starts_with(b".qmail"));
                prop_assert!(candidate.name.split(|b| *b == b'/').all(|part| part != b".." && part != b"."));
                prop_assert!(candidate.default_at.is_none_or(|at| at <= ext.len()));
                prop_assert_eq!(candidate.default_at.is_some(), candidate.name.ends_with(b"default"));
            }
            let last = candidates(dash.as_bytes(), &ext).last().unwrap();
            prop_assert_eq!(last.name, [b".qmail", dash.as_bytes(), b"default"].concat());
        }
    }
}
