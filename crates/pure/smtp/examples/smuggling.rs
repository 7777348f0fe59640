//! The smuggling rule over all strings up to a length (8 if none is given), on all processors: `cargo run --release -p smtp --example
//! smuggling -- 8`. A second number keeps to cuts that are so near to the string (all cuts of length 8: an hour on two cores; 4: ten
//! minutes). The tests run it over shorter strings. Prints what it did; ends with a panic that shows the stream if the rule is broken.

use smtp::server::fuzz;
use std::sync::atomic::{AtomicUsize, Ordering};

fn main() {
    let argument = |n| std::env::args().nth(n).and_then(|number| number.parse::<usize>().ok());
    let len = argument(1).and_then(|len| u32::try_from(len).ok()).unwrap_or(8);
    let near = argument(2).unwrap_or(usize::MAX);
    let started = std::time::Instant::now();
    let (next, sessions) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || loop {
        let n = next.fetch_add(1, Ordering::Relaxed);
        if n >= fuzz::smuggling_count(len) {
            return;
        }
        let string = fuzz::smuggling_string(n);
        let ran = fuzz::smuggling_body(&string) + fuzz::smuggling_inserted(&string, Some(near));
        sessions.fetch_add(ran, Ordering::Relaxed);
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    println!("{} strings, {} sessions, {:?}", fuzz::smuggling_count(len), sessions.into_inner(), started.elapsed());
}
