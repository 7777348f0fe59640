//! One connection to the server: by TLS that knows whom it talks to, with statements that are prepared once.

use super::schema;
use crate::Trouble;
use crate::dial::Dialer;
use accounts_sql::Statement;
use control::Root;
use control::accounts::{Postgres as Config, Server};
use futures_core::Stream as _;
use ipc::DATAGRAM_LEN_MAX;
use ipc::accounts::{Row, Value};
use std::cell::RefCell;
use std::collections::HashMap;
use std::error::Error as StdError;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::spawn_local;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::{ChannelBinding, NoTls, TlsConnect, TlsStream};
use tokio_postgres::types::{IsNull, ToSql, Type};
use tokio_postgres::{Client, Connection};
use wire::Secret;

/// Bounds of each session, in milliseconds, below the deadline of a question: a question that nobody waits for any more must not go on, a
/// transaction whose asker hangs must not hold up those of other hosts.
const SETTINGS: &str = "SET statement_timeout = 4000; SET lock_timeout = 3000; SET idle_in_transaction_session_timeout = 10000";
/// What the transactions of all hosts take first, so that they come one after the other: `qmail` in ASCII.
pub(super) const LOCK: &str = "SELECT pg_advisory_xact_lock(487248554348)";
const GENERATION: &str = "SELECT number FROM generation";

/// A connection.
pub(super) struct Session {
    client: Client,
    prepared: RefCell<HashMap<Statement, tokio_postgres::Statement>>,
    generation: RefCell<Option<tokio_postgres::Statement>>,
}

impl Session {
    /// Connects, and sees to it that the tables are those that this program knows.
    pub(super) async fn open(root: &Root, config: &Config, password: Option<&Secret>, dialer: &Dialer) -> Result<Self, Trouble> {
        let client = connect(config, password, dialer).await.map_err(|failure| failure.said(root, config))?;
        let session = Self { client, prepared: RefCell::default(), generation: RefCell::default() };
        session.client.batch_execute(SETTINGS).await.map_err(|error| trouble(&error))?;
        schema::bring_up(&session.client, config).await?;
        Ok(session)
    }

    pub(super) fn is_alive(&self) -> bool {
        !self.client.is_closed()
    }

    pub(super) async fn generation(&self) -> Result<i64, Trouble> {
        let known = self.generation.borrow().clone();
        let statement = match known {
            Some(statement) => statement,
            None => self.client.prepare(GENERATION).await.map_err(|error| trouble(&error))?,
        };
        let row = self.client.query_one(&statement, &[]).await.map_err(|error| trouble(&error))?;
        self.generation.replace(Some(statement));
        row.try_get(0).map_err(|error| trouble(&error))
    }

