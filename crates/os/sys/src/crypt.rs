//! crypt(3) of the system's libcrypt: every format that /etc/shadow may hold here. Loaded when it is first used, by qmail-checkpw's helper
//! alone.

use crate::library::Library;
use std::ffi::{CStr, CString, c_char};
use std::io;
use std::sync::{Mutex, PoisonError};

type Function = unsafe extern "C" fn(*const c_char, *const c_char) -> *mut c_char;

/// The function writes into memory of its own: one caller at a time.
static TURN: Mutex<()> = Mutex::new(());

/// The loaded function.
#[derive(Debug)]
pub struct Crypt(Function);

impl Crypt {
    /// # Errors
    /// There is no libcrypt.
    pub fn load() -> io::Result<Self> {
        let address = Library::open(c"libcrypt.so.1")?.symbol(c"crypt")?;
        // SAFETY: this is the type of crypt(3) in every libcrypt.so.1.
        Ok(Self(unsafe { std::mem::transmute::<*mut std::ffi::c_void, Function>(address) }))
    }

    /// The hash of `phrase` by the method, costs and salt of `setting`. `None`: the system does not know such a setting, or the phrase is
    /// none (a NUL in it, too long).
    #[must_use]
    pub fn hash(&self, phrase: &[u8], setting: &[u8]) -> Option<Vec<u8>> {
        let (phrase, setting) = (CString::new(phrase).ok()?, CString::new(setting).ok()?);
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: both strings are NUL-terminated and live for the call; nobody else is in it.
        let hash = unsafe { (self.0)(phrase.as_ptr(), setting.as_ptr()) };
        if hash.is_null() {
            return None;
        }
        // SAFETY: crypt(3) gives a NUL-terminated string that stays until the next call.
        let hash = unsafe { CStr::from_ptr(hash) }.to_bytes().to_vec();
        // libxcrypt's failure tokens, which are no hash of anything.
        (!hash.starts_with(b"*")).then_some(hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_of_the_system() {
        let crypt = Crypt::load().unwrap();
        // The first two are the vectors of the SHA-crypt specification (Drepper).
        for (phrase, hash) in [
            ("Hello world!", "$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5"),
            (
                "Hello world!",
                "$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1",
            ),
        ] {
            assert_eq!(crypt.hash(phrase.as_bytes(), hash.as_bytes()).unwrap(), hash.as_bytes());
            assert_ne!(crypt.hash(b"hello world!", hash.as_bytes()).unwrap(), hash.as_bytes());
        }
        for setting in ["$y$j9T$saltsaltsalt", "$1$salt", "$2b$05$CCCCCCCCCCCCCCCCCCCCC.", "$gy$j9T$saltsaltsalt"] {
            let hash = crypt.hash(b"x", setting.as_bytes()).unwrap();
            assert_eq!(crypt.hash(b"x", &hash).unwrap(), hash, "{setting}");
        }
        for setting in ["", "*", "!", "$99$x", "x"] {
            assert_eq!(crypt.hash(b"x", setting.as_bytes()), None, "{setting}");
        }
        assert_eq!(crypt.hash(b"a\0b", b"$1$salt"), None);
    }
}
