//! What AppArmor's profiles grant, as far as it can be told without a kernel that has AppArmor: the rules for files of each profile, with
//! the abstractions they include. Rules of forms that are not understood grant nothing.

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// What the variables of AppArmor's own files stand for here.
const VARIABLES: [(&str, &str); 9] = [
    ("@{run}", "{/run,/var/run}"),
    ("@{PROC}", "/proc"),
    ("@{sys}", "/sys"),
    ("@{pid}", "*"),
    ("@{etc_ro}", "{/etc,/usr/etc}"),
    ("@{multiarch}", "*-linux-gnu*"),
    ("@{HOME}", "/home/*"),
    ("@{HOMEDIRS}", "/home"),
    ("@{profile_name}", "-"),
];

/// A rule for files: a pattern without alternations, and the letters of what it grants.
#[derive(Debug)]
struct Rule {
    pattern: Vec<u8>,
    may: String,
}

/// The profiles of a file.
#[derive(Debug)]
pub struct Profiles(BTreeMap<String, Vec<Rule>>);

impl Profiles {
    /// Reads profiles; `base` is AppArmor's directory (`etc/apparmor.d`).
    ///
    /// # Errors
    /// An abstraction that is not there.
    pub fn read(text: &str, base: &Path) -> Result<Self> {
        let mut profiles = BTreeMap::new();
        for part in text.split("\nprofile ").skip(1) {
            let name = part.split(' ').next().unwrap_or_default();
            let body = part.split_once("{\n").and_then(|(_, rest)| rest.split_once("\n}")).context("a profile without a body")?.0;
            let mut rules = Vec::new();
            add(body, base, &mut rules)?;
            profiles.insert(name.to_owned(), rules);
        }
        Ok(Self(profiles))
    }

    /// Does the profile exist?
    #[must_use]
    pub fn has(&self, profile: &str) -> bool {
        self.0.contains_key(profile)
    }

    /// May a process in this profile do all that `wanted` names (letters as in a rule) with this path? Directories end with a slash.
    #[must_use]
    pub fn grants(&self, profile: &str, path: &str, wanted: &str) -> bool {
        let rules = self.0.get(profile).into_iter().flatten().filter(|rule| matches(&rule.pattern, path.as_bytes()));
        let may: String = rules.map(|rule| rule.may.as_str()).collect();
        wanted.chars().all(|letter| may.contains(letter))
    }
}

fn add(text: &str, base: &Path, rules: &mut Vec<Rule>) -> Result<()> {
    for line in text.lines().map(str::trim) {
        if let Some(included) = line.strip_prefix("include <").and_then(|rest| rest.strip_suffix('>')) {
            let path = base.join(included);
            add(&std::fs::read_to_string(&path).with_context(|| path.display().to_string())?, base, rules)?;
            continue;
        }
        let words = line.strip_prefix("owner ").unwrap_or(line).trim_start();
        let Some((path, rest)) = words.split_once(char::is_whitespace).filter(|_| words.starts_with(['/', '@'])) else {
            continue;
        };
        let may = rest.trim_start().split([',', ' ']).next().unwrap_or_default();
        let path = VARIABLES.iter().fold(path.to_owned(), |path, (name, value)| path.replace(name, value));
        rules.extend(alternatives(&path).into_iter().map(|pattern| Rule { pattern: pattern.into_bytes(), may: may.to_owned() }));
    }
    Ok(())
}

/// All that `{a,b}` stands for, nested or not.
fn alternatives(pattern: &str) -> Vec<String> {
    let Some(open) = pattern.find('{') else { return vec![pattern.to_owned()] };
    let (mut depth, mut starts, mut close) = (0, vec![open + 1], pattern.len());
    for (at, byte) in pattern.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            b',' if depth == 1 => starts.push(at + 1),
            _ => {}
        }
        if depth == 0 {
            close = at;
            break;
        }
    }
    let ends = starts.iter().skip(1).map(|start| start - 1).chain([close]);
    let parts = starts.iter().zip(ends).filter_map(|(start, end)| pattern.get(*start..end));
    let (front, back) = (pattern.get(..open).unwrap_or_default(), pattern.get(close + 1..).unwrap_or_default());
    parts.flat_map(|part| alternatives(&format!("{front}{part}{back}"))).collect()
}

/// `*` within a name, `**` across slashes; neither is nothing behind a slash. Other patterns match themselves alone.
fn matches(pattern: &[u8], path: &[u8]) -> bool {
    match_from(pattern, path, false)
}

fn match_from(pattern: &[u8], path: &[u8], behind_slash: bool) -> bool {
    let Some((first, rest)) = pattern.split_first() else { return path.is_empty() };
    if *first != b'*' {
        return path.split_first().is_some_and(|(byte, path)| byte == first && match_from(rest, path, *byte == b'/'));
    }
    let (rest, crosses) = rest.strip_prefix(b"*").map_or((rest, false), |rest| (rest, true));
    let least = usize::from(behind_slash);
    let most = if crosses { path.len() } else { path.iter().position(|byte| *byte == b'/').unwrap_or(path.len()) };
    (least..=most).any(|taken| {
        let (taken, left) = path.split_at(taken);
        match_from(rest, left, taken.last() == Some(&b'/'))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_understood_as_apparmor_does() {
        let text = "x\nprofile one flags=(a) {\n  /a/{,**} r,\n  @{run}/q/{b/c,d}.sock rw,\n  owner /p/*/{fd/,x} r,\n  # /no r,\n  /u/* Ux,\n}\n";
        let profiles = Profiles::read(text, Path::new("/")).unwrap();
        let cases = [
            ("/a/", "r", true),
            ("/a/b/c", "r", true),
            ("/a/b/c", "w", false),
            ("/a", "r", false),
            ("/run/q/b/c.sock", "rw", true),
            ("/var/run/q/d.sock", "w", true),
            ("/run/q/e.sock", "r", false),
            ("/p/1/fd/", "r", true),
            ("/p/1/2/x", "r", false),
            ("/p//x", "r", false),
            ("/no", "r", false),
            ("/u/sh", "x", true),
        ];
        for (path, wanted, granted) in cases {
            assert_eq!(profiles.grants("one", path, wanted), granted, "{path} {wanted}");
        }
        assert!(!profiles.grants("two", "/a/", "r"));
    }
}
