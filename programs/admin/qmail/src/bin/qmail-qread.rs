fn main() -> std::process::ExitCode {
    qmail::classic::run("qmail-qread", qmail::classic::queue::qread)
}
