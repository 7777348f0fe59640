fn main() -> std::process::ExitCode {
    qmail_remote::main()
}
