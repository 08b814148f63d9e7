//! Buffers that are used again from step to step.

use std::sync::{Mutex, PoisonError};

use stillroom_kernels::{Buf, Device};

/// A buffer is lent for a shorter length down to this fraction of its capacity.
const SHRINK_MAX: usize = 4;

/// Idle buffers. Where none of them fits, as many idle numbers are freed as are newly taken, oldest
/// buffers first; so the whole grows no further than what is in use at one time.
#[derive(Default)]
pub(crate) struct Workspace {
    idle: Mutex<Vec<Buf>>,
}

impl Workspace {
    /// A buffer of `len` numbers with unspecified contents.
    pub(crate) fn take(&self, device: &Device, len: usize) -> Buf {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |buf: &Buf| buf.capacity() >= len && buf.capacity() <= len.saturating_mul(SHRINK_MAX);
        let fitting = idle.iter().enumerate().filter(|(_, buf)| fits(buf));
        if let Some((at, _)) = fitting.min_by_key(|(_, buf)| buf.capacity()) {
            let mut buf = idle.remove(at);
            buf.resize(len);
            return buf;
        }
        let mut freed = 0;
        let oldest = idle.iter().take_while(|buf| {
            let wanted = freed < len;
            freed += buf.capacity();
            wanted
        });
        let n_oldest = oldest.count();
        idle.drain(..n_oldest);
        drop(idle);
        // Lengths vary a little from batch to batch: an eighth more room ends the search sooner.
        let mut buf = device.zeros(len + len / 8);
        buf.resize(len);
        buf
    }

    pub(crate) fn give(&self, buf: Buf) {
        self.give_all([buf]);
    }

    pub(crate) fn give_all(&self, bufs: impl IntoIterator<Item = Buf>) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).extend(bufs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_returned_buffer_is_lent_again_at_another_length() {
        let (device, workspace) = (Device::cpu(1), Workspace::default());
        workspace.give(device.upload(&[7.0; 8]));
        assert_eq!(device.download(&workspace.take(&device, 5)), [7.0; 5]);
    }

    #[test]
    fn a_length_that_no_buffer_has_frees_the_oldest() {
        let (device, workspace) = (Device::cpu(1), Workspace::default());
        workspace.give_all([device.zeros(8), device.zeros(9), device.zeros(10)]);
        let taken = workspace.take(&device, 16);
        assert_eq!(taken.len(), 16);
        let left: Vec<usize> = workspace.idle.lock().unwrap().iter().map(Buf::len).collect();
        assert_eq!(left, [10]);
        workspace.give(taken);
        assert_eq!(workspace.take(&device, 1).capacity(), 1, "a far longer buffer is kept for its own use");
    }
}
