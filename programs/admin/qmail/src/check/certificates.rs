//! etc/qmail/tls: certificates as qmail-keys would use them.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use certificates::Purpose;
use control::{Ids, Root, Service};

use super::Findings;
use crate::certificate::{Found, all, days_left};

/// An authority's certificate lasts 47 to 90 days and is renewed a month before; this is late.
const EXPIRY_WARNING_DAYS: i64 = 21;

pub(super) fn check(root: &Root, found: &mut Findings) {
    let tls = root.tls();
    // What is wrong with the ids is said elsewhere.
    let ids = root.ids().ok();
    let ids = ids.as_ref();
    let list = match all(root) {
        Ok(list) => list,
        Err(failure) => {
            return found
                .error(&tls, format!("cannot be read, so there is no TLS: {}; make the directory readable", failure.text));
        }
    };
    let begins_with_tls = root
        .listen()
        .ok()
        .into_iter()
        .flatten()
        .any(|listener| matches!(listener.service, Service::Submissions | Service::Pop3s));
    for directory in &list {
        if let Some(problem) = &directory.problem {
            let has_cure = problem.contains("; ");
            let cure = "; put the certificate and its own key there, the key qmailk's with mode 600";
            found.error(&directory.dir, format!("{problem}{}", if has_cure { "" } else { cure }));
        }
        key_owner(&directory.dir, directory.purpose, ids, found);
        let Some(certificate) = &directory.certificate else { continue };
        match days_left(certificate) {
            ..0 => found.error(&directory.dir, "the certificate has expired, and clients that look will not accept it; renew it"),
            _ if is_early(certificate) => found.error(
                &directory.dir,
                "the certificate is not valid yet, and clients that look will not accept it; look at the clock of this host, or get another one",
            ),
            days @ 0..EXPIRY_WARNING_DAYS => {
                found.warning(&directory.dir, format!("the certificate expires in {days} days; renew it"))
            }
            _ => {}
        }
    }
    let usable = |purpose| list.iter().filter(move |directory| directory.purpose == purpose && directory.problem.is_none());
    shown_elsewhere(root, usable(Purpose::Client), found);
    let usable = || usable(Purpose::Server).filter_map(|directory| directory.certificate.as_ref());
    if usable().next().is_none() {
        let problem = "holds no certificate that can be used, so there is no STARTTLS";
        let cure = "make one with `qmail cert self-signed HOST`, or put one here as HOST/cert.pem and HOST/key.pem";
        return if begins_with_tls {
            found.error(&tls, format!("{problem}, and listeners of submissions and pop3s in control/listen serve nobody; {cure}"))
        } else {
            found.warning(&tls, format!("{problem}; {cure}"))
        };
    }
    let Ok(me) = root.me() else { return };
    match usable().find(|certificate| certificate.covers(&me.to_ascii_lowercase())) {
        None => found.warning(&tls, format!("no certificate is for this host, {0}; make one with `qmail cert self-signed {0}`, or get one with `qmail cert obtain {0}`", wire::escape::visible(&me))),
        Some(certificate) if certificate.is_self_signed => found.note(
            &tls,
            "the certificate of this host is self-signed, and mail programs will warn their users; get one from an authority with `qmail cert obtain HOST`",
        ),
        Some(_) => {}
    }
}

/// Does it begin later than now?
fn is_early(certificate: &certificates::Certificate) -> bool {
    u64::try_from(certificate.not_before_s).is_ok_and(|begin_s| begin_s > sys::clock::unix_s())
}

/// Certificates that control/tlspolicy has shown to others must be there: without them that mail waits.
fn shown_elsewhere<'a>(root: &Root, usable: impl Iterator<Item = &'a Found>, found: &mut Findings) {
    let there: Vec<_> = usable.filter_map(|directory| directory.dir.file_name()?.to_str()).collect();
    // What is wrong with the file is said elsewhere.
    for name in control::TlsPolicies::read(root).unwrap_or_default().certificates().filter(|name| !there.contains(name)) {
        let files = Purpose::Client.files().join(" and ");
        let problem =
            format!("{name} is no certificate that we could show; put {files} into {}", root.tls().join(name).display());
        found.error(&root.control_file("tlspolicy"), problem);
    }
}

/// A key is its owner's alone, so it has to be the one who signs by it. The administrator, who can read it anyway, would not notice.
fn key_owner(dir: &Path, purpose: Purpose, ids: Option<&Ids>, found: &mut Findings) {
    let [_, key] = purpose.files().map(|file| dir.join(file));
    let (Some(wanted), Ok(metadata)) = (ids.and_then(|ids| ids.get("qmailk")), std::fs::metadata(&key)) else { return };
    if metadata.uid() != wanted.uid {
        found.error(
            &key,
            format!("belongs to uid {}, and only qmailk may read it; make it uid {1}'s (chown {1})", metadata.uid(), wanted.uid),
        );
    }
}
