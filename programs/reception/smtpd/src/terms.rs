//! What a rule of `control/tcp.smtp`, a listener's options or the environment say of one connection (qmail-family §2.4).

use control::Plugins;
use smtp::server::{Stage, Stages};

pub(crate) use reception::terms::{listed, terms};

/// Programs for one connection.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Programs {
    /// In the place of qmail-queue.
    pub(crate) queue: Option<Vec<u8>>,
    /// Judges recipients.
    pub(crate) check: Option<Vec<u8>>,
    /// Those of relay clients, too.
    pub(crate) checks_relay_clients: bool,
    /// The client's port and the one that it connected to.
    pub(crate) ports: Option<(u16, u16)>,
    /// What the programs find in their environment for the rule's sake.
    pub(crate) environment: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The stages at which there are plugins; and those of a transaction, which a plugin of another stage may refuse (`LM`, `LR`, `LD`).
pub(crate) fn stages(plugins: &Plugins) -> Stages {
    if plugins.is_empty() {
        return Stages::default();
    }
    let with =
        |stages: Stages, (stage, plugins): (Stage, &Vec<Vec<u8>>)| if plugins.is_empty() { stages } else { stages.with(stage) };
    Stage::ALL.into_iter().zip(&plugins.0).fold(Stages::default(), with).with(Stage::Mail).with(Stage::Rcpt).with(Stage::Data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_has_the_number_of_its_section() {
        let names = ["connection", "helo", "mail", "rcpt", "data", "auth"];
        assert_eq!(control::hooks::SECTIONS, names);
        for (number, stage) in Stage::ALL.into_iter().enumerate() {
            let mut plugins = Plugins::default();
            plugins.0[number].push(b"/x".to_vec());
            let of_transactions = [Stage::Mail, Stage::Rcpt, Stage::Data];
            for other in Stage::ALL {
                assert_eq!(stages(&plugins).has(other), other == stage || of_transactions.contains(&other));
            }
            assert_eq!(format!("{stage:?}").to_ascii_lowercase(), names[number]);
        }
    }
}
