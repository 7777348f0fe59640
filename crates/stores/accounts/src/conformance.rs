//! What every store of accounts must do, as tests of its interfaces ([`Directory`], [`Secrets`]) alone.
//!
//! Each part gets an empty store of its own from the caller.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

use crate::directory::{After, AliasRow, Directory, UserRow};
use crate::secrets::{APP_PASSWORDS_MAX, AppPassword, Kind, Scope, Secret, Secrets};
use crate::settings::{Account, DomainSettings, Entry, Forward, Limits, NewUser, Quota, UserChange, Vacation};
use crate::{Error, UserName};
use wire::{Address, Domain};
use zeroize::Zeroizing;

/// All that a store of accounts is.
pub trait Store: Directory + Secrets {}
impl<T: Directory + Secrets> Store for T {}

/// Makes an empty store.
pub type Make<'a> = &'a mut dyn FnMut() -> Box<dyn Store>;

/// Runs all of it.
pub fn run(make: Make<'_>) {
    for part in [
        a_users_life,
        settings_of_a_user,
        aliases_and_their_mistakes,
        lists_come_in_pages_by_domain_and_name,
        settings_of_a_domain,
        a_domains_bounds,
        many_at_once,
        names_made_of_sql,
    ] {
        part(&mut *make());
    }
    for part in [secrets_live_no_longer_than_their_password, app_passwords_come_and_go, a_renamed_user_keeps_all_that_is_his] {
        part(&mut *make());
    }
}

fn domain(text: &str) -> Domain {
    Domain::new(text.as_bytes()).unwrap()
}

fn name(text: &str) -> UserName {
    UserName::new(text.as_bytes()).unwrap()
}

fn addresses(texts: &[&str]) -> Vec<Address> {
    texts.iter().map(|t| Address::new(t.as_bytes()).unwrap()).collect()
}

fn a_users_life(store: &mut dyn Directory) {
    let (d, joe) = (domain("example.org"), name("joe"));
    assert!(matches!(store.set_password(&d, &joe, "x"), Err(Error::NoUser)));
    store.add_user(&d, &joe, "h1", 7).unwrap();
    assert!(matches!(store.add_user(&d, &joe, "h2", 7), Err(Error::Exists)));
    assert_eq!(store.account(&d, b"joe").unwrap().unwrap(), Account { created_s: 7, ..Account::default() });
    store.set_password(&d, &joe, "h3").unwrap();
    let suspend = |refuses_mail| UserChange::Suspension { suspended: true, refuses_mail };
    store.change_user(&d, &joe, &suspend(false)).unwrap();
    let credentials = store.credentials(&d, b"joe").unwrap().unwrap();
    assert_eq!((credentials.password_hash.as_str(), credentials.suspended), ("h3", true));
    assert_eq!(store.takes_mail(&d, b"joe").unwrap(), Some(true));
    store.change_user(&d, &joe, &suspend(true)).unwrap();
    assert_eq!(store.takes_mail(&d, b"joe").unwrap(), Some(false));
    assert!(store.credentials(&domain("example.com"), b"joe").unwrap().is_none());
    store.remove_user(&d, &joe).unwrap();
    assert!(matches!(store.remove_user(&d, &joe), Err(Error::NoUser)));
    assert_eq!(store.takes_mail(&d, b"joe").unwrap(), None);
    assert!(!store.has_user(&d, b"joe").unwrap() && store.account(&d, b"joe").unwrap().is_none());
}

