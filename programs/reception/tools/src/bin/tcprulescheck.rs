fn main() -> std::process::ExitCode {
    tool::run(reception_tools::rules::tcprulescheck)
}
