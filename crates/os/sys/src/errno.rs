//! The texts of errors of the system, as they stand in reports, bounces and on terminals.

use rustix::io::Errno;
use std::io;

/// What went wrong in the words that classic reports use for it, for errors that deliveries and small programs come across.
/// They stand in logs and in bounces, where programs look for them.
const CLASSIC_TEXTS: [(Errno, &str); 23] = [
    (Errno::NOENT, "file does not exist"),
    (Errno::ACCESS, "access denied"),
    (Errno::PERM, "permission denied"),
    (Errno::NOTDIR, "not a directory"),
    (Errno::ISDIR, "is a directory"),
    (Errno::INVAL, "invalid argument"),
    (Errno::FBIG, "file too big"),
    (Errno::NOSPC, "out of disk space"),
    (Errno::DQUOT, "disk quota exceeded"),
    (Errno::ROFS, "read-only file system"),
    (Errno::IO, "input/output error"),
    (Errno::LOOP, "symbolic link loop"),
    (Errno::NAMETOOLONG, "file name too long"),
    (Errno::MFILE, "process cannot open more files"),
    (Errno::EXIST, "file already exists"),
    (Errno::SPIPE, "unseekable descriptor"),
    (Errno::BADF, "file descriptor not open"),
    (Errno::NOTEMPTY, "directory not empty"),
    (Errno::TXTBSY, "text busy"),
    (Errno::NOEXEC, "exec format error"),
    (Errno::TIMEDOUT, "timed out"),
    (Errno::CONNREFUSED, "connection refused"),
    (Errno::NOTSOCK, "not a socket"),
];

/// The text for an error of the system: the classic one, else that of strerror(3) without the number that Rust adds.
#[must_use]
pub fn text(error: &io::Error) -> String {
    let is_this = |(errno, _): &&(Errno, &str)| error.raw_os_error() == Some(errno.raw_os_error());
    if let Some((_, text)) = CLASSIC_TEXTS.iter().find(is_this) {
        return (*text).to_owned();
    }
    // A file that ends too early counts as one that cannot be read.
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return "input/output error".to_owned();
    }
    let text = error.to_string();
    match text.find(" (os error ") {
        Some(at) => text.get(..at).unwrap_or(&text).to_owned(),
        None => text,
    }
}
