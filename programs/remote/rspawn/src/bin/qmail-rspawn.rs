fn main() -> std::process::ExitCode {
    qmail_rspawn::main()
}
