fn main() -> std::process::ExitCode {
    qmail_local::main()
}