fn settings_of_a_user(store: &mut dyn Directory) {
    let (d, joe) = (domain("example.org"), name("joe"));
    let quota = Quota { bytes: 1 << 40, messages: 7 };
    let forward = Forward { targets: addresses(&["a@b", "\u{e4}@c"]), keeps_copy: true };
    let vacation = Vacation { subject: "Away".to_owned(), text: "Back\nsoon\n".to_owned(), from_s: 5, until_s: 9, days: 3 };
    let limits = Limits { per_hour: Some(0), per_day: None };
    let changes = [
        UserChange::Quota(quota),
        UserChange::Forward(forward.clone()),
        UserChange::Vacation(Some(vacation.clone())),
        UserChange::Limits(limits),
    ];
    for change in &changes {
        assert!(matches!(store.change_user(&d, &joe, change), Err(Error::NoUser)), "{change:?}");
    }
    store.add_user(&d, &joe, "h", 1).unwrap();
    store.add_user(&d, &name("ann"), "h", 1).unwrap();
    for change in &changes {
        store.change_user(&d, &joe, change).unwrap();
    }
    let expected = Account { quota, forward, vacation: Some(vacation), limits, created_s: 1, ..Account::default() };
    assert_eq!(store.account(&d, b"joe").unwrap().unwrap(), expected);
    let row = UserRow { domain: d.clone(), name: joe.clone(), quota, suspended: false };
    assert_eq!(store.users(None, &After::default(), 9).unwrap().pop(), Some(row));
    let ann = Account { created_s: 1, ..Account::default() };
    assert_eq!(store.account(&d, b"ann").unwrap().unwrap(), ann, "nobody else's");
    for bad in [
        UserChange::Quota(Quota { bytes: u64::MAX, messages: 0 }),
        UserChange::Forward(Forward { targets: addresses(&["a"]), keeps_copy: false }),
        UserChange::Forward(Forward { targets: addresses(&["a@b"; 21]), keeps_copy: false }),
        UserChange::Vacation(Some(Vacation::default())),
    ] {
        assert!(!store.change_user(&d, &joe, &bad).unwrap_err().is_temporary(), "{bad:?}");
    }
    assert_eq!(store.account(&d, b"joe").unwrap().unwrap(), expected);
    store.change_user(&d, &joe, &UserChange::Vacation(None)).unwrap();
    store.change_user(&d, &joe, &UserChange::Forward(Forward::default())).unwrap();
    let account = store.account(&d, b"joe").unwrap().unwrap();
    assert_eq!((account.vacation, account.forward), (None, Forward::default()));
}

fn aliases_and_their_mistakes(store: &mut dyn Directory) {
    let (d, info) = (domain("example.org"), name("info"));
    store.set_alias(&d, Some(&info), &addresses(&["b@x", "a@y"])).unwrap();
    store.set_alias(&d, None, &addresses(&["info@example.org"])).unwrap();
    assert_eq!(store.alias(&d, b"info").unwrap().unwrap(), addresses(&["b@x", "a@y"]));
    store.set_alias(&d, Some(&info), &addresses(&["c@z"])).unwrap();
    assert_eq!(store.alias(&d, b"info").unwrap().unwrap(), addresses(&["c@z"]), "replaced as a whole");
    for bad in [
        vec![],
        addresses(&["x"]),
        addresses(&["@y"]),
        addresses(&["x@a b"]),
        addresses(&["INFO@Example.org"]),
        addresses(&["a@b"; 21]),
    ] {
        assert!(matches!(store.set_alias(&d, Some(&info), &bad), Err(Error::Targets(_))), "{bad:?}");
    }
    assert!(matches!(store.add_user(&d, &info, "h", 0), Err(Error::Exists)));
    store.add_user(&d, &name("joe"), "h", 0).unwrap();
    assert!(matches!(store.set_alias(&d, Some(&name("joe")), &addresses(&["a@b"])), Err(Error::Exists)));
    // Who has an address of whom, and of nobody else.
    let other = domain("example.net");
    store.set_alias(&other, Some(&name("one")), &addresses(&["C@Z"])).unwrap();
    store.set_alias(&other, Some(&name("two")), &addresses(&["c@z", "d@z"])).unwrap();
    store.set_alias(&other, Some(&name("three")), &addresses(&["d@z", "c@z"])).unwrap();
    store.set_alias(&other, None, &addresses(&["c@z"])).unwrap();
    let to = |target: &str, most| store.aliases_to(&addresses(&[target])[0], most).unwrap();
    assert_eq!(to("c@Z", 9), addresses(&["one@example.net", "info@example.org"]));
    assert_eq!((to("c@z", 1).len(), to("d@z", 9), to("' OR 1=1 --@z", 9)), (1, vec![], vec![]));
    store.forget_domain(&other).unwrap();
    store.remove_alias(&d, Some(&info)).unwrap();
    assert!(matches!(store.remove_alias(&d, Some(&info)), Err(Error::NoAlias)));
    store.forget_domain(&d).unwrap();
    assert!(store.aliases(None, &After::default(), 9).unwrap().is_empty() && !store.has_user(&d, b"joe").unwrap());
}

