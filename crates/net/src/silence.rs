//! How long a connection may be silent, changed while a reply is being read; and whether anybody still wants that reply.
//!
//! A model thinks long before its first word and then writes steadily: one limit for both is too short or too long.
//! The client library fixes its limit when a request is sent, and knows no way to give one up. This transport asks values of
//! the reading thread instead, which [`within`] sets around a read.

use std::cell::{Cell, RefCell};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};
use ureq::{Error, Timeout};

/// How soon a read that nobody wants any more comes to its end.
const LOOK_EVERY: Duration = Duration::from_millis(100);

thread_local! {
    static LIMIT: Cell<Option<Duration>> = const { Cell::new(None) };
    static CALL_OFF: RefCell<Option<CallOff>> = const { RefCell::new(None) };
}

/// Gives up requests that are on their way: one thread calls off what others read. Clones belong together.
#[derive(Clone, Debug, Default)]
pub struct CallOff(Arc<AtomicBool>);

impl CallOff {
    /// What waits for a reply ends in an error within a tenth of a second, and its connection is closed.
    pub fn call_off(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn is_called_off(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl PartialEq for CallOff {
    fn eq(&self, other: &CallOff) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// A read ended since it was called off.
#[derive(Debug, thiserror::Error)]
#[error("called off")]
pub(crate) struct CalledOff;

/// Reads of `work` wait for bytes no longer than `limit`, nor for ever where they may be called off.
pub(crate) fn within<T>(limit: Option<Duration>, call_off: Option<&CallOff>, work: impl FnOnce() -> T) -> T {
    LIMIT.set(limit);
    CALL_OFF.set(call_off.cloned());
    let done = work();
    LIMIT.set(None);
    CALL_OFF.set(None);
    done
}

/// Wraps every connection.
#[derive(Debug, Default)]
pub(crate) struct SilenceConnector;

impl<In: Transport> Connector<In> for SilenceConnector {
    type Out = SilenceLimited<In>;

    fn connect(&self, _: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        Ok(chained.map(SilenceLimited))
    }
}

#[derive(Debug)]
pub(crate) struct SilenceLimited<T>(T);

impl<T: Transport> SilenceLimited<T> {
    /// Waits in short pieces, and looks between them.
    fn await_unless(&mut self, call_off: &CallOff, mut timeout: NextTimeout) -> Result<bool, Error> {
        let (whole, reason) = match timeout.per_read {
            Some(limit) if *limit < *timeout.after => (*limit, Timeout::PerRead),
            _ => (*timeout.after, timeout.reason),
        };
        let started = Instant::now();
        loop {
            if call_off.is_called_off() {
                return Err(Error::Io(io::Error::other(CalledOff)));
            }
            let left = whole.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Err(Error::Timeout(reason));
            }
            timeout.per_read = Some(left.min(LOOK_EVERY).into());
            match self.0.await_input(timeout) {
                Err(Error::Timeout(Timeout::PerRead)) => {}
                other => return other,
            }
        }
    }
}

impl<T: Transport> Transport for SilenceLimited<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.0.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.0.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, mut timeout: NextTimeout) -> Result<bool, Error> {
        if let Some(limit) = LIMIT.get() {
            timeout.per_read = Some(limit.into());
        }
        match CALL_OFF.with_borrow(Option::clone) {
            None => self.0.await_input(timeout),
            Some(call_off) => self.await_unless(&call_off, timeout),
        }
    }

    fn is_open(&mut self) -> bool {
        self.0.is_open()
    }

    fn is_tls(&self) -> bool {
        self.0.is_tls()
    }
}
