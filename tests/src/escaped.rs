//! Bytes as the tables of cases write them.

/// The bytes of a text with `\n`, `\r`, `\t`, `\0` and `\xNN`; before anything else a backslash stands for nothing.
///
/// # Panics
/// An escape is cut off.
#[must_use]
pub fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let meant = if byte == b'\\' { escape(&mut bytes) } else { Some(byte) };
        assert!(meant.is_some(), "an escape is cut off: {text}");
        out.extend(meant);
    }
    out
}

/// What stands behind a backslash.
fn escape(bytes: &mut impl Iterator<Item = u8>) -> Option<u8> {
    Some(match bytes.next()? {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'0' => 0,
        b'x' => {
            let digits = [bytes.next()?, bytes.next()?];
            u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
        }
        other => other,
    })
}
