//! Failures injected into disk operations by tests of this crate.
//!
//! Every mutating operation asks [`check`] first. A test arms its thread with [`arm`]: the n-th
//! operation then fails, and after [`Fault::Kill`] every later one too, as if the process were gone.

use std::cell::Cell;
use std::io;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// This one operation fails with the given kind.
    Error(io::ErrorKind),
    /// This and every later operation fails.
    Kill,
}

thread_local! {
    static ARMED: Cell<Option<(u64, Fault)>> = const { Cell::new(None) };
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// Lets the `n`-th operation from now (from 0) fail.
pub(crate) fn arm(n: u64, fault: Fault) {
    COUNT.set(0);
    ARMED.set(Some((n, fault)));
}

/// Disarms, and tells how many operations were asked for since [`arm`].
pub(crate) fn disarm() -> u64 {
    ARMED.set(None);
    COUNT.get()
}

pub(crate) fn check() -> io::Result<()> {
    let at = COUNT.get();
    COUNT.set(at + 1);
    match ARMED.get() {
        Some((n, Fault::Error(kind))) if at == n => Err(io::Error::from(kind)),
        Some((n, Fault::Kill)) if at >= n => Err(io::Error::other("killed")),
        _ => Ok(()),
    }
}
