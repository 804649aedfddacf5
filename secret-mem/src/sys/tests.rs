//! Tests of what the memory really is, seen from outside through `/proc/self`.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use super::arena::Slot;
use crate::{
    ForkCanary, LockFailure, LockedBox, SecretBuf, SecretBytes, SharedRegion, lock_failure,
    relock_after_fork, wiping_stack,
};

/// The `VmFlags` of the mapping that holds `address`.
fn flags_of(address: usize) -> Vec<String> {
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in smaps.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if inside {
                return flags.split_whitespace().map(str::to_owned).collect();
            }
        } else if let Some((start, end)) = line.split(' ').next().unwrap().split_once('-') {
            let bound = |text| usize::from_str_radix(text, 16).unwrap();
            inside = (bound(start)..bound(end)).contains(&address);
        }
    }
    panic!("{address:#x} is not mapped");
}

fn has(address: usize, flag: &str) -> bool {
    flags_of(address).iter().any(|found| found == flag)
}

/// Where locking is not allowed that must have been recorded.
fn assert_protected(address: usize) {
    let refused = matches!(lock_failure(), Some(LockFailure::Lock { .. }));
    assert!(has(address, "lo") || refused, "not locked: {:?}", flags_of(address));
    assert!(has(address, "dd"), "in core dumps: {:?}", flags_of(address));
}

/// Reads memory whether or not anything owns it.
fn peek(address: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fs::File::open("/proc/self/mem").unwrap().read_exact_at(&mut bytes, address as u64).unwrap();
    bytes
}

fn address_of<T: ?Sized>(value: &T) -> usize {
    core::ptr::from_ref(value).cast::<u8>().addr()
}

/// Runs `work` in a forked child; true if it returned true.
fn in_child(work: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child only runs `work` and leaves with `_exit`. What `work` needs of the C library (memory,
    // file reading) is usable in a child of a threaded process with glibc and musl, and this crate's
    // allocator has no lock.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            let passed = catch_unwind(AssertUnwindSafe(work)).unwrap_or(false);
            // SAFETY: ends the process without running destructors or exit handlers of the parent.
            unsafe { libc::_exit(i32::from(!passed)) }
        }
        child => {
            let mut status = 0;
            // SAFETY: waits for a child of our own; `status` is valid for writes.
            assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
            status == 0
        }
    }
}

#[test]
fn all_memory_is_locked_and_not_dumped() {
    let secret = SecretBytes::<32>::zeroed();
    assert_protected(address_of(secret.expose()));
    let large = LockedBox::new([1_u8; 64 * 1024]);
    assert_protected(address_of(&*large));
    assert_protected(address_of(&*large) + 64 * 1024 - 1);
    let buf = SecretBuf::with_capacity(100);
    assert_protected(address_of(buf.as_slice()));
    let region = SharedRegion::new(10_000).unwrap();
    assert_protected(region.as_ptr().addr().get());
    assert_protected(region.as_ptr().addr().get() + 9_999);
}

#[test]
fn refusal_to_lock_is_recorded_and_not_fatal() {
    assert!(in_child(|| {
        let limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `limit` is valid for reads; the call affects this child alone.
        let limited = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit) };
        // SAFETY: plain system call on this single-threaded child; it also gives up the privilege to ignore
        // the limit. A process that is not privileged has nothing to give up and may stay who it is.
        unsafe { libc::setuid(65534) };
        // A size that no other test has mapped before the fork.
        let secret = LockedBox::new([7_u8; 300_000]);
        let recorded = matches!(lock_failure(), Some(LockFailure::Lock { .. }));
        limited == 0 && recorded && secret[299_999] == 7
    }));
}

#[test]
fn secret_is_wiped_when_dropped() {
    // A slot size of its own, so that no other test uses the slot in between.
    let mut secret = SecretBytes::<200_000>::zeroed();
    secret.expose_mut().fill(0xa5);
    let address = address_of(secret.expose());
    assert_eq!(peek(address, 200_000), [0xa5; 200_000]);
    drop(secret);
    assert_eq!(peek(address, 262_144), [0; 262_144]);
}