fn lists_come_in_pages_by_domain_and_name(store: &mut dyn Directory) {
    for d in ["a.org", "b", "b.org", "c"] {
        for n in ["x", "y", "z"] {
            store.add_user(&domain(d), &name(n), "h", 0).unwrap();
        }
        store.set_alias(&domain(d), None, &addresses(&["p@q", "r@s"])).unwrap();
        store.set_alias(&domain(d), Some(&name("k")), &addresses(&["p@q"])).unwrap();
        store.set_domain(&domain(d), &DomainSettings { users_max: 9, ..DomainSettings::default() }).unwrap();
    }
    let walk = |domain: Option<&Domain>| {
        let (mut after, mut out) = (After::default(), Vec::new());
        loop {
            let page = store.users(domain, &after, 2).unwrap();
            let Some(last) = page.last() else { return out };
            after = After { domain: last.domain.as_bytes().to_vec(), name: last.name.as_bytes().to_vec() };
            out.extend(page.iter().map(|r| format!("{}@{}", r.name, r.domain)));
        }
    };
    assert_eq!(walk(Some(&domain("b"))), ["x@b", "y@b", "z@b"]);
    assert_eq!(walk(Some(&domain("b.org"))), ["x@b.org", "y@b.org", "z@b.org"]);
    assert_eq!(walk(None).len(), 12);
    let all = store.aliases(Some(&domain("b.org")), &After::default(), 9).unwrap();
    let short = |row: &AliasRow| (row.name.clone(), row.targets.len());
    assert_eq!(all.iter().map(short).collect::<Vec<_>>(), [(b"".to_vec(), 2), (b"k".to_vec(), 1)]);
    let after = After { domain: b"b.org".to_vec(), name: Vec::new() };
    assert_eq!(store.aliases(Some(&domain("b.org")), &after, 9).unwrap().len(), 1);
    assert_eq!(store.domains(b"", 2).unwrap(), [domain("a.org"), domain("b")]);
    assert_eq!(store.domains(b"b", 9).unwrap(), [domain("b.org"), domain("c")]);
}

fn settings_of_a_domain(store: &mut dyn Directory) {
    let (d, other) = (domain("d.example"), domain("other.example"));
    assert!(store.domain(&d).unwrap().is_default() && store.alias_of(&d).unwrap().is_none());
    store.add_user(&other, &name("boss"), "h", 0).unwrap();
    let settings = DomainSettings {
        default_quota: Quota { bytes: 10, messages: 2 },
        quota_bytes: 1000,
        users_max: 3,
        administrators: addresses(&["boss@other.example"]),
        ..DomainSettings::default()
    };
    store.set_domain(&d, &settings).unwrap();
    assert_eq!(store.domain(&d).unwrap(), settings);
    store.add_user(&d, &name("new"), "h", 0).unwrap();
    assert_eq!(store.account(&d, b"new").unwrap().unwrap().quota, settings.default_quota);
    let only_admin = DomainSettings { administrators: settings.administrators.clone(), ..DomainSettings::default() };
    store.set_domain(&d, &only_admin).unwrap();
    assert_eq!(store.domain(&d).unwrap(), only_admin);
    for nobody in ["x@other.example", "boss", "@other.example"] {
        let bad = DomainSettings { administrators: addresses(&[nobody]), ..DomainSettings::default() };
        assert!(matches!(store.set_domain(&d, &bad), Err(Error::NoUser)), "{nobody}");
    }
    store.remove_user(&other, &name("boss")).unwrap();
    assert!(store.domain(&d).unwrap().administrators.is_empty(), "gone as an administrator, too");
    let alias = DomainSettings { alias_of: Some(d.clone()), ..DomainSettings::default() };
    assert!(!store.set_domain(&d, &alias).unwrap_err().is_temporary(), "of itself");
    store.set_domain(&other, &alias).unwrap();
    assert_eq!(store.alias_of(&other).unwrap(), Some(d.clone()));
    assert!(!store.add_user(&other, &name("x"), "h", 0).unwrap_err().is_temporary());
    store.forget_domain(&d).unwrap();
    assert_eq!((store.alias_of(&other).unwrap(), store.domains(b"", 9).unwrap()), (None, vec![]));
    store.add_user(&other, &name("x"), "h", 0).unwrap();
    store.add_user(&d, &name("x"), "h", 0).unwrap();
    assert!(!store.set_domain(&other, &alias).unwrap_err().is_temporary(), "it has a user");
}

