//! Guests of a few bytes: they need nothing of KVM that a nested or emulating host lacks.

use std::io::Write;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::jail::Role;
use crate::vcpu::Entry;
use crate::virtio::{Kind, Progress, Queues};

pub(super) const CODE: u64 = 0x8000;
pub(super) const SHAPE: Shape = Shape { cpus: 1, memory: 1 << 20 };

/// Switches the machine off: `mov dx, 0x600; mov al, 0x34; out dx, al`, as 32-bit code.
const OFF: [u8; 7] = [0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee];

/// A console that can be read while the machine has it.
#[derive(Clone, Default)]
pub(super) struct Screen(Arc<Mutex<Vec<u8>>>);

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Screen {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

/// Whether there is a KVM to test with; what must be there and is not fails.
pub(super) fn kvm() -> bool {
    if Host::open().is_ok() {
        return true;
    }
    let required = std::env::var("INSULA_TEST_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|what| what == "kvm"), "/dev/kvm cannot be opened");
    eprintln!("skipped: needs /dev/kvm");
    false
}

pub(super) fn machine(code: &[u8], screen: &Screen) -> Machine {
    let machine = Machine::new(Host::open().unwrap(), SHAPE, Box::new(screen.clone())).unwrap();
    machine.memory().ram().write_slice(code, GuestAddress(CODE)).unwrap();
    machine
}

fn run(machine: Machine, entry: Entry) -> Stop {
    let mut running = machine.begin(entry).unwrap();
    running.resume().unwrap();
    running.run().unwrap()
}

#[test]
fn a_guest_of_each_mode_prints_and_switches_off() {
    if !kvm() {
        return;
    }
    // mov dx, 0x3f8; mov al, '6'; out dx, al; mov dx, 0x600; mov al, 0x34; out dx, al
    let real = [0xba, 0xf8, 0x03, 0xb0, b'r', 0xee, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee];
    // The same with an operand size prefix before each 16-bit number.
    let mut wide = vec![0x66, 0xba, 0xf8, 0x03, 0xb0, b'w', 0xee];
    wide.extend(OFF);
    for (code, entry, letter) in [
        (&real[..], Entry::Real(CODE as u16), "r"),
        (&wide, Entry::Pvh(CODE as u32), "w"),
        (&wide, Entry::Long(CODE), "w"),
    ] {
        let screen = Screen::default();
        assert_eq!(run(machine(code, &screen), entry), Stop::PowerOff, "{entry:?}");
        assert_eq!(screen.text(), letter, "{entry:?}");
    }
}

#[test]
fn a_guest_reads_a_file_in_its_memory_and_writes_nothing_to_it() {
    if !kvm() {
        return;
    }
    // Nothing else is where the page table for it goes.
    const TABLE: u64 = 0x2_0000;
    const PRESENT: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let at = 4u64 << 30;
    // mov rbx, at; mov al, [rbx]; mov dx, 0x3f8; out dx, al; mov byte [rbx], 'X'; mov al, [rbx]; out dx, al
    let mut code = [&[0x48, 0xbb][..], &at.to_le_bytes()].concat();
    code.extend([0x8a, 0x03, 0x66, 0xba, 0xf8, 0x03, 0xee, 0xc6, 0x03, b'X', 0x8a, 0x03, 0xee]);
    code.extend(OFF);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"image").unwrap();
    file.set_len(2 << 20).unwrap();
    let screen = Screen::default();
    let mut machine = machine(&code, &screen);
    machine.attach_image(file.try_clone().unwrap()).unwrap();
    assert!(machine.attach_image(file.try_clone().unwrap()).is_err(), "one at most");
    let mut running = machine.begin(Entry::Long(CODE)).unwrap();
    let ram = running.ram();
    ram.write_obj(TABLE | PRESENT, GuestAddress(crate::layout::PDPT + 4 * 8)).unwrap();
    ram.write_obj(at | LARGE | PRESENT, GuestAddress(TABLE)).unwrap();
    running.resume().unwrap();
    assert_eq!(running.run().unwrap(), Stop::PowerOff);
    assert_eq!(screen.text(), "ii");
    let mut first = [0];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut first, 0).unwrap();
    assert_eq!(first, *b"i");
}

#[test]
fn a_guest_that_falls_over_is_reset() {
    if !kvm() {
        return;
    }
    // ud2, with no handler for the exception.
    assert_eq!(run(machine(&[0x0f, 0x0b], &Screen::default()), Entry::Long(CODE)), Stop::Reset);
    // mov al, 0xfe; out 0x64, al
    let keyboard = [0xb0, 0xfe, 0xe6, 0x64];
    assert_eq!(run(machine(&keyboard, &Screen::default()), Entry::Long(CODE)), Stop::Reset);
}

