//! What the C library's allocator does with large pieces.

/// A piece from this size on is a mapping of its own, which goes back to the system when it is dropped.
#[cfg(target_env = "gnu")]
const LARGE_BYTES: libc::c_int = 512 * 1024;

/// Large pieces go back to the system as soon as they are dropped. Without this glibc learns from the first such drop to keep them,
/// for each thread anew: right for a program that needs them all the time, not for one that rests between logins.
///
/// Call it before threads start. Elsewhere than with glibc nothing needs to be said.
pub fn give_back_large() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes two numbers and changes only the allocator's own settings.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In pages of 4 KiB; larger ones only make the test milder.
    fn resident_bytes() -> usize {
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }

    #[test]
    fn large_pieces_of_a_thread_do_not_stay() {
        const LEN: usize = 24 << 20;
        give_back_large();
        let before = resident_bytes();
        let use_and_drop = || {
            for _ in 0..3 {
                assert_eq!(std::hint::black_box(vec![1u8; LEN]).len(), LEN);
            }
            resident_bytes()
        };
        let after = std::thread::spawn(use_and_drop).join().unwrap();
        assert!(after < before + LEN / 2, "{before} {after}");
    }
}
