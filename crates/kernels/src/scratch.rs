//! Memory that a task borrows from the thread it runs on.

use std::cell::RefCell;

use crate::pool::Pool;

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Lends this thread's scratch memory in pieces of the given lengths (contents unspecified). `f` may not
/// ask again.
pub(crate) fn with_scratch<const N: usize>(lens: [usize; N], f: impl FnOnce([&mut [f32]; N])) {
    SCRATCH.with_borrow_mut(|scratch| {
        let total = lens.iter().sum();
        grow(scratch, total);
        let mut rest = &mut scratch[..total];
        f(lens.map(|len| {
            let (piece, after) = std::mem::take(&mut rest).split_at_mut(len);
            rest = after;
            piece
        }));
    });
}

/// Gives every thread of the pool scratch memory for `lens` together. Which thread meets the largest task
/// is chance; so only a call with more than all before it takes new memory, and no task ever does.
pub(crate) fn reserve<const N: usize>(pool: &Pool, lens: [usize; N]) {
    let total = lens.iter().sum();
    if pool.raise_scratch(total) {
        pool.on_every_thread(&|| SCRATCH.with_borrow_mut(|scratch| grow(scratch, total)));
    }
}

fn grow(scratch: &mut Vec<f32>, len: usize) {
    if scratch.len() < len {
        scratch.resize(len, 0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_of_a_pool_has_what_was_reserved() {
        let pool = Pool::new(3);
        reserve(&pool, [700, 300]);
        let lens = std::sync::Mutex::new(Vec::new());
        let look = || lens.lock().unwrap().push(SCRATCH.with_borrow(Vec::len));
        pool.on_every_thread(&look);
        assert_eq!(*lens.lock().unwrap(), [1000; 3]);
        reserve(&pool, [999]);
        pool.on_every_thread(&look);
        assert_eq!(*lens.lock().unwrap(), [1000; 6]);
    }
}
