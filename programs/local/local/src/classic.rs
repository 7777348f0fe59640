//! The classic face: `qmail-local [-nN] user homedir local dash ext domain sender defaultdelivery` (qmail-local(8)).
//!
//! The message is on descriptor 0, a seekable file. Success is `did F+W+P` on descriptor 1 and exit code 0; a failure is a line on
//! descriptor 2 and exit code 100 or 111. Programs get descriptors 1 and 2 as they are. Run by scripts, and by anyone as himself.

use crate::carry_out::{Carrier, Done, check_loop, dot_qmail};
use crate::failure::Failure;
use crate::forward::Forwarder;
use crate::home::{Fault, Home};
use crate::shell::Shell;
use dotqmail::{Delivery, Instruction, Plan};
use maildir::Body;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

const USAGE: &str = "qmail-local: usage: qmail-local [ -nN ] user homedir local dash ext domain sender aliasempty";

/// The command line.
struct Args<'a> {
    is_dry_run: bool,
    delivery: Delivery<'a>,
    default_delivery: &'a [u8],
}

/// Runs the face.
#[must_use]
pub fn main(args: &[OsString]) -> ExitCode {
    let (result, is_dry_run) = match parse(args) {
        Some(args) => (run(&args), args.is_dry_run),
        None => (Err(Failure::permanent(USAGE)), false),
    };
    match result {
        Ok(text) => match sys::standard::output().and_then(|mut out| out.write_all(text.as_bytes())) {
            Err(_) if is_dry_run => ExitCode::from(dotqmail::exit::TEMPORARY),
            // What is done is done: another try would do it twice.
            Ok(()) | Err(_) => ExitCode::SUCCESS,
        },
        Err(failure) => {
            // The exit code says it too, should nobody listen.
            let _ = io::stderr().write_all(&failure.line());
            ExitCode::from(failure.exit_code())
        }
    }
}

fn parse(args: &[OsString]) -> Option<Args<'_>> {
    let mut rest = args;
    let mut is_dry_run = false;
    while let Some((first, after)) = rest.split_first() {
        match first.as_encoded_bytes() {
            // Whatever follows the two, as ever.
            [b'-', b'-', ..] => {
                rest = after;
                break;
            }
            [b'-', letters @ ..] if !letters.is_empty() => {
                for letter in letters {
                    is_dry_run = match letter {
                        b'n' => true,
                        b'N' => false,
                        _ => {
                            let problem = [b"qmail-local: illegal option -- ", &[*letter][..], b"\n"].concat();
                            let _ = io::stderr().write_all(&problem);
                            return None;
                        }
                    };
                }
                rest = after;
            }
            _ => break,
        }
    }
    let [user, home, local, dash, ext, host, sender, default_delivery] = rest else { return None };
    let delivery = Delivery {
        user: user.as_encoded_bytes(),
        home: home.as_encoded_bytes(),
        local: local.as_encoded_bytes(),
        dash: dash.as_encoded_bytes(),
        ext: ext.as_encoded_bytes(),
        host: host.as_encoded_bytes(),
        sender: sender.as_encoded_bytes(),
    };
    delivery.home.starts_with(b"/").then_some(Args {
        is_dry_run,
        delivery,
        default_delivery: default_delivery.as_encoded_bytes(),
    })
}

fn run(args: &Args<'_>) -> Result<String, Failure> {
    let delivery = args.delivery;
    let home = Home::open(delivery.home)?;
    match home.fault()? {
        Some(Fault::Sticky) if args.is_dry_run => {
            let _ = io::stderr().write_all(b"Warning: home directory is sticky.\n");
        }
        Some(fault) => return Err(fault.into()),
        None => {}
    }
    if args.is_dry_run {
        let found = dot_qmail(&home, delivery.dash, delivery.ext)?;
        return show(&Plan::new(&found.text, found.is_forward_only, args.default_delivery));
    }
    let body = message()?;
    check_loop(&delivery, &body)?;
    let found = dot_qmail(&home, delivery.dash, delivery.ext)?;
    let plan = Plan::new(&found.text, found.is_forward_only, args.default_delivery);
    let root = control::Root::from_env().map_err(|e| Failure::temporary(e.to_string()))?;
    let carrier = Carrier {
        home: &home,
        delivery,
        default_at: found.default_at,
        body: &body,
        host: &maildir::host_name(),
        now_s: sys::clock::unix_s(),
        shell: Some(&Shell::inherited()),
        forwarder: &Forwarder::from_environment(&root),
        // The classic interface has no word for it.
        quota: maildir::Quota::default(),
        inherits: &ipc::inheritance::Inheritance::nothing(),
        warning: b"",
        lmtp: None,
    };
    Ok(carrier.carry_out(&plan)?.text())
}

fn message() -> Result<Body, Failure> {
    let fd = io::stdin().as_fd().try_clone_to_owned().map_err(|e| Failure::system("Unable to read message", &e))?;
    if sys::standard::was_closed(0) || rustix::fs::seek(&fd, rustix::fs::SeekFrom::Start(0)).is_err() {
        return Err(Failure::temporary("Unable to rewind message. (#4.3.0)"));
    }
    Body::new(File::from(fd)).map_err(|e| Failure::system("Unable to read message", &e))
}

/// `-n`: says what would be done, line by line, and does nothing.
fn show(plan: &Plan<'_>) -> Result<String, Failure> {
    let failed = |error: io::Error| Failure::system("Unable to write", &error);
    let mut out = sys::standard::output().map_err(failed)?;
    let mut done = Done::default();
    for instruction in &plan.instructions {
        done.count(instruction);
        let (kind, text) = match instruction {
            Instruction::Mbox(path) => ("mbox ", path),
            Instruction::Maildir(path) => ("maildir ", path),
            Instruction::Program(line) => ("program ", line),
            Instruction::Forward(address) => ("forward ", address),
        };
        let line = [kind.as_bytes(), text, b"\n"].concat();
        out.write_all(&line).map_err(failed)?;
    }
    plan.refusal.map_or_else(|| Ok(done.text()), |refusal| Err(refusal.into()))
}
