//! Buffers that are used again from step to step.

use std::sync::{Mutex, PoisonError};

use stillroom_kernels::{Buf, Device};

/// Idle buffers. Taking one of a length that is not idle frees as many idle numbers first, oldest
/// buffers before younger ones; so the whole never exceeds the most that was in use at once by
/// more than one set of steps needs.
#[derive(Default)]
pub(crate) struct Workspace {
    idle: Mutex<Vec<Buf>>,
}

impl Workspace {
    /// A buffer of `len` numbers with unspecified contents.
    pub(crate) fn take(&self, device: &Device, len: usize) -> Buf {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = idle.iter().rposition(|buf| buf.len() == len) {
            return idle.remove(at);
        }
        let mut freed = 0;
        let n = idle.iter().take_while(|buf| {
            let wanted = freed < len;
            freed += buf.len();
            wanted
        });
        let n = n.count();
        idle.drain(..n);
        drop(idle);
        device.zeros(len)
    }

    pub(crate) fn give(&self, buf: Buf) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(buf);
    }

    pub(crate) fn give_all(&self, bufs: impl IntoIterator<Item = Buf>) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).extend(bufs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_returned_buffer_is_used_again_and_a_new_length_frees_old_ones() {
        let (device, workspace) = (Device::cpu(1), Workspace::default());
        let mut a = workspace.take(&device, 8);
        a = {
            let mut marked = device.upload(&[7.0; 8]);
            std::mem::swap(&mut marked, &mut a);
            a
        };
        workspace.give(a);
        let a = workspace.take(&device, 8);
        assert_eq!(device.download(&a), [7.0; 8]);
        workspace.give_all([a, device.zeros(5)]);
        workspace.give(workspace.take(&device, 9));
        let left: Vec<usize> = workspace.idle.lock().unwrap().iter().map(Buf::len).collect();
        assert_eq!(left, [9]);
    }
}