#[test]
fn a_guest_runs_behind_filters() {
    if !kvm() {
        return;
    }
    // Whoever makes a forbidden call ends this process.
    std::thread::spawn(|| {
        let mut code = vec![0x66, 0xba, 0xf8, 0x03, 0xb0, b'w', 0xee];
        code.extend(OFF);
        let screen = Screen::default();
        let mut machine = machine(&code, &screen);
        crate::jail::give_files_up().unwrap();
        machine.confine(Filter::of(Role::Processor).unwrap());
        let mut running = machine.begin(Entry::Pvh(CODE as u32)).unwrap();
        Filter::of(Role::Devices).unwrap().install().unwrap();
        running.resume().unwrap();
        assert_eq!(running.run().unwrap(), Stop::PowerOff);
        drop(running);
        assert_eq!(screen.text(), "w");
    })
    .join()
    .unwrap();
}

#[test]
fn what_nobody_answers_reads_as_ones() {
    if !kvm() {
        return;
    }
    // in al, 0x99; mov dx, 0x3f8; inc al; add al, 'a'; out dx, al
    let mut code = vec![0xe4, 0x99, 0x66, 0xba, 0xf8, 0x03, 0xfe, 0xc0, 0x04, b'a', 0xee];
    code.extend(OFF);
    let screen = Screen::default();
    assert_eq!(run(machine(&code, &screen), Entry::Pvh(CODE as u32)), Stop::PowerOff);
    assert_eq!(screen.text(), "a");
}

/// `inc qword [0x9f000]; jmp` back to it: counts for ever.
const COUNT: [u8; 10] = [0x48, 0xff, 0x04, 0x25, 0x00, 0xf0, 0x09, 0x00, 0xeb, 0xf6];
const COUNTER: GuestAddress = GuestAddress(0x9_f000);

fn counter(running: &Running) -> u64 {
    running.machine.memory().ram().read_obj(COUNTER).unwrap()
}

/// Waits until the guest has counted further than `value`.
fn counted_beyond(running: &Running, value: u64) {
    while counter(running) <= value {
        std::thread::yield_now();
    }
}

#[test]
fn a_guest_that_never_leaves_is_paused_saved_and_goes_on_elsewhere() {
    if !kvm() {
        return;
    }
    let running = machine(&COUNT, &Screen::default()).begin(Entry::Long(CODE)).unwrap();
    assert_eq!(counter(&running), 0, "it is paused at first");
    running.resume().unwrap();
    counted_beyond(&running, 1000);
    running.pause().unwrap();
    let stopped_at = counter(&running);
    let [mut state, memory] = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
    running.save(&mut state, &memory).unwrap();
    assert_eq!(counter(&running), stopped_at, "it stands still while it is saved");

    let restore = || {
        use std::io::Seek;
        let mut state = state.try_clone().unwrap();
        state.rewind().unwrap();
        let (machine, snapshot) = Machine::of_snapshot(
            Host::open().unwrap(),
            &mut state,
            memory.try_clone().unwrap(),
            Box::new(std::io::sink()),
        )
        .unwrap();
        assert_eq!(snapshot.shape(), SHAPE);
        machine.restore(&snapshot).unwrap()
    };
    let (first, second) = (restore(), restore());
    first.resume().unwrap();
    counted_beyond(&first, stopped_at + 1000);
    assert_eq!(counter(&second), stopped_at, "what one writes the other does not see");
    assert_eq!(counter(&running), stopped_at);
    second.resume().unwrap();
    counted_beyond(&second, stopped_at);
    running.resume().unwrap();
    counted_beyond(&running, stopped_at);
}

#[test]
fn a_machine_is_saved_behind_filters_and_its_memory_is_somebody_elses_file() {
    if !kvm() {
        return;
    }
    let file = tempfile::tempfile().unwrap();
    let kept = file.try_clone().unwrap();
    // Whoever makes a forbidden call ends this process.
    let saved = std::thread::spawn(move || {
        let memory = Memory::in_file(file, SHAPE.memory).unwrap();
        memory.ram().write_slice(&COUNT, GuestAddress(CODE)).unwrap();
        let host = Host::open().unwrap();
        let mut machine = Machine::with_memory(host, SHAPE.cpus, memory, Box::new(std::io::sink())).unwrap();
        crate::jail::give_files_up().unwrap();
        machine.confine(Filter::of(Role::SavedProcessor).unwrap());
        let running = machine.begin(Entry::Long(CODE)).unwrap();
        Filter::of(Role::SavedDevices).unwrap().install().unwrap();
        running.resume().unwrap();
        counted_beyond(&running, 1000);
        running.pause().unwrap();
        running.state().unwrap()
    });
    let saved = saved.join().unwrap();
    let mut state = tempfile::tempfile().unwrap();
    state.write_all(&saved).unwrap();
    std::io::Seek::rewind(&mut state).unwrap();
    let host = Host::open().unwrap();
    let (machine, snapshot) =
        Machine::of_snapshot(host, &mut state, kept, Box::new(std::io::sink())).unwrap();
    let restored = machine.restore(&snapshot).unwrap();
    let stopped_at = counter(&restored);
    assert!(stopped_at > 1000, "{stopped_at}");
    restored.resume().unwrap();
    counted_beyond(&restored, stopped_at);
}

