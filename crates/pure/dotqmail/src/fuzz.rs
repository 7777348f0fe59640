//! Invariants over arbitrary bytes, for cargo-fuzz and for the stable tests below.

use crate::{Delivery, FromQuoter, Instruction, Plan, Refusal, search};

/// Every instruction is a line of the file, and a forward-only file only forwards.
pub fn plan(data: &[u8]) {
    for is_forward_only in [false, true] {
        let plan = Plan::new(data, is_forward_only, b"./Maildir/");
        for instruction in &plan.instructions {
            let (Instruction::Mbox(text) | Instruction::Maildir(text) | Instruction::Program(text) | Instruction::Forward(text)) =
                instruction;
            assert!(!text.contains(&b'\n') && !text.contains(&0));
            assert!(!is_forward_only || data.is_empty() || matches!(instruction, Instruction::Forward(_)));
        }
        let blank_first = data.split(|b| *b == b'\n').next().is_some_and(|l| l.iter().all(|b| matches!(b, b' ' | b'\t')));
        assert_eq!(plan.refusal == Some(Refusal::FirstLineBlank), blank_first && !data.is_empty());
    }
}

/// File names made from an address stay in the directory that dash names.
pub fn names(data: &[u8]) {
    for candidate in search::candidates(b"-", data) {
        assert!(candidate.name.starts_with(b".qmail-"));
        assert!(candidate.name.split(|b| *b == b'/').all(|part| part != b"." && part != b".."));
        assert!(candidate.default_at.is_none_or(|at| at <= data.len()));
    }
}

/// The first byte cuts the rest in two; both halves in turn give what the whole gives.
pub fn chunks(data: &[u8]) {
    let Some((&at, message)) = data.split_first() else { return };
    let (first, second) = message.split_at_checked(usize::from(at)).unwrap_or((message, &[]));
    let quoted = |chunks: &[&[u8]]| {
        let (mut quoter, mut out) = (FromQuoter::default(), Vec::new());
        chunks.iter().for_each(|chunk| quoter.push(chunk, &mut out));
        quoter.finish(&mut out);
        out
    };
    let out = quoted(&[first, second]);
    assert_eq!(out, quoted(&[message]));
    assert!(!out.starts_with(b"From ") && !out.windows(6).any(|w| w == b"\nFrom ") && out.ends_with(b"\n"));
}

/// Trace lines stay single lines whatever an address holds.
pub fn trace(data: &[u8]) {
    let delivery = Delivery { user: data, home: data, local: data, dash: data, ext: data, host: data, sender: data };
    for (name, value) in delivery.environment(0, data, data.first().map(|b| usize::from(*b))) {
        assert!(!name.ends_with("LINE") || value.iter().position(|b| *b == b'\n') == value.len().checked_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    const CORPUS: &[&[u8]] = &[
        b"",
        b"\n",
        b"./Maildir/\n",
        b"|prog\n&a@b\n+list\n./x\n",
        b"\x05From >From \nFrom x",
        b"\x00>>From \n\na\n",
        b"a-b.C-default",
        b"x/../../y",
        b" \t\n\0",
        b"\xff\xfe|\0\n/abs\n",
    ];

    #[test]
    fn corpus() {
        for data in CORPUS {
            super::plan(data);
            super::names(data);
            super::chunks(data);
            super::trace(data);
        }
    }

    proptest! {
        #[test]
        fn random(data in prop_oneof![prop::collection::vec(any::<u8>(), 0..200), "[-|&./+#>From listx@\n\t\0]{0,80}".prop_map(String::into_bytes)]) {
            super::plan(&data);
            super::names(&data);
            super::chunks(&data);
            super::trace(&data);
        }
    }
}
