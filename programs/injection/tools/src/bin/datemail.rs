fn main() -> std::process::ExitCode {
    tool::run(injection_tools::predate::datemail)
}