#[test]
fn a_snapshot_that_was_touched_is_refused() {
    if !kvm() {
        return;
    }
    use std::os::unix::fs::FileExt;
    let running = machine(&COUNT, &Screen::default()).begin(Entry::Long(CODE)).unwrap();
    let [mut state, memory] = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
    running.save(&mut state, &memory).unwrap();
    let mut whole = vec![0; state.metadata().unwrap().len() as usize];
    state.read_exact_at(&mut whole, 0).unwrap();
    let refused = |bytes: &[u8], memory: &std::fs::File| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        let error = Machine::of_snapshot(
            Host::open().unwrap(),
            &mut file,
            memory.try_clone().unwrap(),
            Box::new(std::io::sink()),
        );
        error.expect_err("it must be refused").to_string()
    };
    for cut in [0, 5, 15, whole.len() / 2, whole.len() - 1] {
        assert!(refused(&whole[..cut], &memory).starts_with("snapshot state: "), "cut at {cut}");
    }
    let mut altered = whole.clone();
    altered[40] ^= 1;
    assert!(refused(&altered, &memory).contains("checksum"));
    let mut newer = whole.clone();
    newer[10] = 9;
    assert!(refused(&newer, &memory).contains("format 9"));
    memory.set_len(2 << 20).unwrap();
    assert!(refused(&whole, &memory).contains("2097152"));
}

/// Tells what it is notified of.
#[derive(Debug)]
struct Probe(Sender<usize>);

impl Device for Probe {
    fn kind(&self) -> Kind {
        Kind::Entropy
    }
    fn queues(&self) -> usize {
        2
    }
    fn configuration(&self) -> Vec<u8> {
        vec![b'c']
    }
    fn activate(&mut self, _features: u64, _queues: &Queues<'_>) -> Result<()> {
        self.0.send(100).unwrap();
        Ok(())
    }
    fn notified(&mut self, queue: usize, _queues: &mut Queues<'_>) -> Result<Progress> {
        self.0.send(queue).unwrap();
        Ok(Progress::Waits)
    }
    fn save(&self) -> Result<Value> {
        Ok(Value::Null)
    }
    fn restore(&mut self, _state: &Value) -> Result<()> {
        Ok(())
    }
}

#[test]
fn registers_and_notifications_reach_the_device() {
    if !kvm() {
        return;
    }
    let (sender, notified) = channel();
    // mov dword [0xd0000000 + register], value
    let store = |register: u8, value: u8| [0xc7, 0x05, register, 0, 0, 0xd0, value, 0, 0, 0];
    let mut code = Vec::new();
    for (register, value) in [(0x70, 0xf), (0x50, 1), (0x50, 0)] {
        code.extend(store(register, value));
    }
    // mov al, [0xd0000100]; mov dx, 0x3f8; out dx, al; mov al, [0xd0000000]; out dx, al
    code.extend([0xa0, 0x00, 0x01, 0x00, 0xd0, 0x66, 0xba, 0xf8, 0x03, 0xee]);
    code.extend([0xa1, 0x00, 0x00, 0x00, 0xd0, 0xee]);
    // Waits for ever: the notifications are served by another thread than this processor's.
    code.extend([0xeb, 0xfe]);
    let screen = Screen::default();
    let mut machine = machine(&code, &screen);
    machine.attach(Box::new(Probe(sender))).unwrap();
    let mut running = machine.begin(Entry::Pvh(CODE as u32)).unwrap();
    running.resume().unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 || screen.text().len() < 2 {
        assert_eq!(running.turn().unwrap(), None);
        seen.extend(notified.try_iter());
    }
    assert_eq!(screen.text(), "cv");
    seen[1..].sort_unstable();
    assert_eq!(seen, [100, 0, 1]);
}

#[test]
fn shapes_that_make_no_machine_are_refused() {
    if !kvm() {
        return;
    }
    for (cpus, memory) in [(0, 1 << 20), (255, 1 << 20), (1, 5000)] {
        assert!(
            Machine::new(Host::open().unwrap(), Shape { cpus, memory }, Box::new(std::io::sink())).is_err()
        );
    }
}
