//! Fuzz target: any bytes as any of the files.

use crate::{bounce_text, envelope, info, info_bytes, layout, marked, marked_bytes, paragraphs, todo};

/// What is read is written back as it was; what is damaged is said.
pub fn files(data: &[u8]) {
    if let Ok(sender) = info(data) {
        assert_eq!(info_bytes(&sender), data);
    }
    if let Ok(recipients) = marked(data) {
        assert_eq!(marked_bytes(&recipients), data);
    }
    if let Ok(whole) = todo(data) {
        assert_eq!(todo(&envelope::todo_bytes(&whole)), Ok(whole));
    }
    if let Some(number) = layout::number(data) {
        assert_eq!(number.to_string().as_bytes(), data);
    }
    let found = paragraphs(data);
    let lost = data.iter().filter(|byte| **byte != b'\n').count();
    let kept: usize = found.iter().map(|one| one.report.iter().filter(|byte| **byte != b'\n').count()).sum();
    let heads: usize = found.iter().filter_map(|one| one.address.as_ref()).map(|address| address.as_bytes().len() + 3).sum();
    assert_eq!(lost, kept + heads, "no byte of a bounce is lost");
    for one in &found {
        if let Some(address) = &one.address {
            let again = paragraphs(&bounce_text(address.as_bytes(), &one.report));
            assert_eq!(again.len(), 1);
            assert_eq!(again.first().map(|again| &again.address), Some(&one.address));
        }
    }
}
