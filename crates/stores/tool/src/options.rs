//! Option parsing as the classic programs have it: letters behind one `-`, values glued or in the next argument, up to `--`,
//! any argument that begins so, or the first other argument.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;

use crate::Name;

/// One option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opt {
    Flag(u8),
    Value(u8, Vec<u8>),
    /// A letter that the program does not know, or one whose value is missing.
    Unknown(u8),
}

/// Which letters there are.
#[derive(Debug, Clone, Copy)]
pub struct Letters<'a> {
    pub flags: &'a [u8],
    pub with_value: &'a [u8],
    /// The value, if any, is glued on.
    pub with_glued_value: &'a [u8],
}

/// The options in front, and the arguments behind them.
#[must_use]
pub fn parse(args: &[OsString], letters: Letters<'_>) -> (Vec<Opt>, Vec<Vec<u8>>) {
    let mut options = Vec::new();
    let mut rest = args.iter().map(|arg| arg.as_bytes());
    while let Some(arg) = rest.clone().next() {
        let cluster = match arg {
            // Whatever follows the two: as ever, the argument is passed over.
            [b'-', b'-', ..] => {
                rest.next();
                break;
            }
            [b'-', cluster @ ..] if !cluster.is_empty() => cluster,
            _ => break,
        };
        rest.next();
        parse_cluster(cluster, letters, &mut rest, &mut options);
    }
    (options, rest.map(<[u8]>::to_vec).collect())
}

/// As [`parse`]; `None` if one is unknown or lacks its value, after a line on standard error that names it.
#[must_use]
pub fn known(me: Name, args: &[OsString], letters: Letters<'_>) -> Option<(Vec<Opt>, Vec<Vec<u8>>)> {
    let (options, rest) = parse(args, letters);
    let unknown = options.iter().find_map(|option| if let Opt::Unknown(letter) = option { Some(*letter) } else { None });
    let Some(letter) = unknown else { return Some((options, rest)) };
    complain(me.0, letter, letters);
    None
}

/// The line on standard error for a letter that is [`Opt::Unknown`].
pub fn complain(name: &str, letter: u8, letters: Letters<'_>) {
    let what: &[u8] =
        if letters.with_value.contains(&letter) { b": option requires an argument -- " } else { b": illegal option -- " };
    crate::end::say(&[name.as_bytes(), what, &[letter]].concat());
}

fn parse_cluster<'a>(cluster: &[u8], letters: Letters<'_>, rest: &mut impl Iterator<Item = &'a [u8]>, options: &mut Vec<Opt>) {
    let mut left = cluster;
    while let Some((&letter, after)) = left.split_first() {
        left = after;
        if letters.flags.contains(&letter) {
            options.push(Opt::Flag(letter));
            continue;
        }
        let value = if letters.with_glued_value.contains(&letter) {
            Some(after)
        } else if !letters.with_value.contains(&letter) {
            None
        } else if after.is_empty() {
            rest.next()
        } else {
            Some(after)
        };
        options.push(value.map_or(Opt::Unknown(letter), |value| Opt::Value(letter, value.to_vec())));
        return;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_values_and_ends() {
        let letters = Letters { flags: b"ab", with_value: b"f", with_glued_value: b"E" };
        for (args, options, rest) in [
            (
                &["-ab", "-fx", "-f", "y", "z", "-a"][..],
                "Flag(97) Flag(98) Value(102, [120]) Value(102, [121])",
                &["z", "-a"][..],
            ),
            (&["-afq", "--", "-a"], "Flag(97) Value(102, [113])", &["-a"]),
            (&["-E", "-Ex", "-"], "Value(69, []) Value(69, [120])", &["-"]),
            (&["-a", "--x", "-b"], "Flag(97)", &["-b"]),
            (&["-f"], "Unknown(102)", &[]),
            (&["-aZb", "x"], "Flag(97) Unknown(90)", &["x"]),
            (&["-f", "--", "x"], "Value(102, [45, 45])", &["x"]),
            (&[], "", &[]),
        ] {
            let args: Vec<OsString> = args.iter().map(OsString::from).collect();
            let (got, left) = parse(&args, letters);
            assert_eq!(got.iter().map(|o| format!("{o:?}")).collect::<Vec<_>>().join(" "), options);
            assert_eq!(left, rest.iter().map(|r| r.as_bytes().to_vec()).collect::<Vec<_>>());
        }
    }
}
