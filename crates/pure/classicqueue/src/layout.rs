//! Names: `mess/S/N`, S = N mod the number of splits; some queues have flat directories, or split ones for todo and intd as well.

/// Most digits of a message's number: an inode has 64 bits.
const DIGITS_MAX: usize = 20;

/// What a file name says: digits without leading zeros are a message's number.
#[must_use]
pub fn number(name: &[u8]) -> Option<u64> {
    let is_number = !name.is_empty() && name.len() <= DIGITS_MAX && name.iter().all(u8::is_ascii_digit);
    let is_canonical = name == b"0" || name.first() != Some(&b'0');
    std::str::from_utf8(name).ok().filter(|_| is_number && is_canonical)?.parse().ok()
}

/// The directory of a message where directories are split.
#[must_use]
pub fn split(number: u64, splits: u64) -> u64 {
    number.checked_rem(splits).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_numbers() {
        for (name, expected) in [
            (&b"0"[..], Some(0)),
            (b"1234567", Some(1_234_567)),
            (b"18446744073709551615", Some(u64::MAX)),
            (b"18446744073709551616", None),
            (b"", None),
            (b"012", None),
            (b"12a", None),
            (b"-1", None),
            (b"12.tmp", None),
        ] {
            assert_eq!(number(name), expected);
        }
        assert_eq!((split(46, 23), split(47, 23), split(5, 0), split(5, 1)), (0, 1, 0, 0));
    }
}
