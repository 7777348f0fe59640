fn main() -> std::process::ExitCode {
    checkpassword::main()
}
