//! What editors and other systems leave in files: marks of byte order, CR, NUL, blanks in front. A program sees none of it.

use control::{Root, read};

use super::Findings;

/// What Windows writes in front of UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// Files whose lines count as they stand; in others words may stand anywhere.
const EXACT: [&str; 22] = [
    "authsenders",
    "badmailfrom",
    "bouncefrom",
    "bouncehost",
    "defaultdomain",
    "defaulthost",
    "doublebouncehost",
    "doublebounceto",
    "envnoathost",
    "helohost",
    "idhost",
    "lmtproutes",
    "localiphost",
    "locals",
    "me",
    "morercpthosts",
    "percenthack",
    "plusdomain",
    "rcpthosts",
    "smtproutes",
    "tlspolicy",
    "virtualdomains",
];

pub(super) fn check(root: &Root, found: &mut Findings) {
    let Ok(entries) = std::fs::read_dir(root.control()) else { return };
    for entry in entries.flatten() {
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        let path = entry.path();
        if name.ends_with(".cdb") || !super::control_files::is_known(root, &name) {
            continue;
        }
        // What cannot be read is said by those who read it.
        let Ok(Some(text)) = read::file(&path) else { continue };
        if text.starts_with(BYTE_ORDER_MARK) {
            found.error(
                &path,
                "line 1: begins with a byte order mark, which counts as a part of the value; save it without (UTF-8, no BOM)",
            );
        } else if text.starts_with(b"\xff\xfe") || text.starts_with(b"\xfe\xff") {
            found.error(&path, "line 1: is UTF-16, which nothing reads here; save it as UTF-8 without a byte order mark");
            continue;
        }
        let first = |is_odd: &dyn Fn(&[u8]) -> bool| {
            let mut numbered = text.split(|b| *b == b'\n').zip(1usize..);
            numbered.find(|(line, _)| is_odd(line)).map(|(_, number)| number)
        };
        if let Some(line) = first(&|line| line.contains(&0)) {
            found.error(&path, format!("line {line}: has a NUL byte, which is in no value; write the line again"));
        }
        if let Some(line) = first(&|line| line.ends_with(b"\r")) {
            let problem = "ends in CR LF, and though the CR is dropped here other programs take it for a part of the value";
            found.note(&path, format!("line {line}: {problem}; write the file with LF alone (dos2unix)"));
        }
        let is_indented =
            |line: &[u8]| line.first().is_some_and(|b| matches!(b, b' ' | b'\t')) && !users::trim_end(line).is_empty();
        if EXACT.contains(&name.as_str())
            && let Some(line) = first(&is_indented)
        {
            found.warning(&path, format!("line {line}: begins with a blank, which counts as a part of the line; take it away"));
        }
    }
}
