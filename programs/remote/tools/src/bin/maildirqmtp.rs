fn main() -> std::process::ExitCode {
    tool::run(remote_tools::maildirserial::qmtp)
}
