fn main() -> std::process::ExitCode {
    qmail::classic::run("qmail-tcpok", qmail::classic::tcpto::forget)
}
