//! Starts the whole system and keeps it running (qmail-start(8)).

fn main() -> std::process::ExitCode {
    qmail_start::main()
}