fn a_domains_bounds(store: &mut dyn Directory) {
    let d = domain("d.example");
    let settings = DomainSettings { quota_bytes: 100, users_max: 2, ..DomainSettings::default() };
    store.set_domain(&d, &settings).unwrap();
    assert!(matches!(store.add_user(&d, &name("a"), "h", 0), Err(Error::Limit(_))), "no quota of its own");
    let defaults = DomainSettings { default_quota: Quota { bytes: 60, messages: 0 }, ..settings };
    store.set_domain(&d, &defaults).unwrap();
    store.add_user(&d, &name("a"), "h", 0).unwrap();
    assert!(matches!(store.add_user(&d, &name("b"), "h", 0), Err(Error::Limit(_))), "60 and 60 are more than 100");
    let quota = |bytes| UserChange::Quota(Quota { bytes, messages: 0 });
    assert!(matches!(store.change_user(&d, &name("a"), &quota(101)), Err(Error::Limit(_))));
    assert!(matches!(store.change_user(&d, &name("a"), &quota(0)), Err(Error::Limit(_))));
    store.change_user(&d, &name("a"), &quota(40)).unwrap();
    store.add_user(&d, &name("b"), "h", 0).unwrap();
    store.change_user(&d, &name("a"), &quota(10)).unwrap();
    store.set_domain(&d, &DomainSettings { quota_bytes: 0, ..defaults }).unwrap();
    assert!(matches!(store.add_user(&d, &name("c"), "h", 0), Err(Error::Limit(_))), "two users");
    store.remove_user(&d, &name("b")).unwrap();
    store.add_user(&d, &name("c"), "h", 0).unwrap();
}

fn many_at_once(store: &mut dyn Directory) {
    let d = domain("d.example");
    store.set_domain(&d, &DomainSettings { users_max: 3, ..DomainSettings::default() }).unwrap();
    let user = |text: &str, bytes: u64| {
        let account = Account { quota: Quota { bytes, messages: 0 }, ..Account::default() };
        let (domain, name, password_hash) = (d.clone(), name(text), "h".to_owned());
        Entry::User(Box::new(NewUser { domain, name, password_hash, account, has_default_quota: false }))
    };
    let alias = |text: &str| Entry::Alias { domain: d.clone(), name: Some(name(text)), targets: addresses(&["a@b"]) };
    let entries = [
        user("a", 5),
        alias("a"),
        alias("i"),
        user("i", 0),
        user("b", u64::MAX),
        user("b", 6),
        user("a", 7),
        user("c", 0),
        user("x", 0),
    ];
    let results = store.add(&entries).unwrap();
    let kinds: Vec<_> = results
        .iter()
        .map(|result| match result {
            Ok(()) => "ok",
            Err(Error::Exists) => "exists",
            Err(Error::Quota) => "quota",
            Err(Error::Limit(_)) => "limit",
            Err(_) => "other",
        })
        .collect();
    assert_eq!(kinds, ["ok", "exists", "ok", "exists", "quota", "ok", "exists", "ok", "limit"]);
    let users: Vec<_> =
        store.users(None, &After::default(), 9).unwrap().iter().map(|u| (u.name.to_string(), u.quota.bytes)).collect();
    assert_eq!(users, [("a".to_owned(), 5), ("b".to_owned(), 6), ("c".to_owned(), 0)]);
    assert_eq!(store.aliases(None, &After::default(), 9).unwrap().len(), 1);
}

