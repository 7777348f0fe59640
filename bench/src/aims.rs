//! What the project wants to reach, checked against what was measured.

use crate::report::{Results, markdown};
use crate::target::Row;
use serde_json::{Value, json};

enum Bound {
    /// Our figure is at least so many times that of a row.
    AtLeast(f64, Row),
    /// Our figure is at most so many times that of a row.
    AtMost(f64, Row),
    /// Our figure itself.
    Over(f64),
    Under(f64),
}

struct Aim {
    scenario: &'static str,
    figure: &'static str,
    bound: Bound,
}

const fn aim(scenario: &'static str, figure: &'static str, bound: Bound) -> Aim {
    Aim { scenario, figure, bound }
}

const AIMS: [Aim; 34] = [
    aim("S1", "per_s", Bound::AtLeast(4.0, Row::Postfix)),
    aim("S1", "per_s", Bound::AtLeast(3.0, Row::PostfixNoFlowDelay)),
    aim("S1", "per_s", Bound::AtLeast(0.7, Row::DiskFiles)),
    aim("S1", "cpu_s_per_1000", Bound::AtMost(0.25, Row::Postfix)),
    aim("S2", "per_s", Bound::AtLeast(5.0, Row::Postfix)),
    aim("S2", "cpu_s_per_1000", Bound::AtMost(0.25, Row::Postfix)),
    aim("S3", "per_s", Bound::AtLeast(5.0, Row::Postfix)),
    aim("S3", "cpu_s_per_1000", Bound::AtMost(0.25, Row::Postfix)),
    aim("S4/100", "per_s", Bound::AtLeast(8.0, Row::Postfix)),
    aim("S4/100", "per_s", Bound::AtLeast(0.6, Row::Nothing)),
    aim("S4/100", "cpu_s_per_1000", Bound::AtMost(0.25, Row::Postfix)),
    aim("S5", "per_s", Bound::AtLeast(4.0, Row::Postfix)),
    aim("S5", "per_s", Bound::AtLeast(1.0, Row::Exim)),
    aim("S6", "per_s", Bound::AtLeast(1.0, Row::Postfix)),
    aim("idle", "pss_mib", Bound::Under(20.0)),
    aim("T1", "per_s", Bound::AtLeast(3.0, Row::Postfix)),
    aim("T100", "share", Bound::Over(0.65)),
    aim("sessions", "share", Bound::Over(0.9)),
    aim("sessions", "pss_mib", Bound::Under(200.0)),
    aim("million", "not_due_cold_ready_s", Bound::Under(10.0)),
    aim("million", "not_due_killed_send_s", Bound::Under(10.0)),
    aim("million", "not_due_killed_cold_ready_s", Bound::Under(10.0)),
    aim("million", "due_cold_ready_s", Bound::Under(10.0)),
    aim("million", "due_killed_send_s", Bound::Under(10.0)),
    aim("million", "due_killed_cold_ready_s", Bound::Under(10.0)),
    aim("million", "peak_mib", Bound::Under(700.0)),
    aim("million", "not_due_delivered_p50_times", Bound::Under(1.2)),
    aim("million", "not_due_delivered_p99_times", Bound::Under(2.0)),
    aim("million", "due_dead_relay_delivered_p50_times", Bound::Under(1.2)),
    aim("million", "due_dead_relay_delivered_p99_times", Bound::Under(2.0)),
    aim("million", "due_dead_sites_delivered_p50_times", Bound::Under(1.2)),
    aim("million", "due_dead_sites_delivered_p99_times", Bound::Under(2.0)),
    aim("million", "due_sink_delivered_p50_times", Bound::Under(1.2)),
    aim("million", "due_sink_delivered_p99_times", Bound::Under(2.0)),
];

/// One aim and what came of it.
pub(crate) struct Verdict {
    text: String,
    measured: f64,
    reached: bool,
}

/// Verdicts on the aims whose figures were all measured, and on what must never happen.
pub(crate) fn verdicts(all: &[Results]) -> Vec<Verdict> {
    let never = ["lost", "duplicate"].into_iter().filter_map(|figure| none_at_all(figure, all));
    AIMS.iter().filter_map(|aim| verdict(aim, all)).chain(never).collect()
}

/// In every round of every scenario, for system and virtual users.
fn none_at_all(figure: &str, all: &[Results]) -> Option<Verdict> {
    let rows = [Row::Qmail, Row::QmailVirtual];
    let worst = all.iter().flat_map(|results| rows.map(|row| results.summary(row, figure))).flatten().map(|summary| summary.high);
    let measured = worst.reduce(f64::max)?;
    Some(Verdict { text: format!("{figure} messages: none"), measured, reached: measured < 1.0 })
}

fn verdict(aim: &Aim, all: &[Results]) -> Option<Verdict> {
    let results = all.iter().find(|results| results.scenario.name == aim.scenario)?;
    let median = |row| results.summary(row, aim.figure).map(|summary| summary.median);
    let ours = median(Row::Qmail)?;
    let (measured, wanted, reached) = match &aim.bound {
        Bound::AtLeast(times, row) => {
            let ratio = ours / median(*row)?;
            (ratio, format!("at least {times} × {}", row.title()), ratio >= *times)
        }
        Bound::AtMost(times, row) => {
            let ratio = ours / median(*row)?;
            (ratio, format!("at most {times} × {}", row.title()), ratio <= *times)
        }
        Bound::Over(least) => (ours, format!("at least {least}"), ours >= *least),
        Bound::Under(most) => (ours, format!("under {most}"), ours < *most),
    };
    Some(Verdict { text: format!("{} {}: {wanted}", aim.scenario, aim.figure.replace('_', " ")), measured, reached })
}

pub(crate) fn table(verdicts: &[Verdict]) -> String {
    let mut lines = vec![["aim", "measured", "reached"].map(str::to_owned).to_vec()];
    for verdict in verdicts {
        let reached = if verdict.reached { "yes" } else { "NO" };
        lines.push(vec![verdict.text.clone(), format!("{:.2}", verdict.measured), reached.into()]);
    }
    format!("\n### Aims\n\n{}", markdown(&lines))
}

pub(crate) fn to_json(verdicts: &[Verdict]) -> Value {
    verdicts.iter().map(|v| json!({ "aim": v.text, "measured": v.measured, "reached": v.reached })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Figures;
    use crate::scenario::SCENARIOS;

    #[test]
    fn judged_where_measured() {
        let figures = |per_s: f64, cpu: f64| {
            let mut figures = Figures::default();
            figures.set("per_s", per_s);
            figures.set("cpu_s_per_1000", cpu);
            figures.set("lost", 1.0);
            vec![figures]
        };
        let rows = vec![(Row::Qmail, figures(2000.0, 1.0)), (Row::Postfix, figures(500.0, 3.0))];
        let verdicts = verdicts(&[Results { scenario: &SCENARIOS[0], rows }]);
        let told: Vec<(&str, bool)> = verdicts.iter().map(|v| (v.text.as_str(), v.reached)).collect();
        assert_eq!(
            told,
            [
                ("S1 per s: at least 4 × Postfix", true),
                ("S1 cpu s per 1000: at most 0.25 × Postfix", false),
                ("lost messages: none", false)
            ]
        );
    }

    #[test]
    fn every_aim_names_a_scenario() {
        assert!(AIMS.iter().all(|aim| SCENARIOS.iter().any(|scenario| scenario.name == aim.scenario)));
    }
}
