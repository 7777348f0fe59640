fn main() -> std::process::ExitCode {
    qmail_pop3d::main()
}
