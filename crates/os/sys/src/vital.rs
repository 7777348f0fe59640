//! Threads without which a process is of no use: if one of them panics the process ends, and is started again.
//!
//! A process that lost one goes on and never answers some of what it is asked; nobody would notice. What was acknowledged is on the disk.

/// Held by such a thread: the process is aborted if the thread panics. Which thread it was, and where, has been said by then.
#[derive(Debug)]
pub struct Vital;

impl Drop for Vital {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// What a vital thread does.
pub fn vital<T>(run: impl FnOnce() -> T) -> T {
    let _thread = Vital;
    run()
}
