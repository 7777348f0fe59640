//! `qmail log`: the story of a message, or of all messages of an address, from journald or from files.
//!
//! The log is read once, as a stream; what is remembered of it is bounded ([`story`]), however large it is. Lines that nobody
//! understands are passed over. Nothing that strangers wrote reaches a terminal unescaped (promise 6).

mod record;
mod show;
mod source;
mod stats;
mod story;

use control::Root;
use logline::Surroundings;
use std::io::Write as _;

use crate::cli::Log;
use crate::print::Printer;
use crate::{Failure, value};
use record::Reader;
use source::Source;
use story::{Assembler, Item, Wanted};

/// Runs the command; false: there is nothing about it in the log.
///
/// # Errors
/// The log cannot be read, or standard output is closed.
pub fn run(root: &Root, options: &Log, printer: Printer) -> Result<bool, Failure> {
    let now_s = sys::clock::unix_s();
    let around = Surroundings { now_us: now_s.saturating_mul(1_000_000), offset_s: sys::clock::utc_offset_s(now_s) };
    let since_s = options.since.as_deref().map(|text| value::since(text, now_s)).transpose()?;
    let mut source = Source::open(root, options, since_s)?;
    let mut reader = Reader::new(around, since_s);
    let Some(wanted) = &options.wanted else {
        let mut stats = stats::Stats::default();
        while source.next()? {
            reader.record(source.line()).iter().for_each(|record| stats.add(record));
        }
        source.finish()?;
        stats.show(printer)?;
        return Ok(true);
    };
    let mut assembler = Assembler::new(Wanted::parse(wanted));
    let mut found = 0_u64;
    let mut show = |item: Item| {
        found = found.saturating_add(1);
        show::item(&item, printer)
    };
    while source.next()? {
        let Some(record) = reader.record(source.line()) else { continue };
        let mut items = Vec::new();
        let belongs = assembler.add(&record, &mut items);
        if options.follow {
            if belongs {
                show::event(&record, printer)?;
            }
            continue;
        }
        items.into_iter().try_for_each(&mut show)?;
    }
    source.finish()?;
    if options.follow {
        return Ok(true);
    }
    assembler.finish().into_iter().try_for_each(&mut show)?;
    if found == 0 {
        let what = if wanted.bytes().all(|b| b.is_ascii_digit()) { "message" } else { "message of" };
        let asked = wire::escape::visible(wanted.as_bytes());
        let _ = writeln!(std::io::stderr(), "qmail: there is no {what} {asked} in {}", source.name());
    }
    Ok(found > 0)
}
