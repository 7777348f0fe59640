fn main() -> std::process::ExitCode {
    qmail_resolve::main()
}