    /// The rows of each statement. All are sent before the first answer is there.
    pub(super) async fn read_all(&self, calls: &[(Statement, Row)]) -> Result<Vec<Vec<Row>>, Trouble> {
        let all = calls.iter().map(|(statement, values)| Box::pin(self.rows(*statement, values)));
        let mut waiting: Vec<_> = all.map(Some).collect();
        let mut results: Vec<Vec<Row>> = vec![Vec::new(); waiting.len()];
        poll_fn(|cx| {
            let mut is_done = true;
            for (slot, result) in waiting.iter_mut().zip(&mut results) {
                let Some(future) = slot else { continue };
                match future.as_mut().poll(cx) {
                    Poll::Pending => is_done = false,
                    Poll::Ready(Err(trouble)) => return Poll::Ready(Err(trouble)),
                    Poll::Ready(Ok(rows)) => {
                        *result = rows;
                        *slot = None;
                    }
                }
            }
            if is_done { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await?;
        Ok(results)
    }

    /// A statement in the transaction: its rows, or how many it changed.
    pub(super) async fn run(&self, statement: Statement, values: &[Value]) -> Result<(Vec<Row>, u64), Trouble> {
        if statement.is_read() {
            return Ok((self.rows(statement, values).await?, 0));
        }
        let prepared = self.prepared(statement).await?;
        let changed = self.client.execute_raw(&prepared, values.iter().map(Bound)).await;
        Ok((Vec::new(), changed.map_err(|error| trouble(&error))?))
    }

    pub(super) async fn begin(&self) -> Result<(), Trouble> {
        self.client.batch_execute(&format!("BEGIN; {LOCK}")).await.map_err(|error| trouble(&error))
    }

    pub(super) async fn end(&self, commit: bool) -> Result<(), Trouble> {
        let sql = if commit { "COMMIT" } else { "ROLLBACK" };
        self.client.batch_execute(sql).await.map_err(|error| trouble(&error))
    }

    /// What is more than an answer holds is not taken: the first rows beyond it are the last.
    async fn rows(&self, statement: Statement, values: &[Value]) -> Result<Vec<Row>, Trouble> {
        let prepared = self.prepared(statement).await?;
        let stream = self.client.query_raw(&prepared, values.iter().map(Bound)).await.map_err(|error| trouble(&error))?;
        let mut stream = pin!(stream);
        let (mut rows, mut len) = (Vec::new(), 0usize);
        while let Some(row) = poll_fn(|cx| stream.as_mut().poll_next(cx)).await {
            let row = values_of(&row.map_err(|error| trouble(&error))?)?;
            len = len.saturating_add(row.iter().map(Value::len).sum());
            rows.push(row);
            if len > DATAGRAM_LEN_MAX {
                break;
            }
        }
        Ok(rows)
    }

    async fn prepared(&self, statement: Statement) -> Result<tokio_postgres::Statement, Trouble> {
        if let Some(prepared) = self.prepared.borrow().get(&statement) {
            return Ok(prepared.clone());
        }
        let prepared = self.client.prepare(&statement.postgres()).await.map_err(|error| trouble(&error))?;
        self.prepared.borrow_mut().insert(statement, prepared.clone());
        Ok(prepared)
    }
}

async fn connect(config: &Config, password: Option<&Secret>, dialer: &Dialer) -> Result<Client, Failure> {
    let mut settings = tokio_postgres::Config::new();
    settings.user(&config.user).dbname(&config.database).application_name("qmail-authnet");
    if let Some(password) = password {
        settings.password(password.expose());
    }
    match &config.server {
        Server::Unix { dir, port } => {
            let path = dir.join(format!(".s.PGSQL.{port}"));
            let stream = UnixStream::connect(&path).await;
            let stream = stream.map_err(|error| Trouble::new(&format!("no connection to {}", path.display()), &error))?;
            settings.ssl_mode(SslMode::Disable);
            drive(settings.connect_raw(stream, NoTls).await?)
        }
        Server::Tcp { endpoint, is_tls: false } => {
            settings.ssl_mode(SslMode::Disable);
            drive(settings.connect_raw(dialer.tcp(endpoint).await?, NoTls).await?)
        }
        Server::Tcp { endpoint, is_tls: true } => {
            settings.ssl_mode(SslMode::Require);
            let tls = Verified { dialer: dialer.clone(), host: endpoint.host.clone() };
            drive(settings.connect_raw(dialer.tcp(endpoint).await?, tls).await?)
        }
    }
}

/// The connection does its work in a task of its own, which ends with the client.
#[allow(clippy::unnecessary_wraps)]
fn drive<S, T>((client, connection): (Client, Connection<S, T>)) -> Result<Client, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    spawn_local(async move {
        // Whoever waits for an answer hears of its end.
        let _ = connection.await;
    });
    Ok(client)
}

/// Why there is no connection.
enum Failure {
    Trouble(Trouble),
    Server(tokio_postgres::Error),
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Server(error)
    }
}

impl Failure {
    /// With what to do about it.
    fn said(self, root: &Root, config: &Config) -> Trouble {
        let error = match self {
            Self::Trouble(trouble) => return trouble,
            Self::Server(error) => error,
        };
        let Config { user, database, .. } = config;
        let file = config.password_file(root).unwrap_or_else(|| root.control_file(control::accounts::FILE));
        let cure = match error.code() {
            Some(code) if *code == SqlState::INVALID_PASSWORD => format!("; is the password of {user} in {}?", file.display()),
            Some(code) if *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
                format!("; createuser {user}, and let pg_hba.conf admit it to {database} (hostssl … scram-sha-256)")
            }
            Some(code) if *code == SqlState::UNDEFINED_DATABASE => format!("; createdb -O {user} {database}"),
            Some(_) => String::new(),
            None if error.to_string().contains("password missing") => {
                format!("; write the password of {user} into control/{} (qmailn's, mode 600)", control::accounts::PASSWORD_FILE)
            }
            None => String::new(),
        };
        Trouble::new("no connection", &format_args!("{}{cure}", trouble(&error).0))
    }
}

