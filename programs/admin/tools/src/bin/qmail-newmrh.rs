fn main() -> std::process::ExitCode {
    tool::run(admin_tools::newmrh::main)
}
