//! qmail-control(5), made of docs/control.md, so that there is one text about the control files. It reads the Markdown that is there:
//! headings, tables, lists, blocks of code, paragraphs; anything else comes out as a paragraph.

use std::fmt::Write as _;

const HEAD: &str = ".\\\" SPDX-License-Identifier: MIT OR Apache-2.0\n.Dd November 25, 2026\n.Dt QMAIL-CONTROL 5\n.Os qmail-rs\n.Sh NAME\n\
    .Nm qmail-control\n.Nd the control files of qmail\n.Sh DESCRIPTION\n";
const TAIL: &str = ".Sh SEE ALSO\n.Xr qmail 7 ,\n.Xr qmail 8 ,\n.Xr qmail-start 8\n";

/// The page.
pub(crate) fn control_files(markdown: &str) -> String {
    let mut page = HEAD.to_owned();
    let mut lines = markdown.lines().skip(1).peekable();
    while let Some(line) = lines.next() {
        if let Some(title) = line.strip_prefix("## ") {
            let _ = writeln!(page, ".Sh {}", inline(&title.to_uppercase()));
        } else if let Some(title) = line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#')) {
            let _ = writeln!(page, ".Ss {}", inline(title));
        } else if line.starts_with("```") {
            let code: Vec<&str> = lines.by_ref().take_while(|line| !line.starts_with("```")).collect();
            block(&mut page, &code);
        } else if line.starts_with("    ") {
            let mut code = vec![line];
            while let Some(line) = lines.next_if(|line| line.starts_with("    ")) {
                code.push(line);
            }
            block(&mut page, &code);
        } else if line.starts_with('|') {
            let mut rows = vec![cells(line)];
            while let Some(row) = lines.next_if(|line| line.starts_with('|')) {
                rows.push(cells(row));
            }
            table(&mut page, &rows);
        } else if let Some(item) = line.strip_prefix("- ") {
            let mut item = item.to_owned();
            while let Some(more) = lines.next_if(|line| line.starts_with("  ")) {
                item = item + " " + more.trim();
            }
            let _ = writeln!(page, ".Pp\n\\(bu {}", inline(&item));
        } else if line.trim().is_empty() {
            let is_text =
                |next: &&str| !next.starts_with("```") && next.starts_with(|c: char| c.is_alphanumeric() || "`\"*[".contains(c));
            if lines.peek().is_some_and(is_text) && !page.ends_with(HEAD) {
                page.push_str(".Pp\n");
            }
        } else {
            let _ = writeln!(page, "{}", inline(line));
        }
    }
    tidy(&page) + TAIL
}

/// A paragraph right behind a heading begins by itself; a sentence begins a line, as mdoc(7) has it.
fn tidy(page: &str) -> String {
    let mut tidy = String::new();
    let (mut last, mut is_literal) = ("", false);
    for line in page.lines() {
        if line == ".Pp" && last.starts_with(".S") {
            continue;
        }
        is_literal = (is_literal || line.starts_with(".Bd")) && line != ".Ed";
        if is_literal || line.starts_with('.') {
            let _ = writeln!(tidy, "{line}");
        } else {
            for sentence in sentences(line) {
                let _ = writeln!(tidy, "{}", guarded(sentence));
            }
        }
        last = line;
    }
    tidy
}

/// A line of text, cut behind each mark that may end a sentence.
fn sentences(line: &str) -> impl Iterator<Item = &str> {
    line.split_inclusive(' ')
        .scan((0, 0), |(start, end), word| {
            *end += word.len();
            let is_end = word.trim_end().trim_end_matches([')', '"', '\'', ']']).ends_with(['.', '!', '?']) && *end < line.len();
            let cut = if is_end || *end == line.len() { line.get(*start..*end) } else { Some("") };
            *start = if is_end { *end } else { *start };
            cut
        })
        .map(str::trim_end)
        .filter(|sentence| !sentence.is_empty())
}

