//! SASL exchanges (RFC 4422) whose messages qmail-smtpd and qmail-popup relay: SCRAM, CRAM-MD5, OAUTHBEARER, XOAUTH2 and EXTERNAL.
//!
//! An exchange belongs to the connection that began it, lives [`LIFETIME`] at most, and there are at most [`EXCHANGES_MAX`] of them: one more
//! ends the oldest, of the same address if that has [`PER_ADDRESS_MAX`]. A name that nobody has, a suspended account and one without the
//! secrets of the mechanism take the same steps, and end like a wrong password.

use crate::hashing::kind;
use crate::login::{Found, Login, Service};
use crate::recipients::Asker;
use crate::server::Server;
use accounts::Secrets as _;
use accounts::secrets::AppPassword;
use control::authsources::Source;
use ipc::auth::Answer;
use sasl::oauth::{self, Form};
use sasl::scram::{Channel, Hash, Keys, Proof, Salt};
use sasl::{Mechanism, Protection, cram_md5, scram};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;
use zeroize::Zeroizing;

/// A client answers at once; a person is not asked in between.
const LIFETIME: Duration = Duration::from_secs(60);
/// Some KiB each.
const EXCHANGES_MAX: usize = 4096;
const PER_ADDRESS_MAX: usize = 64;

/// What the client's next message is.
enum State {
    /// SCRAM's first.
    First { hash: Hash, plus: bool, channel: Channel },
    /// SCRAM's last. For each of the keys the app password that they are of.
    Proof { proof: Box<Proof>, apps: Vec<Option<(String, u64)>>, login: Box<Login> },
    /// Nothing: both have proved what they had to, and the client has heard so.
    Proved { login: Box<Login> },
    /// The response to CRAM-MD5's challenge.
    CramMd5 { challenge: Vec<u8> },
    /// OAUTHBEARER's and XOAUTH2's one message.
    Token { form: Form },
    /// EXTERNAL's one message, whom the client wants to be; its certificate has this name in control/tlsclients.
    External { certificate: Vec<u8> },
    /// Anything: the client has heard why its token does not count, and hears next that there is no login (RFC 7628 §3.2.3).
    Refused { login: Box<Login> },
}

struct Exchange {
    client: u64,
    service: Service,
    remote: Option<IpAddr>,
    due: Duration,
    state: State,
}

/// Those under way, by number; numbers grow, so the first is the oldest.
#[derive(Default)]
pub(crate) struct Exchanges {
    all: BTreeMap<u64, Exchange>,
    last: u64,
}

impl Exchanges {
    fn begin(&mut self, exchange: Exchange) -> u64 {
        let neighbours = self.all.iter().filter(|(_, other)| other.remote == exchange.remote);
        let (oldest, count) =
            neighbours.fold((None, 0usize), |(oldest, count), (number, _)| (oldest.or(Some(*number)), count.saturating_add(1)));
        match oldest {
            Some(oldest) if count >= PER_ADDRESS_MAX => drop(self.all.remove(&oldest)),
            _ if self.all.len() >= EXCHANGES_MAX => drop(self.all.pop_first()),
            _ => {}
        }
        self.last = self.last.wrapping_add(1);
        self.all.insert(self.last, exchange);
        self.last
    }

    /// Takes one out, if it is this connection's and not too old.
    fn take(&mut self, number: u64, client: u64, now: Duration) -> Option<Exchange> {
        if self.all.get(&number)?.client != client {
            return None;
        }
        self.all.remove(&number).filter(|exchange| now < exchange.due)
    }

    pub(crate) fn expire(&mut self, now: Duration) {
        while self.all.first_key_value().is_some_and(|(_, oldest)| oldest.due <= now) {
            self.all.pop_first();
        }
    }

    /// A connection has ended.
    pub(crate) fn forget(&mut self, client: u64) {
        self.all.retain(|_, exchange| exchange.client != client);
    }
}

/// What the client's TLS gives to the exchange.
pub(crate) struct Layer {
    pub(crate) channel: Channel,
    /// The name of its certificate in control/tlsclients.
    pub(crate) certificate: Option<Vec<u8>>,
}