#[test]
fn box_is_wiped_after_its_destructor_even_if_that_panics() {
    struct Panics([u8; 100_000]);
    impl Drop for Panics {
        fn drop(&mut self) {
            assert_eq!(self.0[99_999], 0x5a, "wiped before the destructor");
            panic!("in the destructor");
        }
    }
    let boxed = LockedBox::new_with(|| Panics([0x5a; 100_000]));
    let address = address_of(&*boxed);
    assert!(catch_unwind(AssertUnwindSafe(|| drop(boxed))).is_err());
    assert_eq!(peek(address, 100_000), [0; 100_000]);
}

#[test]
fn failed_fill_is_wiped() {
    let address = Cell::new(0);
    let filled = SecretBytes::<600_000>::fill_with(|bytes| {
        bytes.fill(0xa5);
        address.set(address_of(bytes));
        Err("no key today")
    });
    assert_eq!(filled.unwrap_err(), "no key today");
    assert_eq!(peek(address.get(), 600_000), [0; 600_000]);
}

#[test]
fn destructor_runs_once() {
    struct Counts<'a>(&'a Cell<u32>);
    impl Drop for Counts<'_> {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }
    let drops = Cell::new(0);
    let boxed = LockedBox::new(Counts(&drops));
    assert_eq!(drops.get(), 0);
    drop(boxed);
    assert_eq!(drops.get(), 1);
}

#[test]
fn freed_slot_is_reused() {
    let layout = core::alloc::Layout::from_size_align(1 << 21, 1).unwrap();
    let first = Slot::new(layout);
    let address = first.start();
    let second = Slot::new(layout);
    assert_ne!(second.start(), address);
    drop(first);
    assert_eq!(Slot::new(layout).start(), address);
}

#[test]
fn slots_are_aligned_zero_and_large_enough() {
    for power in 0..=15 {
        for size in [(1 << power) - 1, 1 << power, (1 << power) + 1] {
            let layout = core::alloc::Layout::from_size_align(size, (1 << power).min(4096)).unwrap();
            let slot = Slot::new(layout);
            assert_eq!(slot.start().addr().get() % layout.align(), 0);
            assert!(slot.len() >= size && slot.len() <= 2 * size.max(32));
            assert!(slot.as_slice().iter().all(|byte| *byte == 0));
        }
    }
    #[repr(align(4096))]
    struct Page([u8; 4096]);
    assert!(
        (0..20).map(|i| LockedBox::new(Page([i; 4096]))).all(|page| address_of(&page.0).is_multiple_of(4096))
    );
}

/// Full arenas (512 slots of 32 bytes) and the one that follows hold different memory.
#[test]
fn slots_do_not_overlap() {
    let mut secrets: Vec<_> = (0..2000_u16).map(|_| SecretBytes::<32>::zeroed()).collect();
    for (number, secret) in (0..).zip(&mut secrets) {
        secret.expose_mut().copy_from_slice(&[number; 16].map(u16::to_le_bytes).concat());
    }
    for (number, secret) in (0_u16..).zip(&secrets) {
        assert_eq!(secret.expose()[..], [number; 16].map(u16::to_le_bytes).concat());
    }
}

#[test]
fn threads_never_get_the_same_slot() {
    thread::scope(|scope| {
        for seed in 1..=8_u64 {
            scope.spawn(move || {
                let mut state = seed;
                let mut held: Vec<(u64, SecretBytes<48>)> = Vec::new();
                for round in 0..30_000 {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(seed);
                    if held.len() < 300 && state >> 62 != 0 {
                        let mut secret = SecretBytes::zeroed();
                        assert_eq!(secret.expose(), &[0; 48], "a slot was not wiped");
                        let mark = seed << 32 | round;
                        secret.expose_mut().copy_from_slice(&[mark; 6].map(u64::to_le_bytes).concat());
                        held.push((mark, secret));
                    } else if !held.is_empty() {
                        let (mark, secret) = held.swap_remove((state >> 32) as usize % held.len());
                        assert_eq!(secret.expose()[..], [mark; 6].map(u64::to_le_bytes).concat());
                    }
                }
            });
        }
    });
}

#[test]
fn child_has_its_own_copy_and_can_allocate() {
    let mut secret = SecretBytes::<64>::zeroed();
    secret.expose_mut().fill(1);
    assert!(in_child(|| {
        let inherited = secret.expose() == &[1; 64];
        secret.expose_mut().fill(2);
        let fresh: Vec<_> = (0..1000).map(|_| SecretBytes::<64>::random().unwrap()).collect();
        inherited && secret.expose() == &[2; 64] && fresh.iter().all(|new| new.expose() != &[0; 64])
    }));
    assert_eq!(secret.expose(), &[1; 64]);
}

