fn main() -> std::process::ExitCode {
    qmail_acme::main()
}
