fn main() -> std::process::ExitCode {
    tool::run(local_tools::dot_forward::main)
}
