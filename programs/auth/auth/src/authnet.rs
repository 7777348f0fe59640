//! Logins that servers elsewhere judge: qmail-authnet is asked, and what it names must be an account here.
//!
//! No answer is never "wrong": the login is told to come back.

use crate::login::Login;
use crate::server::{Server, log};
use ipc::Message as _;
use ipc::authnet::{Answer, Request};
use logline::Line;
use sasl::oauth::{Credentials, Failure, Form};
use std::time::Duration;
use wire::Secret;

/// What an answer of qmail-authnet is for.
pub(crate) struct Waiter {
    login: Box<Login>,
    /// `None`: a password.
    token: Option<Form>,
}

impl Server {
    /// Has qmail-authnet check the password against `source`.
    pub(crate) fn ask_authnet(&mut self, login: Box<Login>, source: &str) {
        let (name, password) = login.walk.question(login.name());
        let (name, password) = (name.into(), Secret::new(password.to_vec()));
        let (service, source, remote) = (login.service().name().into(), source.into(), login.remote());
        let request = Request::Check { id: 0, source, service, login: name, password, remote };
        self.ask(request, Waiter { login, token: None });
    }

    /// Has qmail-authnet ask whose token it is.
    pub(crate) fn ask_about_token(&mut self, login: Login, form: Form, credentials: &Credentials<'_>) {
        let (user, token) = (credentials.user.as_slice().into(), Secret::new(credentials.token.to_vec()));
        let request = Request::Token { id: 0, service: login.service().name().into(), user, token, remote: login.remote() };
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
            Answer::Unavailable { text, .. } => self.authnet_silent(waiter, &wire::escape::visible(&text)),
            _ if waiter.login.walk.is_refused => self.next_source(waiter.login),
            Answer::Right { user, .. } => self.named(waiter, &user),
            Answer::NoSuchUser { .. } if waiter.token.is_none() => self.next_source(waiter.login),
            Answer::Wrong { .. } | Answer::NoSuchUser { .. } => self.not_right(waiter),
        }
    }

    /// The server named `user`: whoever that is here.
    fn named(&mut self, mut waiter: Waiter, user: &[u8]) {
        let (asker, service) = (waiter.login.asker, waiter.login.service());
        let account = match self.account_of(user) {
            Ok(account) => account,
            Err(text) => return self.unavailable(asker, &text),
        };
        match self.look_up(account, service) {
            // Where only app passwords count, no other password does, whoever says that it is right.
            Ok((Some((domain, name)), is_open, main, _)) if main.is_some() || waiter.token.is_some() => {
                waiter.login.become_account(domain, name, is_open);
                let may_enter = self.may_enter(&waiter.login);
                if may_enter { self.judged(*waiter.login, true) } else { self.not_right(waiter) }
            }
            Ok(_) => {
                log(Line::new("a right login names no account of this host that takes it:").bytes("user", user));
                self.not_right(waiter);
            }
            Err(error) => {
                self.trouble(&error.to_string());
                self.unavailable(asker, "the accounts cannot be read");
            }
        }
    }

    /// The last word; for a password the sources that are left are asked about nobody.
    fn not_right(&mut self, Waiter { mut login, token }: Waiter) {
        match token {
            None => {
                login.walk.is_refused = true;
                self.next_source(login);
            }
            Some(form) => self.token_refused(*login, form, Failure::InvalidToken),
        }
    }

    fn authnet_silent(&mut self, Waiter { login, token }: Waiter, why: &str) {
        self.trouble(why);
        match token {
            None => self.source_is_silent(login),
            Some(_) => self.unavailable(login.asker, "the source of logins does not answer"),
        }
    }
}
