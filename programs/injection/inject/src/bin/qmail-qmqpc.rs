fn main() -> std::process::ExitCode {
    qmail_inject::qmail_qmqpc()
}
