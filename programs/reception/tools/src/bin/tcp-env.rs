fn main() -> std::process::ExitCode {
    tool::run(reception_tools::tcp_env::main)
}
