fn main() -> std::process::ExitCode {
    qmail::classic::run("qmail-tcpto", qmail::classic::tcpto::show)
}
