fn main() -> std::process::ExitCode {
    qmail_auth::main()
}
