fn main() -> std::process::ExitCode {
    qmail_send::main()
}
