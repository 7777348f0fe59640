//! `bench`: see the library. `cargo xtask bench` builds it and starts it in namespaces of its own.

fn main() -> std::process::ExitCode {
    bench::main()
}
