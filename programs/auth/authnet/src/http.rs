//! One HTTP/1.1 request on a connection of its own, and the whole answer. No redirects, no cookies, no proxies.

use crate::Trouble;
use crate::dial::{Dialer, Io};
use control::url::WebUrl;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;

/// Longest body of an answer, and longest header, in bytes.
pub const ANSWER_LEN_MAX: usize = 64 * 1024;

/// What is asked.
pub struct Question {
    /// `None`: GET; otherwise POST with this form.
    pub form: Option<String>,
    /// The Authorization field.
    pub authorization: Option<HeaderValue>,
}

/// Asks, and waits for the whole answer. Not bounded in time.
///
/// # Errors
/// No answer, one that is no HTTP, or a longer one than [`ANSWER_LEN_MAX`].
pub async fn ask(dialer: &Dialer, url: &WebUrl, question: Question) -> Result<(StatusCode, Vec<u8>), Trouble> {
    let tcp = dialer.tcp(&url.endpoint).await?;
    let io: Box<dyn Io> = if url.is_tls { Box::new(dialer.tls(tcp, &url.endpoint.host).await?) } else { Box::new(tcp) };
    let handshake = http1::Builder::new().max_buf_size(ANSWER_LEN_MAX).handshake(TokioIo::new(io)).await;
    let (mut sender, connection) = handshake.map_err(|error| Trouble::new("HTTP", &error))?;
    let request = request(url, question)?;
    let exchange = async move {
        let answer = sender.send_request(request).await.map_err(|error| Trouble::new("HTTP", &error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_LEN_MAX).collect().await;
        let body = body.map_err(|error| Trouble::new("HTTP", &error))?;
        Ok((status, body.to_bytes().to_vec()))
    };
    let connection = async {
        // Its end is told to the exchange.
        let _ = connection.await;
        std::future::pending().await
    };
    tokio::select! {
        answer = exchange => answer,
        never = connection => never,
    }
}

fn request(url: &WebUrl, question: Question) -> Result<Request<Full<Bytes>>, Trouble> {
    let default = if url.is_tls { 443 } else { 80 };
    let host = if url.endpoint.port == default { url.endpoint.host.clone() } else { url.endpoint.to_string() };
    let method = if question.form.is_some() { Method::POST } else { Method::GET };
    let mut request = Request::builder().method(method).uri(&url.target).header(HOST, host).header(CONNECTION, "close");
    request = request.header(ACCEPT, "application/json");
    if let Some(authorization) = question.authorization {
        request = request.header(AUTHORIZATION, authorization);
    }
    if question.form.is_some() {
        request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
    }
    let body = Full::new(Bytes::from(question.form.unwrap_or_default()));
    request.body(body).map_err(|error| Trouble::new("HTTP", &error))
}

/// A value of a form (application/x-www-form-urlencoded): letters, digits and `-._` as they are, all else by number.
#[must_use]
pub fn form_encoded(value: &[u8]) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => out.push(char::from(*byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
