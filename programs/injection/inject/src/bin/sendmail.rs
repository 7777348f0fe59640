fn main() -> std::process::ExitCode {
    qmail_inject::sendmail()
}
