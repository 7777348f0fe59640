//! Random bytes from the kernel.

/// 16 bytes that nobody can guess.
///
/// # Errors
/// What getrandom(2) says; temporary.
pub fn bytes16() -> std::io::Result<[u8; 16]> {
    let mut out = [0u8; 16];
    let mut rest: &mut [u8] = &mut out;
    while !rest.is_empty() {
        let filled = rustix::rand::getrandom(&mut *rest, rustix::rand::GetRandomFlags::empty())?;
        rest = rest.get_mut(filled..).unwrap_or_default();
    }
    Ok(out)
}