fn secrets(values: &[(Kind, &str)]) -> Vec<Secret> {
    values.iter().map(|(kind, value)| Secret { kind: *kind, value: value.as_bytes().to_vec().into() }).collect()
}

fn app(name: &str) -> AppPassword {
    let scram = [Some(Zeroizing::new("keys".to_owned())), None];
    AppPassword { name: name.to_owned(), scope: Scope::Smtp, digest: [7; 32], scram, created_s: 5, used_s: 0 }
}

fn secrets_live_no_longer_than_their_password(accounts: &mut dyn Store) {
    let (d, joe) = (domain("example.org"), name("joe"));
    let of = |accounts: &dyn Store, kind| accounts.secret(&d, b"joe", kind).unwrap().map(|value| value.to_vec());
    let all = secrets(&[(Kind::ScramSha1, "k1"), (Kind::Clear, "pw")]);
    accounts.set_secrets(&d, &joe, "h1", &all).unwrap();
    assert_eq!(of(accounts, Kind::Clear), None, "nobody has no secrets");
    accounts.add_user(&d, &joe, "h1", 0).unwrap();
    accounts.set_secrets(&d, &joe, "h0", &all).unwrap();
    assert_eq!(of(accounts, Kind::Clear), None, "of another password");
    accounts.set_secrets(&d, &joe, "h1", &all).unwrap();
    assert_eq!((of(accounts, Kind::Clear), of(accounts, Kind::ScramSha256)), (Some(b"pw".to_vec()), None));
    assert!(!accounts.renew_hash(&d, &joe, "h0", "x", &all).unwrap());
    assert!(accounts.renew_hash(&d, &joe, "h1", "h2", &secrets(&[(Kind::ScramSha1, "k2")])).unwrap());
    assert_eq!((of(accounts, Kind::Clear), of(accounts, Kind::ScramSha1)), (None, Some(b"k2".to_vec())));
    accounts.change_user(&d, &joe, &UserChange::Quota(Quota { bytes: 5, messages: 0 })).unwrap();
    assert!(of(accounts, Kind::ScramSha1).is_some());
    accounts.set_password(&d, &joe, "h3").unwrap();
    assert_eq!(of(accounts, Kind::ScramSha1), None);
    accounts.set_secrets(&d, &joe, "h3", &all).unwrap();
    accounts.add_app_password(&d, &joe, &app("phone")).unwrap();
    accounts.remove_user(&d, &joe).unwrap();
    accounts.add_user(&d, &joe, "h3", 0).unwrap();
    assert!(of(accounts, Kind::Clear).is_none() && accounts.app_passwords(&d, b"joe").unwrap().is_empty());
    accounts.add_app_password(&d, &joe, &app("phone")).unwrap();
    accounts.forget_domain(&d).unwrap();
    accounts.add_user(&d, &joe, "h3", 0).unwrap();
    assert!(accounts.app_passwords(&d, b"joe").unwrap().is_empty());
}

fn app_passwords_come_and_go(accounts: &mut dyn Store) {
    let (d, joe) = (domain("example.org"), name("joe"));
    assert!(matches!(accounts.add_app_password(&d, &joe, &app("x")), Err(Error::NoUser)));
    accounts.add_user(&d, &joe, "h", 0).unwrap();
    accounts.add_app_password(&d, &joe, &app("b")).unwrap();
    accounts.add_app_password(&d, &joe, &app("a")).unwrap();
    assert!(matches!(accounts.add_app_password(&d, &joe, &app("a")), Err(Error::AppPassword(_))));
    accounts.app_password_used(&d, &joe, "b", 86_400).unwrap();
    let all = accounts.app_passwords(&d, b"joe").unwrap();
    let rows: Vec<_> = all.iter().map(|app| (app.name.as_str(), app.used_s, app.created_s, app.digest[0])).collect();
    assert_eq!(rows, [("a", 0, 5, 7), ("b", 86_400, 5, 7)]);
    assert_eq!(all[0].scram.each_ref().map(|keys| keys.as_ref().map(|text| text.to_string())), [Some("keys".to_owned()), None]);
    accounts.remove_app_password(&d, &joe, "a").unwrap();
    assert!(!accounts.remove_app_password(&d, &joe, "a").unwrap_err().is_temporary());
    for n in 1..APP_PASSWORDS_MAX {
        accounts.add_app_password(&d, &joe, &app(&format!("n{n}"))).unwrap();
    }
    assert!(matches!(accounts.add_app_password(&d, &joe, &app("more")), Err(Error::AppPassword(_))));
    accounts.set_password(&d, &joe, "h2").unwrap();
    assert_eq!(accounts.app_passwords(&d, b"joe").unwrap().len(), APP_PASSWORDS_MAX, "another main password changes nothing");
}

