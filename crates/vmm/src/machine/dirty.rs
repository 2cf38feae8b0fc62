//! How much of its memory a guest writes: the dirty log, for as long as somebody wants to know.
//!
//! ```text
//! question   number | milliseconds, 0 for no more                          u32 each, little endian
//! answer     number | errno of what failed, or 0 | pages | microseconds    u32, u32, u64, u64
//! ```
//!
//! Both are messages of a socket. KVM's log has what processors and itself write, the [`Marks`] of the memory what
//! devices of this process do; a server of shared folders writes unseen. While the log is on, KVM maps the guest's
//! memory in pages of 4 KiB and stops at the first write to each: so it is on for the time that was asked for alone,
//! and off before that when the asker goes away or the machine is paused.
//!
//! [`Marks`]: crate::marks::Marks

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::error::{Error, Result};
use crate::memory::Memory;

const QUESTION: usize = 8;
const ANSWER: usize = 24;
/// Milliseconds that may be asked for.
const PERIODS: std::ops::RangeInclusive<u32> = 100..=60_000;

/// Pieces of a machine's memory as KVM has them, each in the slot of its place.
pub(super) fn areas(memory: &Memory, flags: u32) -> impl Iterator<Item = kvm_userspace_memory_region> {
    memory.ram().iter().enumerate().map(move |(slot, region)| kvm_userspace_memory_region {
        slot: slot as u32,
        guest_phys_addr: region.start_addr().0,
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
        flags,
    })
}

/// The log of one machine; off when it goes.
#[derive(Debug)]
pub(super) struct DirtyLog {
    vm: Arc<VmFd>,
    memory: Arc<Memory>,
    on: bool,
}

impl DirtyLog {
    pub(super) fn new(vm: Arc<VmFd>, memory: Arc<Memory>) -> Self {
        Self { vm, memory, on: false }
    }

    /// Logs from now on; what was logged before is forgotten.
    pub(super) fn begin(&mut self) -> Result<()> {
        self.end()?;
        self.on = true;
        self.memory.ram().iter().for_each(|region| marks(region).begin());
        self.set(KVM_MEM_LOG_DIRTY_PAGES).inspect_err(|_| {
            // The first error is the one to report; the next begin tries again.
            let _ = self.end();
        })
    }

    /// A bit for each page that was written since the begin, by pieces of the memory.
    pub(super) fn written(&self) -> Result<Vec<Vec<u64>>> {
        let pieces = self.memory.ram().iter().enumerate().map(|(slot, region)| {
            let length = region.len() as usize;
            let log = self.vm.get_dirty_log(slot as u32, length);
            let mut log = log.map_err(|error| Error::kvm("KVM_GET_DIRTY_LOG", "guest memory", error))?;
            log.iter_mut().zip(marks(region).words()).for_each(|(word, marked)| *word |= marked);
            Ok(log)
        });
        pieces.collect()
    }

    /// Logs no more. Large pages are mapped again when they are missed.
    pub(super) fn end(&mut self) -> Result<()> {
        if !self.on {
            return Ok(());
        }
        self.memory.ram().iter().for_each(|region| marks(region).end());
        self.set(0)?;
        self.on = false;
        Ok(())
    }

    fn set(&self, flags: u32) -> Result<()> {
        areas(&self.memory, flags).try_for_each(|area| {
            // SAFETY: where the memory is stays as it was when the machine was made.
            unsafe { self.vm.set_user_memory_region(area) }
                .map_err(|error| Error::kvm("KVM_SET_USER_MEMORY_REGION", "the dirty log", error))
        })
    }
}

impl Drop for DirtyLog {
    fn drop(&mut self) {
        // The machine goes as well, as a rule.
        let _ = self.end();
    }
}

fn marks(region: &vm_memory::GuestRegionMmap<crate::marks::Marks>) -> &crate::marks::Marks {
    // That of the mapping: the region's own would be a slice.
    vm_memory::MmapRegion::bitmap(region)
}

/// A time in which pages are counted.
#[derive(Debug)]
struct Window {
    number: u32,
    began: Instant,
    period: Duration,
}

/// Answers who wants to know.
#[derive(Debug)]
pub(super) struct Meter {
    control: OwnedFd,
    timer: OwnedFd,
    pub(super) log: DirtyLog,
    window: Option<Window>,
}