/// A row's cells; `\|` is no border.
fn cells(row: &str) -> Vec<String> {
    let row = row.trim().trim_start_matches('|').trim_end_matches('|').replace("\\|", "\0");
    row.split('|').map(|cell| cell.trim().replace('\0', "|")).collect()
}

/// The first cell is the name; the last one says what it means, those between are said behind it with the heads of their columns.
fn table(page: &mut String, rows: &[Vec<String>]) {
    let [heads, _, rows @ ..] = rows else { return };
    page.push_str(".Bl -tag -width Ds\n");
    for row in rows {
        let [name, between @ .., meaning] = row.as_slice() else { continue };
        let _ = writeln!(page, ".It {}\n{}.", inline(name), inline(meaning.trim_end_matches('.')));
        for (head, cell) in heads.iter().skip(1).zip(between) {
            let none = if cell == "\u{2013}" { "none" } else { cell };
            let _ = writeln!(page, "{}: {}.", capital(head), inline(none));
        }
    }
    page.push_str(".El\n");
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

fn block(page: &mut String, code: &[&str]) {
    page.push_str(".Bd -literal -offset indent\n");
    for line in code {
        let _ = writeln!(page, "{}", plain(line.trim_start_matches("    ")));
    }
    page.push_str(".Ed\n");
}

/// Code in bold, links as their text.
fn inline(text: &str) -> String {
    let mut out = String::new();
    for (at, part) in text.split('`').enumerate() {
        if at % 2 == 1 {
            let _ = write!(out, "\\fB{}\\fP", escaped(part).replace('-', "\\-"));
        } else {
            out += &escaped(&without_links(part));
        }
    }
    guarded(&out)
}

fn without_links(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, link)) = rest.split_once('[') {
        let Some((label, (_, behind))) = link.split_once("](").and_then(|(label, to)| Some((label, to.split_once(')')?))) else {
            break;
        };
        out = out + before + label;
        rest = behind;
    }
    out + rest
}

fn plain(text: &str) -> String {
    guarded(&escaped(text).replace('-', "\\-"))
}

/// troff's own character, and all that is not ASCII.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\e"),
            c if c.is_ascii() => out.push(c),
            c => {
                let _ = write!(out, "\\[u{:04X}]", u32::from(c));
            }
        }
    }
    out
}

/// A line that begins like a request is none.
fn guarded(text: &str) -> String {
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_table_is_an_item() {
        let text = std::fs::read_to_string(crate::cargo::workspace().join("docs/control.md")).unwrap();
        let page = control_files(&text);
        let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| `")).collect();
        assert!(rows.len() > 60, "{}", rows.len());
        for row in rows {
            let name = inline(&cells(row)[0]);
            assert!(page.lines().any(|line| line == format!(".It {name}")), "{name}");
        }
    }

    #[test]
    fn a_sentence_begins_a_line() {
        let page = ".Sh X\n.Pp\nOne (a. b.) two. Three? .four\n.Bd -literal\na. b\n.Ed\nend.\n";
        let expected = ".Sh X\nOne (a.\nb.)\ntwo.\nThree?\n\\&.four\n.Bd -literal\na. b\n.Ed\nend.\n";
        assert_eq!(tidy(page), expected);
    }

    #[test]
    fn the_markdown_that_is_there() {
        let text = "# T\n\nOne `a-b` [x](y.md)\n.d\n\n## Two\n\n| n | by | m |\n|---|---|---|\n| `x` | q | a\\|b\\ |\n\n```\n.c\n```\n\n- i\n  j\n";
        let expected = "One \\fBa\\-b\\fP x\n\\&.d\n.Sh TWO\n.Bl -tag -width Ds\n.It \\fBx\\fP\na|b\\e.\nBy: q.\n.El\n\
            .Bd -literal -offset indent\n\\&.c\n.Ed\n.Pp\n\\(bu i j\n";
        assert_eq!(control_files(text), [HEAD, expected, TAIL].concat());
    }
}
