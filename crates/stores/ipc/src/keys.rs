//! What network programs ask qmail-keys, on keys.sock: the certificates with their chains, and signatures of handshakes.
//!
//! No message holds a private key, or could ask for one.

use crate::field::Bytes;

/// The purpose of a key for TLS servers.
pub const TLS: u8 = 1;
/// The purpose of a key with which we are a TLS client.
pub const TLS_CLIENT: u8 = 2;

messages! {
    /// A question; `id` comes back in the answer.
    pub enum Request {
        /// The certificate with this number, from 0; numbers are those of one generation.
        1 => Certificate { id: u64, number: u32 },
        /// Sign `input`, which must have the form of the key's purpose. `key`: as in the certificate; `scheme`: TLS SignatureScheme
        /// (RFC 8446 §4.2.3).
        2 => Sign { id: u64, key: Bytes, purpose: u8, scheme: u16, input: Bytes },
        /// The certificate that we show as a client, by the name of its directory. For qmail-remote alone.
        3 => ClientCertificate { id: u64, name: Bytes },
    }
}

messages! {
    pub enum Answer {
        1 => Certificate {
            id: u64,
            /// Changes whenever any certificate does; also over restarts.
            generation: u64,
            /// How many certificates there are.
            count: u32,
            /// SHA-256 of the public key (SubjectPublicKeyInfo).
            key: Bytes,
            /// What the key can sign by, best first.
            schemes: Vec<u16>,
            /// DNS names in lower case; `*.` first stands for one label.
            names: Vec<Bytes>,
            /// For clients that name no host, or one that no certificate has.
            is_default: bool,
            /// Channel binding tls-server-end-point (RFC 5929 §4.1); empty where it is not defined.
            end_point: Bytes,
            /// DER, the host's own first.
            chain: Vec<Bytes>,
        },
        /// There is none with that number.
        2 => NoCertificate { id: u64, generation: u64, count: u32 },
        3 => Signature { id: u64, signature: Bytes },
        /// The key is not there (any more): ask for the certificates again.
        4 => UnknownKey { id: u64 },
        /// Not something this key signs, or too much at once; the text is for the log.
        5 => Refused { id: u64, text: Bytes },
    }
}
