fn main() -> std::process::ExitCode {
    qmail_hook::main()
}
