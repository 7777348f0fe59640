//! Shared libraries that are loaded only where they are needed: what a helper needs no other program links.

use std::ffi::{CStr, c_void};
use std::io;

/// A library that stays loaded for good.
#[derive(Debug)]
pub(crate) struct Library(*mut c_void);

impl Library {
    /// # Errors
    /// It cannot be loaded.
    pub(crate) fn open(name: &CStr) -> io::Result<Self> {
        // SAFETY: the name is NUL-terminated. The library is the system's own, found where only root can put one.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() { Err(missing(name)) } else { Ok(Self(handle)) }
    }

    /// The address of a function. Never null.
    ///
    /// # Errors
    /// It has none of this name.
    pub(crate) fn symbol(&self, name: &CStr) -> io::Result<*mut c_void> {
        // SAFETY: the handle is of a library that is never unloaded; the name is NUL-terminated.
        let address = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        if address.is_null() { Err(missing(name)) } else { Ok(address) }
    }
}

fn missing(name: &CStr) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{} is not there", name.to_string_lossy()))
}
