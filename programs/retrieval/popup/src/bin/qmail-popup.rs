fn main() -> std::process::ExitCode {
    qmail_popup::main()
}
