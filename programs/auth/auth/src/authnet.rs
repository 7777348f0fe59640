//! Logins that servers elsewhere judge: qmail-authnet is asked, and what it names must be an account here.
//!
//! No answer is never "wrong": the other sources are asked, and if none of them says yes, the login is told to come back.

use crate::login::Login;
use crate::server::{Server, log};
use control::authnet::Sources;
use control::{Root, Watched};
use ipc::Message as _;
use ipc::authnet::{Answer, Request};
use ipc::field::Secret;
use std::time::Duration;
use zeroize::Zeroize as _;

const SILENT: &str = "the source of logins does not answer";

/// control/authsources, followed.
pub(crate) fn sources(root: &Root) -> Watched<Sources> {
    Watched::new(root.control_file(control::authnet::FILE), Sources::parse)
}

impl Server {
    /// Has qmail-authnet check the password against `source`.
    pub(crate) fn ask_authnet(&mut self, login: Login, source: &'static str) {
        let (service, name, remote) = (login.service.name().into(), login.login.as_slice().into(), login.remote);
        let password = login.password.clone();
        let question = |id| {
            // Wiped by whoever has it at last: here the copy, the datagram after it was sent.
            let mut request =
                Request::Check { id, source: source.into(), service, login: name, password: Secret(password.to_vec()), remote };
            let datagram = request.encode();
            if let Request::Check { password, .. } = &mut request {
                password.0.zeroize();
            }
            datagram
        };
        let asked = self.authnet.ask(question, login, sys::clock::boottime());
        asked.unwrap_or_else(|login| self.authnet_silent(login, "too many logins at once"));
    }

    /// Sends what waits, ends what is due.
    pub(crate) fn authnet_advance(&mut self, now: Duration) {
        for login in self.authnet.expired(now).into_iter().chain(self.authnet.advance(now)).collect::<Vec<_>>() {
            self.authnet_silent(login, "qmail-authnet does not answer");
        }
    }

    pub(crate) fn authnet_ready(&mut self, buf: &mut [u8]) {
        loop {
            let gone = match self.authnet.receive(buf) {
                Ok(None) => return,
                Ok(Some((len, _))) => match Answer::decode(buf.get(..len).unwrap_or_default()) {
                    Ok(answer) => {
                        self.authnet_says(answer);
                        continue;
                    }
                    Err(_) => self.authnet.reset(),
                },
                Err(gone) => gone,
            };
            gone.into_iter().for_each(|login| self.authnet_silent(login, "qmail-authnet went away"));
            return;
        }
    }

    fn authnet_says(&mut self, answer: Answer) {
        let (Answer::Right { id, .. } | Answer::Wrong { id } | Answer::NoSuchUser { id } | Answer::Unavailable { id, .. }) =
            &answer;
        // One that comes too late is nobody's any more.
        let Some(login) = self.authnet.answered(*id) else { return };
        match answer {
            Answer::Right { user, .. } => self.named(login, &user),
            Answer::Wrong { .. } | Answer::NoSuchUser { .. } => self.next_source(login),
            Answer::Unavailable { text, .. } => self.authnet_silent(login, &wire::escape::visible(&text)),
        }
    }

    /// The server named `user`: whoever that is here.
    fn named(&mut self, mut login: Login, user: &[u8]) {
        let account = match self.account_of(user) {
            Ok(account) => account,
            Err(text) => return self.unavailable(login.asker, &text),
        };
        match self.credentials(account.as_ref()) {
            Ok(Some(credentials)) => {
                login.user = account;
                login.suspended = credentials.suspended;
                self.judged(login, true);
            }
            Ok(None) => {
                log(&format!("a right login names no account of this host: {}", wire::escape::visible(user)));
                self.next_source(login);
            }
            Err(text) => self.unavailable(login.asker, text),
        }
    }

    fn authnet_silent(&mut self, mut login: Login, why: &str) {
        self.trouble(why);
        login.silent = Some(SILENT);
        self.next_source(login);
    }
}