impl Server {
    pub(crate) fn sasl_start(
        &mut self,
        asker: Asker,
        service: &[u8],
        mechanism: &[u8],
        initial: Option<Zeroizing<Vec<u8>>>,
        remote: Option<IpAddr>,
        layer: Layer,
    ) {
        let Layer { channel, certificate } = layer;
        let Some(service) = Service::named(service) else { return self.unavailable(asker, "this service has no logins") };
        let scram = |hash, plus| (State::First { hash, plus, channel: channel.clone() }, Vec::new());
        let mechanism =
            self.mechanisms().find(mechanism, Protection { channel: channel.is_bound(), certificate: certificate.is_some() });
        let sources = match self.sources() {
            Ok(sources) => sources,
            Err(text) => return self.unavailable(asker, &text),
        };
        let is_judged = |mechanism: &Mechanism| match mechanism {
            // By control/tlsclients, which is no source of passwords.
            Mechanism::External => true,
            mechanism => sources.contains(if mechanism.is_oauth() { &Source::Oauth } else { &Source::Accounts }),
        };
        let token = |form| (State::Token { form }, Vec::new());
        let (state, challenge) = match mechanism.filter(is_judged) {
            Some(Mechanism::Oauthbearer) => token(Form::Oauthbearer),
            Some(Mechanism::Xoauth2) => token(Form::Xoauth2),
            Some(Mechanism::ScramSha256Plus) => scram(Hash::Sha256, true),
            Some(Mechanism::ScramSha1Plus) => scram(Hash::Sha1, true),
            Some(Mechanism::ScramSha256) => scram(Hash::Sha256, false),
            Some(Mechanism::ScramSha1) => scram(Hash::Sha1, false),
            Some(Mechanism::CramMd5) => match self.cram_md5_challenge() {
                Ok(challenge) => (State::CramMd5 { challenge: challenge.clone() }, challenge),
                Err(_) => return self.unavailable(asker, "no random bytes"),
            },
            Some(Mechanism::External) => (State::External { certificate: certificate.unwrap_or_default() }, Vec::new()),
            Some(Mechanism::Plain | Mechanism::Login) | None => return self.unavailable(asker, "no such mechanism here"),
        };
        let due = sys::clock::boottime().saturating_add(LIFETIME);
        let exchange = Exchange { client: asker.client, service, remote, due, state };
        match (initial, &exchange.state) {
            (Some(initial), State::First { .. } | State::Token { .. } | State::External { .. }) => {
                self.sasl_message(asker, exchange, &initial)
            }
            // Here the server begins (RFC 4422 §3.1): nobody has said who it is.
            (Some(_), _) => self.nobody(asker, service, remote),
            (None, _) => self.challenge(asker, exchange, challenge),
        }
    }

    pub(crate) fn sasl_step(&mut self, asker: Asker, number: u64, response: &[u8]) {
        match self.exchanges.take(number, asker.client, sys::clock::boottime()) {
            Some(exchange) => self.sasl_message(asker, exchange, response),
            // The process was replaced, or the client took its time.
            None => self.unavailable(asker, "that exchange is over"),
        }
    }

    fn sasl_message(&mut self, asker: Asker, exchange: Exchange, message: &[u8]) {
        let (service, remote) = (exchange.service, exchange.remote);
        match exchange.state {
            State::First { hash, plus, ref channel } => match scram::Login::parse(hash, plus, channel, message) {
                Ok(first) => self.scram_first(asker, exchange, hash, first),
                Err(scram::Malformed) => self.nobody(asker, service, remote),
            },
            State::Proof { ref proof, .. } => {
                let proved = proof.judge(message).unwrap_or(None);
                self.scram_proof(asker, exchange, proved);
            }
            State::Proved { mut login } => {
                login.asker = asker;
                self.judged(*login, message.is_empty());
            }
            State::CramMd5 { challenge } => self.cram_md5(asker, service, remote, &challenge, message),
            State::Token { form } => self.token(asker, service, remote, form, message),
            State::External { certificate } => self.external(asker, service, remote, &certificate, message),
            State::Refused { mut login } => {
                login.asker = asker;
                self.judged(*login, false);
            }
        }
    }

    fn challenge(&mut self, asker: Asker, exchange: Exchange, data: Vec<u8>) {
        let number = self.exchanges.begin(exchange);
        self.answer(asker.client, &Answer::Challenge { id: asker.id, exchange: number, data: data.into() }, None);
    }

    /// What no client sends that knows a password: refused and counted like a wrong one.
    fn nobody(&mut self, asker: Asker, service: Service, remote: Option<IpAddr>) {
        if let Some(found) = self.find(asker, service, b"", remote) {
            self.judged(found.login, false);
        }
    }

    fn scram_first(&mut self, asker: Asker, exchange: Exchange, hash: Hash, first: scram::Login) {
        let Some(found) = self.find(asker, exchange.service, first.name(), exchange.remote) else { return };
        let known = match self.scram_keys(&found, hash, first.name(), first.user().is_some()) {
            Ok(known) => known,
            Err(error) => {
                self.trouble(&error.to_string());
                return self.unavailable(asker, "the accounts cannot be read");
            }
        };
        let (Ok(nonce), (salt, keys, apps)) = (sys::random::bytes16(), known) else {
            return self.unavailable(asker, "no random bytes");
        };
        let (said, proof) = first.answer(&salt, keys, &nonce);
        let state = State::Proof { proof: Box::new(proof), apps, login: Box::new(found.login) };
        self.challenge(asker, Exchange { state, ..exchange }, said);
    }