impl Meter {
    pub(super) fn new(control: OwnedFd, log: DirtyLog) -> Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)
            .map_err(|error| Error::call("timerfd_create", "the dirty log", error))?;
        Ok(Self { control, timer, log, window: None })
    }

    /// What it is asked by.
    pub(super) fn control(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    /// Has something to read when a time may be over.
    pub(super) fn timer(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// Takes what was asked meanwhile. Who asks again wants to know no more what was asked before.
    pub(super) fn hear(&mut self) {
        let mut question = [0; QUESTION];
        loop {
            match rustix::net::recv(&self.control, &mut question, RecvFlags::DONTWAIT) {
                Ok((QUESTION, _)) => self.begin(word(&question[..4]), word(&question[4..])),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // Not to be understood.
                Ok((1.., _)) => self.interrupt(),
                // Nobody is there any more.
                Ok(_) | Err(_) => return self.interrupt(),
            }
        }
    }

    fn begin(&mut self, number: u32, milliseconds: u32) {
        self.interrupt();
        if milliseconds == 0 {
            return;
        }
        let period = Duration::from_millis(milliseconds.into());
        let begun =
            if PERIODS.contains(&milliseconds) { self.open(number, period) } else { Err(Errno::INVAL) };
        if let Err(error) = begun {
            self.interrupt();
            self.answer(number, error.raw_os_error(), 0, Duration::ZERO);
        }
    }

    fn open(&mut self, number: u32, period: Duration) -> Result<(), Errno> {
        self.log.begin().map_err(|error| errno(&error))?;
        let window = Window { number, began: Instant::now(), period };
        let when = Timespec { tv_sec: period.as_secs() as i64, tv_nsec: period.subsec_nanos().into() };
        let timer = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: when };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &timer)?;
        self.window = Some(window);
        Ok(())
    }

    /// Counts and answers if the time is over, and not that of an earlier question.
    pub(super) fn look(&mut self) {
        let Some(window) = self.window.take_if(|window| window.began.elapsed() >= window.period) else {
            return;
        };
        let (written, took) = (self.log.written(), window.began.elapsed());
        // Whatever was read: nobody pays for small pages any more.
        let ended = self.log.end();
        match written.and_then(|written| ended.map(|()| written)) {
            Ok(written) => {
                let pages = written.iter().flatten().map(|word| u64::from(word.count_ones())).sum();
                self.answer(window.number, 0, pages, took);
            }
            Err(error) => self.answer(window.number, errno(&error).raw_os_error(), 0, took),
        }
    }

    /// Stops before the time is over; who has asked hears nothing.
    pub(super) fn interrupt(&mut self) {
        self.window = None;
        if let Err(error) = self.log.end() {
            tracing::warn!(error = insula_base::chain(&error), "the dirty log stays on");
        }
    }

    fn answer(&self, number: u32, error: i32, pages: u64, took: Duration) {
        let mut answer = [0; ANSWER];
        answer[..4].copy_from_slice(&number.to_le_bytes());
        answer[4..8].copy_from_slice(&error.to_le_bytes());
        answer[8..16].copy_from_slice(&pages.to_le_bytes());
        answer[16..].copy_from_slice(&u64::try_from(took.as_micros()).unwrap_or(u64::MAX).to_le_bytes());
        // Who has gone, or does not read what was answered before, hears nothing.
        let _ = rustix::net::send(&self.control, &answer, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }
}

fn word(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_le_bytes)
}