fn a_renamed_user_keeps_all_that_is_his(accounts: &mut dyn Store) {
    let (d, e, joe, jim) = (domain("example.org"), domain("example.net"), name("joe"), name("jim"));
    let address = |text: &str| Address::new(text.as_bytes()).unwrap();
    accounts.add_user(&d, &joe, "h", 7).unwrap();
    accounts.add_user(&d, &name("eve"), "h", 7).unwrap();
    let secret = Secret { kind: Kind::Clear, value: b"x".to_vec().into() };
    accounts.set_secrets(&d, &joe, "h", &[secret]).unwrap();
    let app =
        AppPassword { name: "phone".into(), scope: Scope::All, digest: [1; 32], scram: [None, None], created_s: 1, used_s: 0 };
    accounts.add_app_password(&d, &joe, &app).unwrap();
    accounts
        .set_domain(&d, &DomainSettings { administrators: vec![address("joe@example.org")], ..DomainSettings::default() })
        .unwrap();
    accounts.set_alias(&e, Some(&name("both")), &[address("Joe@example.org"), address("x@y")]).unwrap();
    for taken in ["eve", "joe"] {
        assert!(matches!(accounts.rename_user(&d, &joe, &name(taken), false), Err(Error::Exists)), "{taken}");
    }
    assert!(matches!(accounts.rename_user(&e, &joe, &jim, false), Err(Error::NoUser)));
    let before = accounts.generation().unwrap();
    accounts.rename_user(&d, &joe, &jim, true).unwrap();
    assert_ne!(accounts.generation().unwrap(), before);
    assert!(!accounts.has_user(&d, b"joe").unwrap());
    assert_eq!(accounts.account(&d, b"jim").unwrap().unwrap().created_s, 7);
    assert_eq!(accounts.secret(&d, b"jim", Kind::Clear).unwrap().unwrap().as_slice(), b"x");
    assert_eq!(accounts.app_passwords(&d, b"jim").unwrap().len(), 1);
    assert_eq!(accounts.domain(&d).unwrap().administrators, [address("jim@example.org")]);
    assert_eq!(accounts.alias(&e, b"both").unwrap().unwrap(), [address("jim@example.org"), address("x@y")]);
    assert_eq!(accounts.alias(&d, b"joe").unwrap().unwrap(), [address("jim@example.org")]);
    accounts.rename_user(&d, &jim, &name("jon"), false).unwrap();
    assert_eq!(accounts.alias(&d, b"joe").unwrap().unwrap(), [address("jon@example.org")], "it follows");
    assert!(accounts.alias(&d, b"jim").unwrap().is_none());
}

/// Names made of SQL find and change nothing.
pub fn names_made_of_sql(store: &mut dyn Directory) {
    let d = domain("example.org");
    store.add_user(&d, &name("joe"), "h", 0).unwrap();
    for local in ["' OR 1=1 --", "joe'--", "joe\0", "%", "_oe", "*", "joe;DELETE FROM account", "\u{0}", "JOE "] {
        assert!(!store.has_user(&d, local.as_bytes()).unwrap(), "{local}");
        assert!(store.credentials(&d, local.as_bytes()).unwrap().is_none());
        assert!(store.account(&d, local.as_bytes()).unwrap().is_none());
        assert!(store.alias(&d, local.as_bytes()).unwrap().is_none());
    }
    assert!(store.has_user(&d, b"joe").unwrap());
}
