fn main() -> std::process::ExitCode {
    tool::run(retrieval_tools::maildirmake::main)
}
