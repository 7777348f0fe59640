fn main() -> std::process::ExitCode {
    qmail_checkpw::main()
}
