//! qmail-getpw: which system user a local part belongs to, on getpw.sock. The asker checks uid and home itself.

use crate::field::Bytes;

messages! {
    pub enum Request {
        1 => Who { id: u64, local: Bytes },
    }
}

messages! {
    pub enum Answer {
        /// As the classic program prints it: the longest prefix of the local part that is a user, or alias.
        1 => User { id: u64, user: Bytes, uid: u32, gid: u32, home: Bytes, dash: Bytes, ext: Bytes },
        /// Not even the alias user is there.
        2 => NoUser { id: u64 },
        /// NSS cannot say now.
        3 => Temporary { id: u64, text: Bytes },
    }
}
