//! Speed beside Postfix and Exim: the same work for each, in the same run, in turn, on one machine.
//!
//! `cargo xtask bench` builds the programs and starts this one as root in mount and process namespaces of its own; [`stage`]
//! says what it finds there. For each scenario the rows take turns (A B C, A B C, …), so that a machine that gets slower
//! meanwhile is slow for all; medians, ranges and ratios are printed, everything is written as JSON.
//! All traffic is on loopback, every wait has a bound, only processes started here are ended.

mod aims;
mod arguments;
mod backlog;
mod disk;
mod dns;
mod figures;
mod generator;
mod group;
mod idle_sessions;
mod letters;
mod machine;
mod mailboxes;
mod meter;
mod million;
mod pop3;
mod protected;
mod report;
mod responder;
mod scenario;
mod server;
mod stage;
mod stats;
mod syncs;
mod target;

use anyhow::Result;
use arguments::Arguments;
use report::Results;
use scenario::{Scenario, Size};
use stage::Stage;
use std::collections::BTreeMap;
use std::io::Read;
use std::process::ExitCode;
use target::{Row, Target};

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    match Arguments::parse(std::env::args().skip(1)).and_then(|arguments| run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    end_with_the_caller()?;
    dns::start()?;
    println!("preparing {}", arguments.work.display());
    let stage = Stage::prepare(&arguments.work, &arguments.programs, &arguments.cache)?;
    let mut bench = Bench { stage: &stage, arguments, versions: BTreeMap::new() };
    println!("{}", machine::describe());
    let mut all = Vec::new();
    for scenario in arguments.scenarios() {
        let results = bench.measure(scenario);
        println!("{}", results.table());
        all.push(results);
    }
    let verdicts = aims::verdicts(&all);
    println!("{}", aims::table(&verdicts));
    let report = serde_json::json!({
        "machine": machine::json(),
        "versions": bench.versions,
        "profile": arguments.profile,
        "quick": arguments.quick,
        "rounds": arguments.rounds,
        "scenarios": all.iter().map(Results::json).collect::<Vec<_>>(),
        "aims": aims::to_json(&verdicts),
    });
    std::fs::write(&arguments.out, serde_json::to_vec_pretty(&report)?)?;
    println!("all figures: {}", arguments.out.display());
    Ok(())
}

/// Standard input is a pipe from the caller: when the caller is gone, so are we, and with us the namespace.
fn end_with_the_caller() -> Result<()> {
    std::thread::Builder::new().name("lifeline".into()).spawn(|| {
        let mut stdin = std::io::stdin().lock();
        while stdin.read(&mut [0; 64]).is_ok_and(|n| n > 0) {}
        std::process::exit(1);
    })?;
    Ok(())
}

struct Bench<'a> {
    stage: &'a Stage,
    arguments: &'a Arguments,
    versions: BTreeMap<&'static str, String>,
}

impl Bench<'_> {
    /// All rounds of a scenario. A row that fails is told and missing; the others go on.
    fn measure(&mut self, scenario: &'static Scenario) -> Results {
        println!("\n{}: {}", scenario.name, scenario.about);
        let rows: Vec<Row> = scenario.rows.iter().copied().filter(|row| self.arguments.wants(*row)).collect();
        let mut results = Results { scenario, rows: rows.into_iter().map(|row| (row, Vec::new())).collect() };
        for round in 1..=scenario.rounds(self.arguments.rounds) {
            for (row, rounds) in &mut results.rows {
                match self.once(scenario, *row, round) {
                    Ok(figures) => {
                        let first = scenario.columns.first().copied().unwrap_or_default();
                        let value = figures.get(first).unwrap_or_default();
                        println!("  round {round} {}: {value:.1} {}", row.title(), first.replace('_', " "));
                        rounds.push(figures);
                    }
                    Err(error) => println!("  round {round} {}: FAILED: {error:#}", row.title()),
                }
            }
        }
        results.rows.retain(|(_, rounds)| !rounds.is_empty());
        results
    }

    fn once(&mut self, scenario: &Scenario, row: Row, round: usize) -> Result<figures::Figures> {
        let mut target = Target::new(row, self.stage)?;
        if let Some(target) = &target
            && !self.versions.contains_key(row.word())
        {
            self.versions.insert(row.word(), target.version()?);
        }
        let run = format!("{}-{round}-{}", scenario.name.replace('/', "."), row.word());
        scenario::run(scenario, row, target.as_mut(), self.stage, Size { quick: self.arguments.quick }, &run)
    }
}
