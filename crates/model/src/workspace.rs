//! Buffers that are used again from step to step.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use stillroom_kernels::{Buf, Device};

/// A buffer of rows of `width` numbers that goes back to its [`Workspace`].
pub(crate) struct Lent {
    buf: Buf,
    width: usize,
}

impl Lent {
    /// The buffer, for good.
    pub(crate) fn into_buf(self) -> Buf {
        self.buf
    }
}

impl Deref for Lent {
    type Target = Buf;

    fn deref(&self) -> &Buf {
        &self.buf
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Buf {
        &mut self.buf
    }
}

/// Idle buffers. The number of rows differs from call to call, the widths are those of the decoder's
/// products; so a buffer stays with its width. There are as many of a width as were ever in use together,
/// and none ever shrinks: what repeats itself soon takes no new memory.
#[derive(Default)]
pub(crate) struct Workspace {
    idle: Mutex<Vec<Lent>>,
}

impl Workspace {
    /// A buffer of `rows` × `width` numbers with unspecified contents.
    pub(crate) fn take(&self, device: &Device, rows: usize, width: usize) -> Lent {
        let len = rows * width;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let alike = |lent: &Lent| lent.width == width;
        let fits = |lent: &Lent| alike(lent) && lent.capacity() >= len;
        let smallest = |wanted: &dyn Fn(&Lent) -> bool| {
            let found = idle.iter().enumerate().filter(|(_, lent)| wanted(lent));
            found.min_by_key(|(_, lent)| lent.capacity()).map(|(at, _)| at)
        };
        // Where none has room for the rows, the smallest one makes way for one that has.
        let found = smallest(&fits).or_else(|| smallest(&alike));
        let idle = found.map(|at| idle.swap_remove(at)).filter(&fits);
        let mut lent = idle.unwrap_or_else(|| {
            // Rows vary a little from batch to batch: an eighth more of them ends the search sooner.
            Lent { buf: device.zeros((rows + rows / 8) * width), width }
        });
        lent.resize(len);
        lent
    }

    /// Numbers that idle buffers have room for.
    #[cfg(test)]
    pub(crate) fn n_idle(&self) -> usize {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|lent| lent.capacity()).sum()
    }

    pub(crate) fn give(&self, lent: Lent) {
        self.give_all([lent]);
    }

    pub(crate) fn give_all(&self, lent: impl IntoIterator<Item = Lent>) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).extend(lent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_returned_buffer_is_lent_again_with_another_number_of_rows() {
        let (device, workspace) = (Device::cpu(1), Workspace::default());
        workspace.give(Lent { buf: device.upload(&[7.0; 8]), width: 2 });
        assert_eq!(device.download(&workspace.take(&device, 3, 2)), [7.0; 6]);
    }

    #[test]
    fn a_buffer_stays_with_its_width_and_a_short_one_makes_way() {
        let (device, workspace) = (Device::cpu(1), Workspace::default());
        let taken = [(4, 2), (16, 2), (16, 3)].map(|(rows, width)| workspace.take(&device, rows, width));
        workspace.give_all(taken);
        let capacity = |rows, width| {
            let lent = workspace.take(&device, rows, width);
            let capacity = lent.capacity();
            workspace.give(lent);
            capacity
        };
        assert_eq!(capacity(3, 2), 8, "the smallest that has room");
        assert_eq!(capacity(18, 2), 36);
        assert_eq!(capacity(24, 2), 54, "the smallest gave way");
        assert_eq!(capacity(17, 2), 36);
        assert_eq!(capacity(1, 3), 54);
        assert_eq!(workspace.n_idle(), 36 + 54 + 54);
    }
}
