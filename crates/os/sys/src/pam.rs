//! One question to PAM (pam(3)): is this the password of this user, and may the account be used? Loaded when it is first used, by
//! qmail-checkpw's helper alone, since the modules are foreign code in this process.

use crate::library::Library;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::io;
use std::path::Path;

/// Numbers of `security/_pam_types.h` (Linux-PAM).
pub mod code {
    pub const SUCCESS: i32 = 0;
    pub const PERM_DENIED: i32 = 6;
    pub const AUTH_ERR: i32 = 7;
    pub const USER_UNKNOWN: i32 = 10;
    pub const MAXTRIES: i32 = 11;
    pub const NEW_AUTHTOK_REQD: i32 = 12;
    pub const ACCT_EXPIRED: i32 = 13;
    pub const AUTHTOK_EXPIRED: i32 = 27;
}
const BUF_ERR: c_int = 5;
const CONV_ERR: c_int = 19;
const ITEM_USER: c_int = 2;
const ITEM_TTY: c_int = 3;
const ITEM_RHOST: c_int = 4;
const ITEM_FAIL_DELAY: c_int = 10;
const PROMPT_ECHO_OFF: c_int = 1;
const ERROR_MSG: c_int = 3;
const TEXT_INFO: c_int = 4;
/// PAM_MAX_NUM_MSG
const MESSAGES_MAX: c_int = 32;
/// PAM_SILENT
const SILENT: c_int = 0x8000;

#[repr(C)]
struct Message {
    style: c_int,
    text: *const c_char,
}

#[repr(C)]
struct Response {
    text: *mut c_char,
    code: c_int,
}

#[repr(C)]
struct Conversation {
    talk: extern "C" fn(c_int, *mut *const Message, *mut *mut Response, *mut c_void) -> c_int,
    data: *mut c_void,
}

type Handle = *mut c_void;
type Start = unsafe extern "C" fn(*const c_char, *const c_char, *const Conversation, *mut Handle) -> c_int;
type StartConfdir = unsafe extern "C" fn(*const c_char, *const c_char, *const Conversation, *const c_char, *mut Handle) -> c_int;
type Step = unsafe extern "C" fn(Handle, c_int) -> c_int;
type SetItem = unsafe extern "C" fn(Handle, c_int, *const c_void) -> c_int;
type GetItem = unsafe extern "C" fn(Handle, c_int, *mut *const c_void) -> c_int;

/// What is asked.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    pub service: &'a str,
    pub user: &'a [u8],
    pub password: &'a [u8],
    /// Where the login comes from.
    pub remote: &'a str,
    /// Where service files are; `None`: the system's places.
    pub confdir: Option<&'a Path>,
}

/// What PAM said last: [`code::SUCCESS`] if it accepted, and then whom it took the user for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub code: i32,
    pub user: Vec<u8>,
}

/// Asks the `auth` and then the `account` modules of the service. The modules' own pause after a failure is left out: whoever asks has one.
///
/// # Errors
/// There is no PAM, or a NUL in the question.
pub fn check(question: &Question<'_>) -> io::Result<Answer> {
    let library = Library::open(c"libpam.so.0")?;
    // SAFETY: these are the types of the functions in Linux-PAM since 1.4 (pam_start_confdir(3) and its neighbours).
    let (start, start_confdir, authenticate, acct_mgmt, end, set_item, get_item) = unsafe {
        (
            std::mem::transmute::<*mut c_void, Start>(library.symbol(c"pam_start")?),
            std::mem::transmute::<*mut c_void, StartConfdir>(library.symbol(c"pam_start_confdir")?),
            std::mem::transmute::<*mut c_void, Step>(library.symbol(c"pam_authenticate")?),
            std::mem::transmute::<*mut c_void, Step>(library.symbol(c"pam_acct_mgmt")?),
            std::mem::transmute::<*mut c_void, Step>(library.symbol(c"pam_end")?),
            std::mem::transmute::<*mut c_void, SetItem>(library.symbol(c"pam_set_item")?),
            std::mem::transmute::<*mut c_void, GetItem>(library.symbol(c"pam_get_item")?),
        )
    };
    let (service, user, remote) = (CString::new(question.service)?, CString::new(question.user)?, CString::new(question.remote)?);
    let password = CString::new(question.password)?;
    let confdir = question.confdir.map(|dir| CString::new(dir.as_os_str().as_encoded_bytes())).transpose()?;
    let conversation = Conversation { talk, data: password.as_ptr().cast_mut().cast() };
    let mut handle: Handle = std::ptr::null_mut();
    // SAFETY: all strings and the conversation outlive the handle, which pam_end below ends; out of `handle` comes a handle or an error.
    let mut code = unsafe {
        match &confdir {
            Some(dir) => start_confdir(service.as_ptr(), user.as_ptr(), &raw const conversation, dir.as_ptr(), &raw mut handle),
            None => start(service.as_ptr(), user.as_ptr(), &raw const conversation, &raw mut handle),
        }
    };
    if code != code::SUCCESS {
        return Ok(Answer { code, user: Vec::new() });
    }
    // SAFETY: the handle is good until pam_end; PAM copies the strings, and keeps the function.
    unsafe {
        set_item(handle, ITEM_RHOST, remote.as_ptr().cast());
        set_item(handle, ITEM_TTY, c"qmail".as_ptr().cast());
        set_item(handle, ITEM_FAIL_DELAY, no_delay as extern "C" fn(c_int, c_uint, *mut c_void) as *const c_void);
        code = authenticate(handle, SILENT);
        if code == code::SUCCESS {
            code = acct_mgmt(handle, SILENT);
        }
    }
    let mut name: *const c_void = std::ptr::null();
    // SAFETY: as above; PAM_USER is a NUL-terminated string that PAM owns until pam_end, or null.
    let user = unsafe {
        let got = get_item(handle, ITEM_USER, &raw mut name);
        let is_there = got == code::SUCCESS && !name.is_null();
        let user = if is_there { CStr::from_ptr(name.cast()).to_bytes().to_vec() } else { Vec::new() };
        end(handle, code);
        user
    };
    Ok(Answer { code, user })
}

