//! Memory for large arrays.

/// Arrays from this size on ask for huge pages.
const HUGE_BYTES_MIN: usize = 4 << 20;

/// `len` zeros. A large array asks the system for huge pages: fewer of them to fault in, and fewer
/// misses in the translation of addresses when a product walks along a column.
pub(crate) fn zeros(len: usize) -> Vec<f32> {
    let numbers = vec![0.0; len];
    advise_huge(&numbers);
    numbers
}

/// Asks for huge pages under a large array; best before it is first written.
#[cfg(target_os = "linux")]
pub(crate) fn advise_huge<T>(numbers: &[T]) {
    use std::ffi::{c_int, c_void};
    const PAGE: usize = 4096;
    const MADV_HUGEPAGE: c_int = 14;
    unsafe extern "C" {
        fn madvise(address: *mut c_void, len: usize, advice: c_int) -> c_int;
    }
    if size_of_val(numbers) < HUGE_BYTES_MIN {
        return;
    }
    let address = numbers.as_ptr().addr();
    let skipped = address.next_multiple_of(PAGE) - address;
    let len = (size_of_val(numbers) - skipped) / PAGE * PAGE;
    // SAFETY: whole pages inside the allocation; the advice changes nothing that a program can observe
    // but time, and a refusal is no loss.
    unsafe { madvise(numbers.as_ptr().wrapping_byte_add(skipped).cast_mut().cast(), len, MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn advise_huge<T>(_: &[T]) {}
