//! One binary for all targets of `system_tests::targets`: `QMAIL_FUZZ=smtp_session cargo fuzz run target tests/corpus/smtp_session`.
#![no_main]

use std::sync::OnceLock;
use system_tests::targets::{TARGETS, Target};

static CHOSEN: OnceLock<Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let target = CHOSEN.get_or_init(|| {
        let name = std::env::var("QMAIL_FUZZ").expect("QMAIL_FUZZ names the target");
        TARGETS.iter().find(|(known, _)| *known == name).expect("a target of system_tests::targets").1
    });
    target(data);
});