    /// The salt for a name, and the keys that have it: the main password's and those of app passwords.
    #[allow(clippy::type_complexity)]
    fn scram_keys(
        &mut self,
        found: &Found,
        hash: Hash,
        name: &[u8],
        for_itself: bool,
    ) -> Result<(Salt, Vec<Keys>, Vec<Option<(String, u64)>>), accounts::Error> {
        let account = found.login.account();
        let stored = account.map(|(domain, user)| self.accounts.secret(domain, user.as_bytes(), kind(hash))).transpose()?;
        let main = stored.flatten().and_then(|text| Keys::parse(hash, std::str::from_utf8(&text).ok()?));
        let salt = match (&main, account) {
            (Some(keys), _) => keys.salt.clone(),
            (None, Some((domain, user))) => self.salt(hash, &[user.as_bytes(), b"@", domain.as_bytes()].concat())?,
            (None, None) => self.salt(hash, &name.to_ascii_lowercase())?,
        };
        let main = main.filter(|_| found.hash.is_some()).map(|keys| (keys, None));
        let of_app = |app: &AppPassword| {
            let [sha1, sha256] = &app.scram;
            let text = if hash == Hash::Sha1 { sha1 } else { sha256 };
            let keys = Keys::parse(hash, text.as_ref()?).filter(|keys| keys.salt == salt)?;
            Some((keys, Some((app.name.clone(), app.used_s))))
        };
        let all = main.into_iter().chain(found.apps.iter().filter_map(of_app)).filter(|_| for_itself);
        let (keys, apps) = all.unzip();
        Ok((salt, keys, apps))
    }

    /// Whoever is refused for other failures does not hear that this proof was right.
    fn scram_proof(&mut self, asker: Asker, exchange: Exchange, proved: Option<(Vec<u8>, usize)>) {
        let State::Proof { mut login, mut apps, .. } = exchange.state else { return };
        login.asker = asker;
        match proved.filter(|_| self.may_enter(&login)) {
            Some((said, at)) => {
                if let Some((app, used_s)) = apps.get_mut(at).and_then(Option::take) {
                    self.app_password_used(&login, &app, used_s);
                }
                let Exchange { client, service, remote, due, .. } = exchange;
                self.challenge(asker, Exchange { client, service, remote, due, state: State::Proved { login } }, said);
            }
            None => self.judged(*login, false),
        }
    }

    fn token(&mut self, asker: Asker, service: Service, remote: Option<IpAddr>, form: Form, message: &[u8]) {
        let credentials = oauth::parse(form, message);
        let user = credentials.as_ref().map_or(&[][..], |credentials| &credentials.user);
        let Some(found) = self.find(asker, service, user, remote) else { return };
        match credentials {
            Ok(credentials) => self.ask_about_token(found.login, form, &credentials),
            Err(oauth::Malformed) => self.token_refused(found.login, form, oauth::Failure::InvalidRequest),
        }
    }

    /// Says why, before the refusal.
    pub(crate) fn token_refused(&mut self, login: Login, form: Form, why: oauth::Failure) {
        let (asker, service, remote) = (login.asker, login.service(), login.remote());
        let due = sys::clock::boottime().saturating_add(LIFETIME);
        let state = State::Refused { login: Box::new(login) };
        self.challenge(
            asker,
            Exchange { client: asker.client, service, remote, due, state },
            oauth::failure(form, why, "").into(),
        );
    }

    /// EXTERNAL (RFC 4422 App. A). Whoever relays the exchange says which line the client's certificate has; whose account that is, is
    /// looked up here. An empty message means that account; it may also be named, and nobody else may.
    fn external(&mut self, asker: Asker, service: Service, remote: Option<IpAddr>, certificate: &[u8], message: &[u8]) {
        let account = match self.tls_clients.get() {
            Ok(clients) => clients.account(certificate).cloned(),
            Err(error) => {
                let error = error.to_string();
                self.trouble(&error);
                return self.unavailable(asker, "the certificates of clients cannot be looked up");
            }
        };
        let Some(account) = account else { return self.nobody(asker, service, remote) };
        let Some(found) = self.find(asker, service, account.as_bytes(), remote) else { return };
        let own_name = found.login.account().map(|(domain, user)| [user.as_bytes(), b"@", domain.as_bytes()].concat());
        let names = [account.as_bytes(), own_name.as_deref().unwrap_or_default()];
        let is_own = message.is_empty() || names.iter().any(|name| name.eq_ignore_ascii_case(message));
        self.judged(found.login, is_own);
    }

    /// `<random.time@host>` (RFC 2195 §2, after RFC 1939's timestamp).
    fn cram_md5_challenge(&mut self) -> std::io::Result<Vec<u8>> {
        let random = u128::from_le_bytes(sys::random::bytes16()?);
        let host = self.places.routing().map_or_else(|_| b"localhost".to_vec(), |routing| routing.envnoathost.clone());
        Ok([format!("<{random:x}.{}@", sys::clock::unix_s()).as_bytes(), &host, b">"].concat())
    }

    fn cram_md5(&mut self, asker: Asker, service: Service, remote: Option<IpAddr>, challenge: &[u8], response: &[u8]) {
        let Some((name, digest)) = cram_md5::parse(response) else { return self.nobody(asker, service, remote) };
        let Some(found) = self.find(asker, service, name, remote) else { return };
        let Some(secret) = self.clear_secret(&found) else { return };
        let is_right = cram_md5::is_right(&secret, challenge, digest);
        self.judged(found.login, is_right);
    }
}
