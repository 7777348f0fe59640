//! Sends garbage to a SOCK_SEQPACKET socket: `garbage DIRECTORY SOCKET COUNT`. Tests run it under the ids of those who may call.
//!
//! Every datagram goes over a connection of its own, some with more behind them. Whether the other side takes it, answers or closes
//! is nothing to us; the exit code is 0 if at least one connection came about, else 1.

use std::os::fd::AsFd;
use std::process::ExitCode;
use sys::Seqpacket;

/// Beyond the longest datagram that is allowed.
const LEN_MAX: u64 = 40_000;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(directory), Some(socket), Some(count)) = (arguments.next(), arguments.next(), arguments.next()) else {
        return ExitCode::from(2);
    };
    let (Ok(directory), Ok(count)) = (std::fs::File::open(directory), count.parse::<u64>()) else { return ExitCode::from(2) };
    let (mut dice, mut connected) = (Dice(0x9e37_79b9_7f4a_7c15), false);
    for number in 0..count {
        let Ok(connection) = Seqpacket::connect(directory.as_fd(), &socket) else { continue };
        connected = true;
        for _ in 0..=dice.below(3) {
            let _ = connection.send(&datagram(number, &mut dice));
        }
    }
    if connected { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Mostly with the right version and a kind that exists, so that decoders get to see more than the first byte.
fn datagram(number: u64, dice: &mut Dice) -> Vec<u8> {
    let len = if number.is_multiple_of(16) { dice.below(LEN_MAX) } else { dice.below(64) };
    let mut bytes: Vec<u8> = (0..=len).map(|_| dice.byte()).collect();
    if dice.below(8) > 0 {
        bytes.splice(..1, [1, u8::try_from(dice.below(12)).unwrap_or(0)]);
    }
    // Lengths are four bytes in big or little endian: small and huge ones.
    for _ in 0..dice.below(4) {
        let at = usize::try_from(dice.below(bytes.len() as u64)).unwrap_or(0);
        let length = [0, 1, 5, 255, u64::from(u32::MAX)].get(usize::try_from(dice.below(5)).unwrap_or(0)).copied().unwrap_or(0);
        let length = u32::try_from(length).unwrap_or(0);
        let length = if dice.below(2) == 0 { length.to_be_bytes() } else { length.to_le_bytes() };
        bytes.iter_mut().skip(at).zip(length).for_each(|(byte, new)| *byte = new);
    }
    bytes
}

/// The same numbers each time (xorshift64, Marsaglia 2003).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }

    fn byte(&mut self) -> u8 {
        self.roll().to_le_bytes()[3]
    }
}
