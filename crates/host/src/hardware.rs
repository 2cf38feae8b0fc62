//! What `/dev/kvm` can really do. That it is there says little: in nested clouds it may run the kernel's part
//! of a guest instruction by instruction, and fail over some of them.

use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Instructions of the loop that is timed, in rounds of two.
const ROUNDS: u32 = 5_000;
/// Tries: the best counts, since a busy host interrupts.
const TRIES: usize = 4;
/// Millions of instructions a second below which the hardware does not do it by itself: a processor does
/// thousands, emulation a few.
const LEAST: u64 = 50;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "virtualization")]
pub enum Hardware {
    /// Guests run at the processor's speed.
    Full,
    /// They do not, and why, for people.
    No { why: String },
}

/// Looks. Takes some milliseconds.
#[must_use]
pub fn probe() -> Hardware {
    judge((0..TRIES).map(|_| insula_sys::kvm::run(&code())))
}

/// A loop, then what kernels do: registers of the processor's model and control registers, the translation
/// cache, vectors; then a halt. Nothing that a processor does only when KVM was told so.
fn code() -> Vec<u8> {
    let mut code = vec![0xb9];
    code.extend_from_slice(&ROUNDS.to_le_bytes());
    // dec ecx; jnz.
    code.extend_from_slice(&[0xff, 0xc9, 0x75, 0xfc]);
    // xor eax, eax; cpuid.
    code.extend_from_slice(&[0x31, 0xc0, 0x0f, 0xa2]);
    // mov rax, cr3; mov cr3, rax.
    code.extend_from_slice(&[0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8]);
    // invlpg [0].
    code.extend_from_slice(&[0x0f, 0x01, 0x3c, 0x25, 0, 0, 0, 0]);
    // mov ecx, IA32_KERNEL_GS_BASE; rdmsr; wrmsr.
    code.extend_from_slice(&[0xb9, 0x02, 0x01, 0x00, 0xc0, 0x0f, 0x32, 0x0f, 0x30]);
    // swapgs, twice; pxor xmm0, xmm0.
    code.extend_from_slice(&[0x0f, 0x01, 0xf8, 0x0f, 0x01, 0xf8, 0x66, 0x0f, 0xef, 0xc0]);
    // hlt.
    code.push(0xf4);
    code
}

fn judge(tries: impl Iterator<Item = io::Result<Duration>>) -> Hardware {
    let mut best: Option<Duration> = None;
    for taken in tries {
        match taken {
            Ok(taken) => best = Some(best.map_or(taken, |best| best.min(taken))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Hardware::No { why: "there is no /dev/kvm".to_owned() };
            }
            Err(error) => {
                return Hardware::No { why: format!("/dev/kvm does not run a small guest: {error}") };
            }
        }
    }
    let nanoseconds = best.map_or(u128::MAX, |best| best.as_nanos().max(1));
    let speed = u64::try_from(u128::from(ROUNDS) * 2 * 1000 / nanoseconds).unwrap_or(u64::MAX);
    if speed >= LEAST {
        return Hardware::Full;
    }
    Hardware::No {
        why: format!(
            "/dev/kvm runs a guest's kernel at {speed} million instructions a second: it is emulated"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(milliseconds: &[u64]) -> Hardware {
        judge(milliseconds.iter().map(|taken| Ok(Duration::from_millis(*taken))))
    }

    #[test]
    fn the_best_try_counts() {
        assert_eq!(
            judge([Ok(Duration::from_millis(90)), Ok(Duration::from_micros(80))].into_iter()),
            Hardware::Full
        );
        let Hardware::No { why } = of(&[3, 2, 40]) else { panic!("two milliseconds are slow") };
        assert!(why.contains("at 5 million instructions"), "{why}");
    }

    #[test]
    fn a_device_that_is_missing_or_fails_is_named() {
        let with = |error: io::Error| match judge([Err(error)].into_iter()) {
            Hardware::No { why } => why,
            Hardware::Full => String::new(),
        };
        assert_eq!(with(io::ErrorKind::NotFound.into()), "there is no /dev/kvm");
        assert!(with(io::Error::other("exit 17")).contains("exit 17"));
    }
}
