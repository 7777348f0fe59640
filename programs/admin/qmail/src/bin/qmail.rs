//! qmail: see the library.

fn main() -> std::process::ExitCode {
    qmail::run()
}
