fn main() -> std::process::ExitCode {
    qmail::classic::run("qmail-showctl", qmail::classic::showctl::showctl)
}
