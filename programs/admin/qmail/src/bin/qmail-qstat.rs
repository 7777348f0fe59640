fn main() -> std::process::ExitCode {
    qmail::classic::run("qmail-qstat", qmail::classic::queue::qstat)
}
