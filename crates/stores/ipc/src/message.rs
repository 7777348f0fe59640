//! The table form in which messages are written down: kind number, name, fields; encoder and decoder follow from it.

use crate::{DATAGRAM_LEN_MAX, Malformed};

/// A whole datagram.
pub trait Message: Sized {
    /// The bytes of the datagram. A message over [`DATAGRAM_LEN_MAX`] is a fault of the caller, who clips texts and splits
    /// lists; [`Message::encode_bounded`] checks it.
    fn encode(&self) -> Vec<u8>;
    /// # Errors
    /// Another version or kind, too long, cut short, bytes left over, or a field that is not valid.
    fn decode(datagram: &[u8]) -> Result<Self, Malformed>;

    /// As [`Message::encode`].
    ///
    /// # Errors
    /// The datagram would be too long.
    fn encode_bounded(&self) -> Result<Vec<u8>, Malformed> {
        Some(self.encode()).filter(|datagram| datagram.len() <= DATAGRAM_LEN_MAX).ok_or(Malformed)
    }
}

/// `messages! { /// doc pub enum Name { 1 => Kind { field: Type, … }, … } }`
#[macro_export]
macro_rules! messages {
    ($(#[$meta:meta])* pub enum $name:ident { $($(#[$kind_meta:meta])* $number:literal => $kind:ident {
        $($(#[$field_meta:meta])* $field:ident: $type:ty),* $(,)? }),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum $name { $($(#[$kind_meta])* $kind { $($(#[$field_meta])* $field: $type),* }),* }

        impl $crate::field::Field for $name {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$kind { $($field),* } => {
                        out.push($number);
                        $($crate::field::Field::put($field, out);)*
                    })*
                }
            }
            fn take(input: &mut &[u8]) -> Result<Self, $crate::Malformed> {
                match <u8 as $crate::field::Field>::take(input)? {
                    $($number => Ok(Self::$kind { $($field: $crate::field::Field::take(input)?),* }),)*
                    _ => Err($crate::Malformed),
                }
            }
        }

        impl $crate::Message for $name {
            fn encode(&self) -> Vec<u8> {
                let mut out = vec![$crate::VERSION];
                $crate::field::Field::put(self, &mut out);
                out
            }
            fn decode(datagram: &[u8]) -> Result<Self, $crate::Malformed> {
                if datagram.len() > $crate::DATAGRAM_LEN_MAX {
                    return Err($crate::Malformed);
                }
                let mut rest = datagram;
                if <u8 as $crate::field::Field>::take(&mut rest)? != $crate::VERSION {
                    return Err($crate::Malformed);
                }
                let message = $crate::field::Field::take(&mut rest)?;
                if rest.is_empty() { Ok(message) } else { Err($crate::Malformed) }
            }
        }
    };
}

/// `record! { /// doc pub struct Name { field: Type, … } }`: a struct that is a field of a message.
#[macro_export]
macro_rules! record {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type),* }

        impl $name {
            /// Bytes that it takes in a datagram.
            #[must_use]
            pub fn encoded_len(&self) -> usize {
                let mut out = Vec::new();
                $crate::field::Field::put(self, &mut out);
                out.len()
            }
        }

        impl $crate::field::Field for $name {
            fn put(&self, out: &mut Vec<u8>) {
                $($crate::field::Field::put(&self.$field, out);)*
            }
            fn take(input: &mut &[u8]) -> Result<Self, $crate::Malformed> {
                Ok(Self { $($field: $crate::field::Field::take(input)?),* })
            }
        }
    };
}
