fn main() -> std::process::ExitCode {
    qmail_authnet::main()
}
