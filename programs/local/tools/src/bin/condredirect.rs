fn main() -> std::process::ExitCode {
    tool::run(local_tools::judge::condredirect)
}
