//! What the fuzz targets share: the bound of what an input may allocate, and the mutation of JSON.

pub mod json;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::PathBuf;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::{env, fs, process};

/// Counts the bytes that the program has allocated, including those that it has freed.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: passes every call on to the allocator of the system.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATED.fetch_add(size, Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, size) }
    }
}

/// What all parsers of a target may allocate in total, for an empty input and for each byte. A parser
/// that copies its input once per line or level exceeds it, as does one that trusts a length.
const ALLOCATED_MAX: usize = 1 << 18;
const ALLOCATED_PER_BYTE_MAX: usize = 2000;

/// Calls `check`, and panics if it allocates too much for the length of the input.
pub fn with_bounded_memory(input: &[u8], check: impl FnOnce(&[u8])) {
    let before = ALLOCATED.load(Relaxed);
    check(input);
    let allocated = ALLOCATED.load(Relaxed) - before;
    let max = ALLOCATED_MAX + ALLOCATED_PER_BYTE_MAX * input.len();
    assert!(
        allocated <= max,
        "{} bytes of input: {allocated} bytes allocated",
        input.len()
    );
}

/// A directory of this process, in memory where there is such a file system. `.ci/fuzz` deletes it.
pub static SCRATCH_DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = env::temp_dir().join(format!("fuzz-{}", process::id()));
    fs::create_dir_all(&dir).unwrap();
    dir
});

/// Defines the fuzz target that calls a function with each input. The inputs may have JSON.
#[macro_export]
macro_rules! target {
    ($check:expr) => {
        libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::with_bounded_memory(input, $check));
        libfuzzer_sys::fuzz_mutator!(|input: &mut [u8],
                                      size: usize,
                                      max_size: usize,
                                      seed: u32| {
            fuzz::json::mutate(input, size, max_size, seed)
        });
    };
}
