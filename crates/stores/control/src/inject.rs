//! What qmail-inject and sendmail read: the names that complete an address.

use crate::{ControlError, Root};

/// The configuration of qmail-inject. Each value defaults to `me`, and without `me` to its own name (qmail-inject(8)); an environment
/// variable may replace it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inject {
    /// `control/defaultdomain`: for a host without a dot.
    pub default_domain: Vec<u8>,
    /// `control/defaulthost`: for an address without a host.
    pub default_host: Vec<u8>,
    /// `control/plusdomain`: for a host that ends in `+`.
    pub plus_domain: Vec<u8>,
    /// `control/idhost`: for Message-ID.
    pub id_host: Vec<u8>,
}

impl Inject {
    /// Reads the four files.
    ///
    /// # Errors
    /// Unreadable; temporary.
    pub fn read(root: &Root) -> Result<Self, ControlError> {
        Ok(Self {
            default_domain: root.line_or_me("defaultdomain")?,
            default_host: root.line_or_me("defaulthost")?,
            plus_domain: root.line_or_me("plusdomain")?,
            id_host: root.line_or_me("idhost")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_defaults_to_me_and_then_to_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path()).unwrap();
        let bare = Inject::read(&root).unwrap();
        assert_eq!((&bare.default_domain[..], &bare.id_host[..]), (&b"defaultdomain"[..], &b"idhost"[..]));
        std::fs::create_dir_all(root.control()).unwrap();
        std::fs::write(root.control_file("me"), "mx.example\n").unwrap();
        std::fs::write(root.control_file("plusdomain"), "plus.example \nx\n").unwrap();
        let read = Inject::read(&root).unwrap();
        assert_eq!((&read.default_host[..], &read.plus_domain[..]), (&b"mx.example"[..], &b"plus.example"[..]));
    }
}