extern "C" fn no_delay(_: c_int, _: c_uint, _: *mut c_void) {}

/// The conversation (pam_conv(3)): the password to every prompt that hides what is typed, nothing to messages, and an error to any other
/// question, since nobody is there to answer it.
extern "C" fn talk(count: c_int, messages: *mut *const Message, out: *mut *mut Response, data: *mut c_void) -> c_int {
    let Some(count) = usize::try_from(count).ok().filter(|_| count > 0 && count <= MESSAGES_MAX) else { return CONV_ERR };
    // SAFETY: PAM gives `count` pointers to messages (Linux-PAM's form), takes an array of `count` responses from malloc(3) and frees it
    // and the strings in it; `data` is the password of `check`, which is alive.
    unsafe {
        let responses = libc::calloc(count, std::mem::size_of::<Response>()).cast::<Response>();
        if responses.is_null() {
            return BUF_ERR;
        }
        for at in 0..count {
            let text = match (**messages.add(at)).style {
                PROMPT_ECHO_OFF => libc::strdup(data.cast()),
                ERROR_MSG | TEXT_INFO => continue,
                _ => std::ptr::null_mut(),
            };
            if text.is_null() {
                (0..at).for_each(|before| libc::free((*responses.add(before)).text.cast()));
                libc::free(responses.cast());
                return CONV_ERR;
            }
            (*responses.add(at)).text = text;
        }
        *out = responses;
    }
    code::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Service files of the test's own, with modules of every Debian system.
    #[test]
    fn modules_decide_and_the_password_reaches_them() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        std::fs::write(&program, "#!/bin/sh\n[ \"$(tr -d '\\0')\" = 'se cret' ] && [ \"$PAM_RHOST\" = 192.0.2.1 ]\n").unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let exec =
            format!("auth required pam_exec.so expose_authtok quiet {}\naccount required pam_permit.so\n", program.display());
        for (name, text) in [
            ("permit", "auth required pam_permit.so\naccount required pam_permit.so\n"),
            ("deny", "auth required pam_deny.so\naccount required pam_permit.so\n"),
            ("expired", "auth required pam_permit.so\naccount required pam_deny.so\n"),
            ("none", "auth required pam_nothing.so\naccount required pam_permit.so\n"),
            ("exec", exec.as_str()),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let ask = |service, password| {
            let question = Question { service, user: b"ann", password, remote: "192.0.2.1", confdir: Some(dir.path()) };
            check(&question).unwrap()
        };
        assert_eq!(ask("permit", b"x"), Answer { code: code::SUCCESS, user: b"ann".to_vec() });
        assert_eq!(ask("deny", b"x").code, code::AUTH_ERR);
        assert_ne!(ask("expired", b"x").code, code::SUCCESS);
        assert_ne!(ask("none", b"x").code, code::SUCCESS);
        assert_ne!(ask("missing", b"x").code, code::SUCCESS);
        assert_eq!(ask("exec", b"se cret").code, code::SUCCESS);
        assert_ne!(ask("exec", b"secret").code, code::SUCCESS);
        let nul = Question { service: "permit", user: b"a\0b", password: b"x", remote: "", confdir: Some(dir.path()) };
        assert!(check(&nul).is_err());
    }
}
