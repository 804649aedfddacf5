//! Sealing and opening do not allocate: they run inside PostgreSQL's critical sections.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use common::{PAGE_CIPHERS, data_key, heap_page, map_page, page};
use page_cipher::gcm_siv::{Aes256GcmSiv, Message};
use page_cipher::hctr2::{Aes256Hctr2, Unit};
use page_cipher::pg::*;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every method passes its arguments on to `System` unchanged; counting touches a `Cell` without
// destructor only, so it neither allocates nor panics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `GlobalAlloc::dealloc`, and `pointer` came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.with(Cell::get);
    work();
    ALLOCATIONS.with(Cell::get) - before
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![1; 100]))), 1);
}

#[test]
fn pages() {
    for id in PAGE_CIPHERS {
        let cipher = RelationCipher::new(id, &data_key(), 5, 16384).unwrap();
        let count = allocations(|| {
            for (fork, mut page) in
                [(Fork::Main, heap_page()), (Fork::Vm, map_page()), (Fork::Main, [0; PAGE_SIZE])]
            {
                cipher.seal(fork, 7, &mut page).unwrap();
                cipher.open(fork, 7, &mut page).unwrap();
            }
            // Errors too.
            let mut invalid = page(1, [2, 1, 0]);
            assert!(cipher.seal(Fork::Main, 7, &mut invalid).is_err());
            assert!(cipher.open(Fork::Main, 7, &mut invalid).is_err());
            let mut moved = heap_page();
            cipher.seal(Fork::Main, 7, &mut moved).unwrap();
            set_checksum(&mut moved, 8);
            assert_eq!(cipher.open(Fork::Main, 8, &mut moved), Err(OpenError::NotAuthentic));
        });
        assert_eq!(count, 0, "{id}");
    }
}

#[test]
fn batches() {
    for kernel in common::kernels() {
        let gcm_siv = Aes256GcmSiv::with_kernel(kernel, &data_key()).unwrap();
        let hctr2 = Aes256Hctr2::with_kernel(kernel, &data_key()).unwrap();
        let mut pages = [heap_page(), map_page(), heap_page()];
        let count = allocations(|| {
            let mut messages =
                pages.each_mut().map(|data| Message { nonce: &[1; 12], aad: b"aad", data, tag: [0; 16] });
            gcm_siv.seal_batch(&mut messages).unwrap();
            let mut units = pages.each_mut().map(|page| Unit::new(b"tweak", page).unwrap());
            hctr2.encrypt_batch(&mut units);
            hctr2.decrypt_batch(&mut units);
        });
        assert_eq!(count, 0, "{kernel}");
    }
}

#[test]
fn gcm_siv() {
    let cipher = Aes256GcmSiv::new(&data_key());
    let count = allocations(|| {
        let mut page = heap_page();
        let mut tag = cipher.seal(&[1; 12], b"aad", &mut page).unwrap();
        cipher.open(&[1; 12], b"aad", &mut page, &tag).unwrap();
        tag[0] ^= 1;
        assert!(cipher.open(&[1; 12], b"aad", &mut page, &tag).is_err());
    });
    assert_eq!(count, 0);
}
