fn main() -> std::process::ExitCode {
    qmail_smtpd::main()
}