#[test]
fn child_can_lock_its_copy_again() {
    let secret = SecretBytes::<64>::zeroed();
    let region = SharedRegion::new(4096).unwrap();
    let addresses = [address_of(secret.expose()), region.as_ptr().addr().get()];
    if !has(addresses[0], "lo") {
        eprintln!("SKIPPED: this system does not let the test lock memory: {:?}", lock_failure());
        return;
    }
    assert!(in_child(|| {
        let inherited = addresses.map(|address| has(address, "lo"));
        let still_undumpable = addresses.iter().all(|address| has(*address, "dd"));
        relock_after_fork();
        region.relock_after_fork();
        let locked = addresses.map(|address| has(address, "lo"));
        inherited == [false; 2] && still_undumpable && locked == [true; 2]
    }));
}

#[test]
fn shared_region_is_shared_both_ways() {
    let region = SharedRegion::new(8192).unwrap();
    assert_eq!(region.len(), 8192);
    let bytes = region.as_ptr();
    // SAFETY: the region is 8192 bytes long, and the parent only waits while the child writes.
    let read = |at: usize| unsafe { bytes.add(at).read_volatile() };
    // SAFETY: as above.
    let write = |at: usize, value: u8| unsafe { bytes.add(at).write_volatile(value) };
    assert_eq!([read(0), read(8191)], [0, 0]);
    write(0, 11);
    assert!(in_child(|| {
        write(8191, 22);
        read(0) == 11
    }));
    assert_eq!(read(8191), 22);
    assert!(in_child(|| read(8191) == 22));
}

/// Fills the stack with a pattern and gives the address of its middle.
#[inline(never)]
fn leave_on_stack() -> usize {
    let mut stack = [0xc3_u8; 4096];
    core::hint::black_box(&mut stack);
    address_of(&stack) + 2048
}

#[test]
fn stack_is_wiped() {
    // Reading through the kernel, so that no frame of ours is where the pattern is.
    let mem = fs::File::open("/proc/self/mem").unwrap();
    let mut seen = [0; 64];
    let address = leave_on_stack();
    mem.read_exact_at(&mut seen, address as u64).unwrap();
    assert_eq!(seen, [0xc3; 64], "without wiping the pattern is still there");

    let address = wiping_stack(leave_on_stack);
    mem.read_exact_at(&mut seen, address as u64).unwrap();
    assert_eq!(seen, [0; 64]);

    let address = Cell::new(0);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        wiping_stack(|| {
            address.set(leave_on_stack());
            panic!("half way");
        })
    }));
    assert!(panicked.is_err());
    assert!(!peek(address.get(), 64).contains(&0xc3));
}

#[test]
fn nothing_secret_is_shown() {
    let boxed = LockedBox::new([0x41_u8; 4]);
    assert_eq!(format!("{boxed:?}"), "LockedBox(redacted)");
    assert_eq!(format!("{:?}", SharedRegion::new(4096).unwrap()), "SharedRegion(4096 bytes, redacted)");
}

#[test]
fn impossible_region_is_an_error() {
    let error = SharedRegion::new(1 << 60).unwrap_err();
    assert!(error.to_string().contains("1152921504606846976 bytes"), "{error}");
    assert!(SharedRegion::new(0).is_err());
}

#[test]
fn a_canary_dies_in_a_child_and_a_new_one_lives() {
    let canary = ForkCanary::new().unwrap();
    assert!(canary.is_alive());
    assert!(thread::spawn(move || canary.is_alive()).join().unwrap(), "threads are no other process");
    assert!(in_child(|| {
        let own = ForkCanary::new().unwrap();
        let grandchild =
            in_child(|| !canary.is_alive() && !own.is_alive() && ForkCanary::new().unwrap().is_alive());
        !canary.is_alive() && own.is_alive() && grandchild
    }));
    assert!(canary.is_alive(), "a fork does not disturb the parent");
}

#[test]
fn a_canary_is_dead_in_a_child_that_asks_nothing_else() {
    let canary = ForkCanary::new().unwrap();
    assert!(in_child(|| !canary.is_alive()));
}
