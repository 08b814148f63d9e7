//! How long a connection may be silent, changed while a reply is being read.
//!
//! A model thinks long before its first word and then writes steadily: one limit for both is too short or too long.
//! The client library fixes its limit when a request is sent. This transport asks a value of the reading thread
//! instead, which [`within`] sets around a read.

use std::cell::Cell;
use std::time::Duration;

use ureq::Error;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

thread_local! {
    static LIMIT: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// Reads of `work` wait for bytes no longer than `limit`.
pub(crate) fn within<T>(limit: Option<Duration>, work: impl FnOnce() -> T) -> T {
    LIMIT.set(limit);
    let done = work();
    LIMIT.set(None);
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
        self.0.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.0.is_open()
    }

    fn is_tls(&self) -> bool {
        self.0.is_tls()
    }
}
