fn main() -> std::process::ExitCode {
    tool::run(retrieval_tools::maildir2mbox::elq)
}
