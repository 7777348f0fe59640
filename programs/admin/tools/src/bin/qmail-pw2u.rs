fn main() -> std::process::ExitCode {
    tool::run(admin_tools::pw2u::main)
}
