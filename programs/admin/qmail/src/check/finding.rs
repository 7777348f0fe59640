//! What was found: in which file, in which line, what is the matter, and what to do about it.
//!
//! A check says it in one sentence, `[line N: ]problem; cure`, as errors of control files do; here it is taken apart. Every finding
//! has a cure.

use std::path::Path;

use control::ControlError;
use serde_json::{Value, json};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// It stops mail or makes it go wrong.
    Error,
    /// Surely not meant.
    Warning,
    /// Nothing to do, but good to know.
    Note,
}

impl Level {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub level: Level,
    /// Or a directory, or what stands for a part of the system.
    pub file: String,
    /// Counted from 1.
    pub line: Option<usize>,
    pub problem: String,
    pub cure: String,
}

impl Finding {
    fn new(level: Level, file: &Path, said: &str) -> Self {
        let (line, rest) = line_of(said);
        // What stands in the file may have a semicolon, the cure is ours: the last one divides.
        let (problem, cure) = match rest.rsplit_once("; ") {
            Some((problem, cure)) => (problem, cure.to_owned()),
            None => (rest, usual_cure(file)),
        };
        Self { level, file: file.display().to_string(), line, problem: problem.to_owned(), cure }
    }

    /// For people: the sentence.
    #[must_use]
    pub fn sentence(&self) -> String {
        let line = self.line.map(|line| format!("line {line}: ")).unwrap_or_default();
        format!("{line}{}; {}", self.problem, self.cure)
    }

    /// For programs. `level` and `subject` are the names of `severity` and `file` from before there were lines and cures.
    #[must_use]
    pub fn json(&self) -> Value {
        let (level, file) = (self.level.word(), &self.file);
        json!({
            "severity": level, "file": file, "line": self.line, "problem": self.problem, "cure": self.cure,
            "level": level, "subject": file,
        })
    }
}

/// `line N: ` or `line N, ` in front, and what follows.
fn line_of(said: &str) -> (Option<usize>, &str) {
    let divided = said.strip_prefix("line ").and_then(|rest| rest.split_once([':', ',']));
    match divided.map(|(number, rest)| (number.parse(), rest.trim_start())) {
        Some((Ok(number), rest)) => (Some(number), rest),
        _ => (None, said),
    }
}

/// Where a check has no better advice.
fn usual_cure(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    match file.parent().and_then(Path::file_name).is_some_and(|parent| parent == "control") {
        true => format!("write it as qmail-control(5) says under {name}, and run qmail check again"),
        false => "put it right, and run qmail check again".to_owned(),
    }
}

/// What was found so far.
#[derive(Debug, Default)]
pub struct Findings(Vec<Finding>);

impl Findings {
    /// `said` is a sentence, `[line N: ]problem; cure`.
    pub fn add(&mut self, level: Level, file: &Path, said: impl Into<String>) {
        let finding = Finding::new(level, file, &said.into());
        // Several programs read the same file.
        let is_known =
            |known: &Finding| (&known.file, &known.problem) == (&finding.file, &finding.problem) && known.line == finding.line;
        if !self.0.iter().any(is_known) {
            self.0.push(finding);
        }
    }

    pub fn error(&mut self, file: &Path, said: impl Into<String>) {
        self.add(Level::Error, file, said);
    }

    pub fn warning(&mut self, file: &Path, said: impl Into<String>) {
        self.add(Level::Warning, file, said);
    }

    pub fn note(&mut self, file: &Path, said: impl Into<String>) {
        self.add(Level::Note, file, said);
    }

    /// The value, or nothing and an error.
    pub fn take<T>(&mut self, read: Result<T, ControlError>) -> Option<T> {
        read.map_err(|error| self.error(&error.file, located(&error))).ok()
    }

    /// All of it, the worst first.
    #[must_use]
    pub fn sorted(mut self) -> Vec<Finding> {
        self.0.sort_by_key(|finding| finding.level);
        self.0
    }
}

/// The text of an error, with the line if it only quotes what stands there.
fn located(error: &ControlError) -> String {
    let quoted = error.problem.strip_prefix('`').and_then(|rest| rest.split_once('`'));
    let Some((quoted, _)) = quoted.filter(|(quoted, _)| !quoted.is_empty()) else { return error.problem.clone() };
    let text = control::read::file(&error.file).ok().flatten().unwrap_or_default();
    let line = users::list_lines(&text).find(|(_, line)| wire::escape::visible(line) == quoted);
    line.map_or_else(|| error.problem.clone(), |(line, _)| format!("line {line}: {}", error.problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_is_taken_apart_and_put_together() {
        for (said, line, problem, cure) in [
            ("line 3: `a; b` is none; write one", Some(3), "`a; b` is none", "write one"),
            ("line 12, `x`: no such source; take it out", Some(12), "`x`: no such source", "take it out"),
            ("is missing; run qmail setup", None, "is missing", "run qmail setup"),
            ("line x: odd; mend it", None, "line x: odd", "mend it"),
        ] {
            let finding = Finding::new(Level::Error, Path::new("/r/etc/qmail/control/x"), said);
            assert_eq!((finding.line, &finding.problem[..], &finding.cure[..]), (line, problem, cure), "{said}");
        }
        let bare = Finding::new(Level::Note, Path::new("/r/etc/qmail/control/x"), "line 2: odd");
        assert!(bare.cure.contains("qmail-control(5) says under x"), "{bare:?}");
        assert!(bare.sentence().starts_with("line 2: odd; write it"), "{bare:?}");
        assert_eq!((&bare.json()["line"], &bare.json()["severity"]), (&json!(2), &json!("note")));
    }

    #[test]
    fn the_same_is_said_once() {
        let mut found = Findings::default();
        for _ in 0..2 {
            found.warning(Path::new("/a"), "b; c");
            found.error(Path::new("/a"), "d; c");
        }
        let all = found.sorted();
        assert_eq!(all.iter().map(|finding| finding.level).collect::<Vec<_>>(), [Level::Error, Level::Warning]);
    }
}
