//! What network programs ask qmail-keys, on keys.sock: the certificates with their chains, and signatures of handshakes; and what
//! qmail-acme asks it: to sign what an ACME account says, to request a certificate for a key, and to put one in its place.
//!
//! No message holds a private key, or could ask for one. A certificate is called by the name of its directory, the first host of its
//! line in control/acme.

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
        /// The public half of the ACME account's key. This and what follows is for qmail-acme alone.
        10 => AcmeAccount { id: u64 },
        /// Sign a request to the certificate authority (RFC 8555 §6.2). `url` must be below control/acme's directory host. `account`: its
        /// URL; empty for a new one, which is then named by its key.
        11 => AcmeSign { id: u64, url: Bytes, nonce: Bytes, account: Bytes, payload: Bytes },
        /// The certificates of control/acme.
        12 => AcmeNames { id: u64 },
        /// What there is of one.
        13 => AcmeState { id: u64, name: Bytes },
        /// A request for a certificate (PKCS #10) for its key and its hosts.
        14 => AcmeRequest { id: u64, name: Bytes },
        /// Put this chain (DER, the host's own first) in its place. It must be for its key and its hosts.
        15 => AcmeInstall { id: u64, name: Bytes, chain: Vec<Bytes> },
        /// Keep what is to be known of it (control::acme::Note).
        16 => AcmeNote { id: u64, name: Bytes, text: Bytes },
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
        /// The point of the account's key, P-256, uncompressed.
        10 => AcmeAccount { id: u64, point: Bytes },
        /// The protected header that was signed (JSON), and the signature as JWS has it (RFC 7518 §3.4).
        11 => AcmeSigned { id: u64, protected: Bytes, signature: Bytes },
        12 => AcmeNames { id: u64, names: Vec<Bytes> },
        13 => AcmeState {
            id: u64,
            hosts: Vec<Bytes>,
            /// An authority vouches for it.
            is_issued: bool,
            /// It has all of the hosts.
            covers: bool,
            /// UNIX seconds; 0 where they are before 1970.
            not_before_s: u64,
            not_after_s: u64,
            note: Bytes,
        },
        14 => AcmeRequest { id: u64, der: Bytes },
        15 => AcmeDone { id: u64 },
    }
}

impl Answer {
    /// Which question it is for.
    #[must_use]
    pub fn id(&self) -> u64 {
        match self {
            Self::Certificate { id, .. }
            | Self::NoCertificate { id, .. }
            | Self::Signature { id, .. }
            | Self::UnknownKey { id }
            | Self::Refused { id, .. }
            | Self::AcmeAccount { id, .. }
            | Self::AcmeSigned { id, .. }
            | Self::AcmeNames { id, .. }
            | Self::AcmeState { id, .. }
            | Self::AcmeRequest { id, .. }
            | Self::AcmeDone { id } => *id,
        }
    }
}
