//! qmail-lspawn: see the library.

fn main() -> std::process::ExitCode {
    qmail_lspawn::run()
}
