//! Program deliveries whose processes are killed: a program never goes on beside the next attempt.
#![allow(clippy::unwrap_used)]

use rustix::process::Signal;
use system_tests::instance::ME;
use system_tests::{Instance, Person, facts, wait_for};

/// Notes itself and a child, each in a line, and then waits for the file `go`.
const PROGRAM: &str = "|{ while [ ! -e go ]; do sleep 0.1; done; } & echo $! $$ >>runs; wait; echo done >>ends\n";

/// The shells of an attempt: what runs in the background and its parent.
fn runs(person: &Person) -> Vec<Vec<u32>> {
    let text = person.read("runs").unwrap_or_default();
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole.map(|line| line.split_whitespace().map(|pid| pid.parse().unwrap()).collect()).collect()
}

fn wait_run(person: &Person, count: usize) -> Vec<u32> {
    wait_for("the program", || runs(person).get(count.checked_sub(1)?).cloned()).unwrap()
}

/// Kills the processes of this name below qmail-start.
fn kill(instance: &Instance, name: &str) {
    let found: Vec<_> = facts::descendants(instance.pid()).into_iter().filter(|process| process.name == name).collect();
    assert!(!found.is_empty(), "no {name} runs");
    found.iter().for_each(|process| facts::signal(process.pid, Signal::KILL));
}

#[test]
fn a_program_does_not_outlive_those_who_started_it() {
    let instance = Instance::started(&[]).unwrap();
    let person = Person::new(&instance).unwrap();
    person.write(".qmail", PROGRAM).unwrap();
    instance.smtp().unwrap().send("a@elsewhere.test", &[&format!("{}@{ME}", person.name)], "Subject: x\n\nx\n").unwrap();
    for (attempt, killed) in [(1, "qmail-lspawn"), (2, "qmail-local")] {
        let pids = wait_run(&person, attempt);
        assert!(pids.len() == 2 && pids.iter().all(|pid| facts::is_alive(*pid)), "{pids:?}");
        kill(&instance, killed);
        wait_for("the end of the program", || (!pids.iter().any(|pid| facts::is_alive(*pid))).then_some(())).unwrap();
        let again = || {
            instance.must(&["queue", "retry", "--all"]).unwrap();
            (runs(&person).len() > attempt).then_some(())
        };
        wait_for("the next attempt", again).unwrap();
    }
    std::fs::write(person.home.join("go"), "").unwrap();
    instance.retry_until_empty().unwrap();
    assert_eq!((runs(&person).len(), person.read("ends").as_deref()), (3, Some("done\n")));
}

/// qmail-command(8): what a program leaves in the background is not waited for, and not ended either.
#[test]
fn what_a_program_leaves_in_the_background_goes_on() {
    let instance = Instance::started(&[]).unwrap();
    let person = Person::new(&instance).unwrap();
    person.write(".qmail", "|{ while [ ! -e go ]; do sleep 0.1; done; echo done >ends; } >/dev/null 2>&1 &\n").unwrap();
    for _ in 0..3 {
        let recipient = format!("{}@{ME}", person.name);
        instance.smtp().unwrap().send("a@elsewhere.test", &[&recipient], "Subject: x\n\nx\n").unwrap();
        instance.wait_empty().unwrap();
    }
    let workers = || facts::descendants(instance.pid()).into_iter().any(|process| process.name == "qmail-local");
    wait_for("the end of the workers", || (!workers()).then_some(())).unwrap();
    std::fs::write(person.home.join("go"), "").unwrap();
    wait_for("the background", || person.read("ends")).unwrap();
}
