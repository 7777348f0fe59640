fn main() -> std::process::ExitCode {
    tool::run(admin_tools::newu::main)
}
