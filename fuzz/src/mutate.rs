//! Small random changes to valid inputs.

/// xorshift64*: reproducible from its seed, and nothing here needs more.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator; the same seed gives the same numbers.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// 0 to `bound` - 1; 0 for an empty range.
    pub fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { (self.next() >> 16) as usize % bound }
    }
}

/// Words that parsers decide on.
const WORDS: &[&[u8]] = &[
    b"\0",
    b"../",
    b"/",
    b"..",
    b"@sha256:",
    b":",
    b"null",
    b"[",
    b"]",
    b"{",
    b"}",
    b"\"",
    b"-1",
    b"1e999",
    b"99999999999999999999",
    b".wh.",
    b".wh..wh..opq",
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x80",
    b"ustar",
];

/// `input` with one to four changes, at most `limit` bytes long.
#[must_use]
pub fn mutate(random: &mut Random, input: &[u8], limit: usize) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=random.below(4) {
        change(random, &mut bytes);
    }
    bytes.truncate(limit);
    bytes
}

fn change(random: &mut Random, bytes: &mut Vec<u8>) {
    let at = random.below(bytes.len());
    let length = random.below(bytes.len() - at).min(1 << random.below(10));
    match random.below(7) {
        0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
        1 if !bytes.is_empty() => bytes[at] = random.below(256) as u8,
        2 => bytes.truncate(at),
        3 => drop(bytes.drain(at..at + length)),
        4 => {
            let copy = bytes[at..at + length].to_vec();
            let to = random.below(bytes.len());
            bytes.splice(to..to, copy);
        }
        5 => {
            let word = WORDS[random.below(WORDS.len())];
            let end = (at + word.len() * random.below(2)).min(bytes.len());
            bytes.splice(at..end, word.iter().copied());
        }
        _ => bytes
            .splice(at..at, (0..length).map(|_| random.below(256) as u8).collect::<Vec<_>>())
            .for_each(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_inputs() {
        let run = |seed| {
            (0..50)
                .map(|_| 0)
                .fold((Random::new(seed), vec![b"abc".to_vec()]), |(mut r, mut all), _| {
                    let next = mutate(&mut r, &all[all.len() - 1], 100);
                    all.push(next);
                    (r, all)
                })
                .1
        };
        assert_eq!(run(3), run(3));
        assert_ne!(run(3), run(5));
        assert!(run(3).iter().all(|input| input.len() <= 100));
    }

    #[test]
    fn nothing_is_too_short_to_change() {
        let mut random = Random::new(9);
        for length in [0, 1, 2] {
            for _ in 0..1000 {
                let _ = mutate(&mut random, &vec![0; length], 10);
            }
        }
    }
}