/// What the library says, with its cause.
pub(super) fn trouble(error: &tokio_postgres::Error) -> Trouble {
    match error.as_db_error() {
        // Not the detail: it holds values of the row.
        Some(said) => Trouble::new("PostgreSQL", &format_args!("{} ({})", said.message(), said.code().code())),
        None => match error.source() {
            Some(cause) => Trouble::new("PostgreSQL", &format_args!("{error}: {cause}")),
            None => Trouble::new("PostgreSQL", error),
        },
    }
}

/// TLS to the host that control/accounts names (`verify-full`).
struct Verified {
    dialer: Dialer,
    host: String,
}

impl TlsConnect<TcpStream> for Verified {
    type Stream = Encrypted;
    type Error = Box<dyn StdError + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Encrypted, Self::Error>>>>;

    fn connect(self, stream: TcpStream) -> Self::Future {
        Box::pin(async move {
            let stream = self.dialer.tls(stream, &self.host).await.map_err(|trouble| trouble.0)?;
            Ok(Encrypted(stream))
        })
    }
}

/// A TLS connection as the library wants it.
struct Encrypted(tls::Stream);

impl TlsStream for Encrypted {
    fn channel_binding(&self) -> ChannelBinding {
        // The certificate was verified against the host's name: nobody is in between whom a binding would find.
        ChannelBinding::none()
    }
}

impl AsyncRead for Encrypted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Encrypted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A value that is bound to a statement: its type must be that of the column.
#[derive(Debug)]
struct Bound<'a>(&'a Value);

impl ToSql for Bound<'_> {
    fn to_sql(&self, ty: &Type, out: &mut bytes::BytesMut) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        match self.0 {
            Value::Null => Ok(IsNull::Yes),
            Value::Int(number) if *ty == Type::INT8 => number.to_sql(ty, out),
            Value::Text(text) if *ty == Type::TEXT => text.as_str().to_sql(ty, out),
            Value::Bytes(bytes) if *ty == Type::BYTEA => bytes.as_slice().to_sql(ty, out),
            _ => Err("a value of another type than its column".into()),
        }
    }

    fn accepts(ty: &Type) -> bool {
        [Type::INT8, Type::TEXT, Type::BYTEA].contains(ty)
    }

    tokio_postgres::types::to_sql_checked!();
}

fn values_of(row: &tokio_postgres::Row) -> Result<Row, Trouble> {
    let value = |(at, column): (usize, &tokio_postgres::Column)| {
        let got = match *column.type_() {
            Type::INT8 => row.try_get::<_, Option<i64>>(at).map(|number| number.map(Value::Int)),
            Type::INT4 => row.try_get::<_, Option<i32>>(at).map(|number| number.map(|number| Value::Int(number.into()))),
            Type::TEXT => row.try_get::<_, Option<&str>>(at).map(|text| text.map(|text| Value::Text(text.to_owned().into()))),
            Type::BYTEA => {
                row.try_get::<_, Option<&[u8]>>(at).map(|bytes| bytes.map(|bytes| Value::Bytes(bytes.to_vec().into())))
            }
            _ => return Err(Trouble::new("PostgreSQL", &"a column of a type that no table of this version has")),
        };
        got.map(|value| value.unwrap_or(Value::Null)).map_err(|error| trouble(&error))
    };
    row.columns().iter().enumerate().map(value).collect()
}