fn errno(error: &Error) -> Errno {
    match error {
        Error::Call { source, .. } => source.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error),
        _ => Errno::IO,
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use vm_memory::{Bytes, GuestAddress};

    use super::super::tests::{CODE, SHAPE, Screen, kvm, machine};
    use super::*;
    use crate::Running;
    use crate::jail::{Filter, Role};
    use crate::vcpu::Entry;

    /// Where the guest counts its rounds, where it finds what it is to write, and two places for that.
    const ROUNDS: u64 = 0x9_e000;
    const PLACE: u64 = 0x9_f000;
    const PLACES: [u64; 2] = [0xa_0000, 0xb_0000];
    const PAGES: u64 = 3;
    /// Its page tables.
    const TABLES: std::ops::Range<u64> = crate::layout::PML4..crate::layout::PML4 + 0x3000;

    /// `mov rbx, [PLACE]; mov byte [rbx], 1; mov byte [rbx + 0x1000], 1; mov byte [rbx + 0x2000], 1;
    /// inc qword [ROUNDS]; jmp` back to it all.
    fn code() -> Vec<u8> {
        let mut code = vec![0x48, 0x8b, 0x1c, 0x25, 0x00, 0xf0, 0x09, 0x00];
        for page in 0..PAGES as u32 {
            code.extend([&[0xc6, 0x83][..], &(page << 12).to_le_bytes(), &[1]].concat());
        }
        code.extend([0x48, 0xff, 0x04, 0x25, 0x00, 0xe0, 0x09, 0x00, 0xeb]);
        code.push((code.len() as i8 + 1).wrapping_neg() as u8);
        code
    }

    fn question(number: u32, milliseconds: u32) -> Vec<u8> {
        [number.to_le_bytes(), milliseconds.to_le_bytes()].concat()
    }

    /// A guest that writes to the first place, and the asker's end.
    fn writer() -> (Running, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let mut machine = machine(&code(), &Screen::default());
        machine.memory().ram().write_obj(PLACES[0], GuestAddress(PLACE)).unwrap();
        machine.tell_dirty_rate(theirs);
        let running = machine.begin(Entry::Long(CODE)).unwrap();
        running.resume().unwrap();
        rounds(&running);
        (running, ours)
    }

    /// Waits until the guest has written everything once more.
    fn rounds(running: &Running) {
        let now = || running.ram().read_obj::<u64>(GuestAddress(ROUNDS)).unwrap();
        let before = now();
        while now() < before + 2 {
            std::thread::yield_now();
        }
    }

    fn ask(running: &mut Running, asker: &OwnedFd, question: &[u8]) {
        rustix::net::send(asker, question, SendFlags::empty()).unwrap();
        assert_eq!(running.turn().unwrap(), None);
    }

    /// Serves the machine until there is an answer: number, error, pages, microseconds.
    fn answer(running: &mut Running, asker: &OwnedFd) -> (u32, u32, u64, u64) {
        let mut answer = [0; ANSWER];
        while rustix::net::recv(asker, &mut answer, RecvFlags::DONTWAIT).is_err() {
            assert_eq!(running.turn().unwrap(), None);
        }
        let long = |at: usize| u64::from_le_bytes(answer[at..at + 8].try_into().unwrap());
        (word(&answer[..4]), word(&answer[4..8]), long(8), long(16))
    }

    /// Whether KVM logs at all.
    fn on(running: &Running) -> bool {
        running.machine.vm.get_dirty_log(0, SHAPE.memory as usize).is_ok()
    }

    fn written(log: &DirtyLog) -> Vec<u64> {
        let words = log.written().unwrap().concat();
        let set = |page: &u64| words[*page as usize / 64] & 1 << (page % 64) != 0;
        let pages = (0..words.len() as u64 * 64).filter(set).map(|page| page << 12);
        // In its page tables a processor notes what it has touched, where KVM does not keep tables of its own.
        pages.filter(|page| !TABLES.contains(page)).collect()
    }

    #[test]
    fn the_log_has_what_was_written_and_nothing_else() {
        if !kvm() {
            return;
        }
        let (running, _asker) = writer();
        let mut log = DirtyLog::new(running.machine.vm.clone(), running.machine.memory.clone());
        for place in [0, 1, 0] {
            let first = PLACES[place];
            running.ram().write_obj(first, GuestAddress(PLACE)).unwrap();
            rounds(&running);
            assert!(!on(&running));
            log.begin().unwrap();
            rounds(&running);
            // By a device, in a page that the guest does not touch.
            running.ram().write_slice(&[7; 2], GuestAddress(0xc_0fff)).unwrap();
            let mut expected = vec![ROUNDS];
            expected.extend((0..PAGES).map(|page| first + (page << 12)));
            expected.extend([0xc_0000, 0xc_1000]);
            assert_eq!(written(&log), expected, "{place}");
            log.end().unwrap();
        }
        assert!(!on(&running));
        log.begin().unwrap();
        drop(log);
        assert!(!on(&running), "it goes with who has begun it");
    }

    #[test]
    fn who_asks_is_told_behind_filters() {
        if !kvm() {
            return;
        }
        // Whoever makes a forbidden call ends this process.
        let asked = std::thread::spawn(|| {
            let (mut running, asker) = writer();
            crate::jail::give_files_up().unwrap();
            Filter::of(Role::Devices).unwrap().install().unwrap();
            for number in [7, 8] {
                ask(&mut running, &asker, &question(number, 100));
                assert!(on(&running));
                rounds(&running);
                let (said, error, pages, microseconds) = answer(&mut running, &asker);
                assert_eq!((said, error), (number, 0));
                let tables = (TABLES.end - TABLES.start) >> 12;
                assert!((PAGES + 1..=PAGES + 1 + tables).contains(&pages), "{pages}");
                assert!(microseconds >= 100_000 && !on(&running), "{microseconds}");
            }
        });
        asked.join().unwrap();
    }

    #[test]
    fn it_is_off_when_nobody_wants_to_know_any_more() {
        if !kvm() {
            return;
        }
        let (mut running, asker) = writer();
        for period in [1, 99, 60_001, u32::MAX] {
            ask(&mut running, &asker, &question(1, period));
            assert!(!on(&running), "{period}");
            assert_eq!(answer(&mut running, &asker).1, Errno::INVAL.raw_os_error() as u32);
        }
        // Another question, no question, no word of the protocol, a pause, nobody.
        ask(&mut running, &asker, &question(2, 60_000));
        ask(&mut running, &asker, &question(3, 100));
        rounds(&running);
        assert_eq!(answer(&mut running, &asker).0, 3, "the former is not answered");
        for no_more in [&question(4, 0)[..], b"what", b""] {
            ask(&mut running, &asker, &question(4, 60_000));
            assert!(on(&running));
            ask(&mut running, &asker, no_more);
            assert!(!on(&running), "{no_more:?}");
        }
        ask(&mut running, &asker, &question(5, 60_000));
        running.pause().unwrap();
        assert!(!on(&running));
        ask(&mut running, &asker, &question(6, 60_000));
        assert!(on(&running));
        drop(asker);
        assert_eq!(running.turn().unwrap(), None);
        assert!(!on(&running));
    }
}
