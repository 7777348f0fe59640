//! predate(1) and datemail(1): a Date field in local time before a message; what comes next takes it from there.

use std::ffi::OsString;

use tool::child::{self, Fed};
use tool::{End, Name, TEMPORARY, input};
use wire::civil::Civil;

const ME: Name = Name("predate");

/// `predate COMMAND [ARG…]`: the command's exit code.
///
/// # Errors
/// It cannot be run or crashed, or the message cannot be read.
pub fn main(args: &[OsString]) -> Result<u8, End> {
    if args.is_empty() {
        return Err(ME.usage("child"));
    }
    predated(args)
}

/// `datemail [ARG…]`: as `predate sendmail [ARG…]`.
///
/// # Errors
/// As [`main`].
pub fn datemail(args: &[OsString]) -> Result<u8, End> {
    let sendmail = child::of_release("sendmail");
    let debian = std::path::Path::new("/usr/sbin/sendmail");
    // PATH of a plain user has no sbin.
    let sendmail = if sendmail == "sendmail" && debian.is_file() { debian.as_os_str().to_owned() } else { sendmail };
    predated(&[&[sendmail], args].concat())
}

fn predated(command: &[OsString]) -> Result<u8, End> {
    let mut message = input::stdin().map_err(|error| ME.system("unable to read message", &error))?;
    let now_s = sys::clock::unix_s();
    let mut fed = Fed::start(ME, command, TEMPORARY)?;
    fed.put(date_field(now_s, sys::clock::utc_offset_s(now_s)).as_bytes());
    fed.feed(ME, &mut message)
}

/// `Date: D Mon YYYY HH:MM:SS ±hhmm` with its LF (RFC 5322 §3.3).
fn date_field(unix_s: u64, offset_s: i64) -> String {
    let civil = Civil::from_unix(unix_s.saturating_add_signed(offset_s));
    let Civil { year, day, hour, minute, second, .. } = civil;
    let sign = if offset_s < 0 { '-' } else { '+' };
    let minutes = offset_s.unsigned_abs().saturating_add(30) / 60;
    let (zone_h, zone_m) = (minutes / 60, minutes % 60);
    format!("Date: {day} {} {year} {hour:02}:{minute:02}:{second:02} {sign}{zone_h:02}{zone_m:02}\n", civil.month_name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_east_and_west() {
        for (unix_s, offset_s, text) in [
            (951_782_399, 0, "Date: 28 Feb 2000 23:59:59 +0000\n"),
            (951_782_399, 3600, "Date: 29 Feb 2000 00:59:59 +0100\n"),
            (951_782_400, -12_600, "Date: 28 Feb 2000 20:30:00 -0330\n"),
            (0, 20_700, "Date: 1 Jan 1970 05:45:00 +0545\n"),
        ] {
            assert_eq!(date_field(unix_s, offset_s), text);
        }
    }
}
