//! PEM (RFC 7468): base64 between lines with a label. Text around it does not count. For keys: every copy of what is read is wiped.

use wire::base64;
use zeroize::Zeroizing;

/// A block: its label, and its bytes, which may be secret.
pub(crate) struct Block {
    pub(crate) label: String,
    pub(crate) der: Zeroizing<Vec<u8>>,
}

/// All blocks of a file.
///
/// # Errors
/// A block without its end, or one that is not base64: what is wrong.
pub(crate) fn blocks(text: &[u8]) -> Result<Vec<Block>, String> {
    let mut found = Vec::new();
    let mut open: Option<(String, Zeroizing<Vec<u8>>)> = None;
    for line in text.split(|b| *b == b'\n').map(<[u8]>::trim_ascii) {
        match &mut open {
            None => open = label(line, b"-----BEGIN ").map(|label| (label, Zeroizing::new(Vec::with_capacity(text.len())))),
            Some((begun, base64)) => match label(line, b"-----END ") {
                Some(ended) if ended == *begun => {
                    let der = base64::decode(base64).map_err(|_| format!("the block {begun} is not base64"))?;
                    found.push(Block { label: ended, der: Zeroizing::new(der) });
                    open = None;
                }
                // The capacity is enough: no copy of a secret is left behind by growth.
                _ => base64.extend_from_slice(line),
            },
        }
    }
    match open {
        Some((label, _)) => Err(format!("the block {label} has no end")),
        None => Ok(found),
    }
}

fn label(line: &[u8], begin: &[u8]) -> Option<String> {
    let label = line.strip_prefix(begin)?.strip_suffix(b"-----")?;
    label.iter().all(|b| matches!(b, b' '..=b'~')).then(|| String::from_utf8_lossy(label).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_blocks_and_nothing_else() {
        let text = b"subject: x\r\n-----BEGIN A B-----\r\nAAEC\r\nAw==\r\n-----END A B-----\r\nwords\n-----BEGIN C-----\n-----END C-----";
        let found = blocks(text).unwrap();
        assert_eq!(found.iter().map(|block| block.label.as_str()).collect::<Vec<_>>(), ["A B", "C"]);
        assert_eq!((&found[0].der[..], &found[1].der[..]), (&[0, 1, 2, 3][..], &[][..]));
        for bad in
            ["-----BEGIN A-----\nAAEC\n", "-----BEGIN A-----\nAA=C\n-----END A-----\n", "-----BEGIN A-----\n-----END B-----"]
        {
            assert!(blocks(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(blocks(b"").unwrap().is_empty());
    }
}
