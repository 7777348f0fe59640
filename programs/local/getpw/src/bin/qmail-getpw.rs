//! qmail-getpw: see the library.

fn main() -> std::process::ExitCode {
    qmail_getpw::run()
}
