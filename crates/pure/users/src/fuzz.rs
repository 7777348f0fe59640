//! Fuzz targets: any bytes as any of the files, and any bytes as what is looked up in them.

use wire::{Address, cdb};

use crate::{Assign, Cidr, HostSet, Ids, Networks, Routing, UserName, VirtualDomains, assign, listen, name, routing};

/// Splits the input in a file and a question, at the first NUL NUL.
fn halves(data: &[u8]) -> (&[u8], &[u8]) {
    match data.windows(2).position(|pair| pair == [0, 0]) {
        Some(at) => (data.get(..at).unwrap_or_default(), data.get(at.saturating_add(2)..).unwrap_or_default()),
        None => (data, b"user-ext"),
    }
}

/// users/assign: text and cdb give the same answer; a cdb of any bytes gives some answer.
pub fn assign(data: &[u8]) {
    let (file, local) = halves(data);
    let by_bytes = |file: &[u8]| assign::lookup(local, |key| cdb::find(file, key, assign::DATA_LEN_MAX));
    let _ = by_bytes(file);
    if let Ok(parsed) = Assign::parse(file) {
        let found = parsed.lookup(local);
        match parsed.to_cdb() {
            Some(compiled) => assert_eq!(by_bytes(&compiled).ok(), found.ok()),
            None => assert!(parsed.faults().next().is_some()),
        }
    }
}

/// users/domains, ids: what is written reads back the same.
pub fn tables(data: &[u8]) {
    if let Ok(domains) = VirtualDomains::parse(data) {
        assert_eq!(VirtualDomains::parse(&domains.to_text()), Ok(domains));
    }
    if let Ok(ids) = Ids::parse(data) {
        assert_eq!(Ids::parse(ids.to_text().as_bytes()), Ok(ids));
    }
    if let Ok(listeners) = listen::parse(data) {
        let text: String = listeners.iter().map(|listener| format!("{listener}\n")).collect();
        assert_eq!(listen::parse(text.as_bytes()), Ok(listeners));
    }
    let _ = (Networks::parse(data), Cidr::parse(data), HostSet::parse(data).contains(data));
}

/// Names: never more than one component, and splitting loses no byte.
pub fn names(data: &[u8]) {
    if let Some(user) = UserName::new(data) {
        assert_eq!(user.as_path().components().count(), 1);
    }
    for (user, ext) in name::splits(data) {
        let dash = usize::from(user.as_bytes().len() < data.len());
        assert_eq!(user.as_bytes().len().saturating_add(ext.len()).saturating_add(dash), data.len());
    }
}

/// Routing: every recipient gets a route, and the route of a route's address is stable for what is not prefixed.
pub fn routing(data: &[u8]) {
    let (file, recipient) = halves(data);
    let domains = VirtualDomains::parse(file).unwrap_or_default();
    let rules = Routing::new(domains, HostSet::parse(file), HostSet::parse(file), b"noat.example".to_vec(), file);
    let Ok(recipient) = Address::new(recipient) else { return };
    if let Ok(routed) = rules.rewrite(&recipient) {
        assert!(routed.address().domain().is_some());
        let _ = rules.without_prefix(routed.address());
    }
    let _ = routing::parse_map(data);
}

/// Rules of tcprules(1): what compiles is found again, and nothing else is.
pub fn rules(data: &[u8]) {
    for line in data.split_inclusive(|b| *b == b'\n') {
        let Ok(records) = crate::rules::compile(line) else { continue };
        assert!(records.len() <= 256);
        for (address, data) in &records {
            let client = crate::rules::Client { ip: address, host: None, info: None };
            let get = |key: &[u8]| Ok::<_, ()>((key == &address[..]).then(|| data.clone()));
            let found = crate::rules::find(client, get).ok().flatten();
            assert!(found.is_some_and(|rule| rule.is_denied == data.starts_with(b"D")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CORPUS: [&[u8]; 6] = [
        b"=a:a:1:2:/a:::\n+b:b:1:2:/b:-:x:\n.\n\0\0B-c",
        b"a.example:1:2:/a\n[::1]:1:2:/b\n",
        b"qmailq 1 2\nalias 3 4\n",
        b"smtp 127.0.0.1:25 a=b\npop3 [::1]:110\n",
        b"x.example\n.y.example:pre\n:all\n\0\0a%b%x.example@x.example",
        b"10.0.0.0/8\n::1\n",
    ];

    fn all(data: &[u8]) {
        for target in [assign, tables, names, routing] {
            target(data);
        }
    }

    #[test]
    fn corpus_and_its_prefixes() {
        for file in CORPUS {
            (0..=file.len()).for_each(|end| all(&file[..end]));
        }
    }

    proptest! {
        #[test]
        fn any_bytes(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            all(&data);
        }

        #[test]
        fn bytes_of_the_formats(data in "[=+.:%@a/\\-0-9 \n\\[\\]#]{0,200}") {
            all(data.as_bytes());
        }
    }
}
