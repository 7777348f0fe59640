fn main() -> std::process::ExitCode {
    qmail_keys::main()
}
