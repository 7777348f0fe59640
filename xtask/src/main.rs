//! The project's own commands: `cargo xtask try|test|ci|layers|fuzz|bench|dist|apparmor`.

mod bench;
mod cargo;
mod ci;
mod dist;
mod docs;
mod documented;
mod layers;
mod letter;
mod manual;
mod skipped;
mod trial;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  try [--once] [--dir DIR] [--programs DIR] [--base-port N]
            build, set up an instance, send a letter through it and read it back; then keep running until Ctrl-C
  test      all tests; skipped ones are counted and printed
  fuzz [SECONDS]
            every fuzz target over its corpus and random inputs, on the stable toolchain (10 s in all by default)
  bench [SCENARIO…] [--rounds N] [--quick] [--only ROW,…] [--profile NAME | --programs DIR]
            as root: measure beside Postfix and Exim, 5 rounds; see bench/README.md
  dist [--profile NAME | --programs DIR] [--out DIR] [--rpm | --static] [--quick]
            packages of the release build below target/packages: Debian's, an rpm where rpmbuild is installed, and a tarball;
            --rpm: the rpm alone; --static: a tarball alone, of programs that need no library; --quick: packed fast, and
            Debian's alone without --rpm
  apparmor  print the AppArmor profiles that the Debian package has
  layers    check crate layers, what root programs link, licences
  docs [--write]
            check that the documentation says what the code does; --write: make what is made of it (docs/manual.md)
  ci        all of it: fmt, clippy, layers, docs, fuzz, try (as root and not), test";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let command = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    let result = match command.as_str() {
        "try" => trial::run(&rest),
        "test" => skipped::test(),
        "fuzz" => ci::fuzz(rest.first().map_or("10", String::as_str), None),
        "bench" => bench::run(&rest),
        "layers" => layers::check(),
        "docs" if rest == ["--write"] => docs::write(),
        "docs" => docs::check(),
        "dist" => dist::run(&rest),
        "apparmor" => dist::print_profiles(),
        "ci" => ci::run(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(100);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
