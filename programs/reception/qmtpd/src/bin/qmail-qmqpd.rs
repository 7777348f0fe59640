fn main() -> std::process::ExitCode {
    qmail_qmtpd::qmail_qmqpd()
}
