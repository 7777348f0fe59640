//! Logins that servers elsewhere judge: qmail-authnet is asked, and what it names must be an account here.
//!
//! No answer is never "wrong": the other sources are asked, and if none of them says yes, the login is told to come back.

use crate::login::Login;
use crate::recipients::Asker;
use crate::server::{Server, log};
use control::authnet::Sources;
use control::{Root, Watched};
use ipc::Message as _;
use ipc::authnet::{Answer, Request};
use sasl::oauth::{Credentials, Failure, Form};
use std::time::Duration;
use wire::Secret;

const SILENT: &str = "the source of logins does not answer";

/// What an answer of qmail-authnet is for.
pub(crate) struct Waiter {
    login: Box<Login>,
    /// `None`: a password.
    token: Option<Form>,
}

/// control/authsources, followed. It decides who gets in, so it must be root's (or the caller's) alone.
pub(crate) fn watched(root: &Root) -> Watched<Sources> {
    Watched::owned(root.control_file(control::authnet::FILE), Sources::parse)
}

impl Server {
    /// The sources as the file says them now. `None`: it says nothing that can be understood, and that was answered already.
    pub(crate) fn sources(&mut self, asker: Asker) -> Option<Sources> {
        let sources = self.auth_sources.get().cloned().map_err(|error| error.to_string());
        sources
            .map_err(|text| {
                self.trouble(&text);
                self.unavailable(asker, "control/authsources cannot be read");
            })
            .ok()
    }

    /// Has qmail-authnet check the password against `source`.
    pub(crate) fn ask_authnet(&mut self, login: Login, source: &str) {
        let (name, password) = (login.login.as_slice().into(), Secret::new(login.password.to_vec()));
        let (service, source, remote) = (login.service.name().into(), source.into(), login.remote);
        let request = Request::Check { id: 0, source, service, login: name, password, remote };
        self.ask(request, Waiter { login: Box::new(login), token: None });
    }

    /// Has qmail-authnet ask whose token it is.
    pub(crate) fn ask_about_token(&mut self, login: Login, form: Form, credentials: &Credentials<'_>) {
        let (user, token) = (credentials.user.as_slice().into(), Secret::new(credentials.token.to_vec()));
        let request = Request::Token { id: 0, service: login.service.name().into(), user, token, remote: login.remote };
        self.ask(request, Waiter { login: Box::new(login), token: Some(form) });
    }

    fn ask(&mut self, mut request: Request, waiter: Waiter) {
        let question = |number| {
            let (Request::Check { id, .. } | Request::Token { id, .. }) = &mut request;
            *id = number;
            request.encode()
        };
        let asked = self.authnet.ask(question, waiter, sys::clock::boottime());
        asked.unwrap_or_else(|waiter| self.authnet_silent(waiter, "too many logins at once"));
    }

    /// Sends what waits, ends what is due.
    pub(crate) fn authnet_advance(&mut self, now: Duration) {
        for waiter in self.authnet.expired(now).into_iter().chain(self.authnet.advance(now)).collect::<Vec<_>>() {
            self.authnet_silent(waiter, "qmail-authnet does not answer");
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
            gone.into_iter().for_each(|waiter| self.authnet_silent(waiter, "qmail-authnet went away"));
            return;
        }
    }

    fn authnet_says(&mut self, answer: Answer) {
        let (Answer::Right { id, .. } | Answer::Wrong { id } | Answer::NoSuchUser { id } | Answer::Unavailable { id, .. }) =
            &answer;
        // One that comes too late is nobody's any more.
        let Some(waiter) = self.authnet.answered(*id) else { return };
        match answer {
            Answer::Right { user, .. } => self.named(waiter, &user),
            Answer::Wrong { .. } | Answer::NoSuchUser { .. } => self.not_right(waiter),
            Answer::Unavailable { text, .. } => self.authnet_silent(waiter, &wire::escape::visible(&text)),
        }
    }

    /// The server named `user`: whoever that is here.
    fn named(&mut self, mut waiter: Waiter, user: &[u8]) {
        let (asker, service) = (waiter.login.asker, waiter.login.service);
        let account = match self.account_of(user) {
            Ok(account) => account,
            Err(text) => return self.unavailable(asker, &text),
        };
        match self.look_up(account, service) {
            // Where only app passwords count, no other password does, whoever says that it is right.
            Ok((Some(account), is_open, main, _)) if main.is_some() || waiter.token.is_some() => {
                (waiter.login.user, waiter.login.is_open) = (Some(account), is_open);
                let may_enter = self.may_enter(&waiter.login);
                if may_enter { self.judged(*waiter.login, true) } else { self.not_right(waiter) }
            }
            Ok(_) => {
                log(&format!("a right login names no account of this host that takes it: {}", wire::escape::visible(user)));
                self.not_right(waiter);
            }
            Err(error) => {
                self.trouble(&error.to_string());
                self.unavailable(asker, "the accounts cannot be read");
            }
        }
    }

    fn not_right(&mut self, Waiter { login, token }: Waiter) {
        match token {
            None => self.next_source(*login),
            Some(form) => self.token_refused(*login, form, Failure::InvalidToken),
        }
    }

    fn authnet_silent(&mut self, Waiter { mut login, token }: Waiter, why: &str) {
        self.trouble(why);
        if token.is_some() {
            return self.unavailable(login.asker, SILENT);
        }
        login.silent = Some(SILENT);
        self.next_source(*login);
    }
}
