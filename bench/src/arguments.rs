//! The command line that `cargo xtask bench` makes.

use crate::scenario::{SCENARIOS, Scenario};
use crate::target::Row;
use anyhow::{Context, Result, bail};
use std::path::PathBuf;

/// Fewer do not make a median that means something.
const ROUNDS_DEFAULT: usize = 5;

#[derive(Debug)]
pub(crate) struct Arguments {
    /// A fresh directory that every user can reach.
    pub(crate) work: PathBuf,
    /// Our programs, where every user can reach them.
    pub(crate) programs: PathBuf,
    /// Keeps Debian's packages.
    pub(crate) cache: PathBuf,
    /// The JSON file.
    pub(crate) out: PathBuf,
    /// How our programs were built; goes into the report.
    pub(crate) profile: String,
    pub(crate) rounds: usize,
    pub(crate) quick: bool,
    only: Vec<Row>,
    names: Vec<String>,
}

impl Arguments {
    /// # Errors
    /// Something is missing or not known.
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Self> {
        let [mut work, mut programs, mut cache, mut out] = [const { PathBuf::new() }; 4];
        let (mut profile, mut rounds, mut quick) = (String::new(), None, false);
        let (mut only, mut names) = (Vec::new(), Vec::new());
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--work" => work = value()?.into(),
                "--programs" => programs = value()?.into(),
                "--cache" => cache = value()?.into(),
                "--out" => out = value()?.into(),
                "--profile" => profile = value()?,
                "--rounds" => rounds = Some(value()?.parse().context("--rounds wants a number")?),
                "--quick" => quick = true,
                "--only" => only = value()?.split(',').map(row).collect::<Result<_>>()?,
                name if !name.starts_with('-') => names.push(name.to_owned()),
                _ => bail!("unknown option {arg}"),
            }
        }
        if [&work, &programs, &cache, &out].iter().any(|path| path.as_os_str().is_empty()) {
            bail!("start it with `cargo xtask bench`");
        }
        let rounds: usize = rounds.unwrap_or(if quick { 1 } else { ROUNDS_DEFAULT });
        let arguments = Self { work, programs, cache, out, profile, rounds: rounds.max(1), quick, only, names };
        if let Some(unknown) = arguments.names.iter().find(|name| !SCENARIOS.iter().any(|scenario| matches(scenario, name))) {
            let known: Vec<&str> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
            bail!("no scenario {unknown}; there are: {}", known.join(" "));
        }
        Ok(arguments)
    }

    /// Those named, or all. `S4` means all of S4.
    pub(crate) fn scenarios(&self) -> impl Iterator<Item = &'static Scenario> {
        let wanted = |scenario: &&Scenario| self.names.is_empty() || self.names.iter().any(|name| matches(scenario, name));
        SCENARIOS.iter().filter(wanted)
    }

    pub(crate) fn wants(&self, row: Row) -> bool {
        self.only.is_empty() || self.only.contains(&row)
    }
}

fn matches(scenario: &Scenario, name: &str) -> bool {
    let (name, full) = (name.to_ascii_lowercase(), scenario.name.to_ascii_lowercase());
    full == name || full.split('/').next() == Some(name.as_str())
}

fn row(word: &str) -> Result<Row> {
    let known: Vec<&str> = Row::ALL.iter().map(|row| row.word()).collect();
    Row::ALL.into_iter().find(|row| row.word() == word).with_context(|| format!("no row {word}; there are: {}", known.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(more: &str) -> Result<Arguments> {
        let all = format!("--work /w --programs /p --cache /c --out /o --profile dist {more}");
        Arguments::parse(all.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn command_lines() {
        let names = |more: &str| parse(more).unwrap().scenarios().map(|scenario| scenario.name).collect::<Vec<_>>();
        assert_eq!(names("").len(), SCENARIOS.len());
        assert_eq!(names("s4 S1"), ["S1", "S4/1", "S4/10", "S4/100"]);
        assert_eq!(names("S4/10"), ["S4/10"]);
        assert_eq!(
            (parse("").unwrap().rounds, parse("--quick").unwrap().rounds, parse("--quick --rounds 3").unwrap().rounds),
            (5, 1, 3)
        );
        let some = parse("--only postfix,exim").unwrap();
        assert!(some.wants(Row::Exim) && !some.wants(Row::Qmail) && parse("").unwrap().wants(Row::Nothing));
        for wrong in ["S9", "--rounds", "--rounds x", "--only sendmail", "--fast"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert!(Arguments::parse(std::iter::empty()).is_err());
    }
}
