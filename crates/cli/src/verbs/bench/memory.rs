//! The most memory that the process held, in all and in the timed steps alone.

use stillroom_evaluate::peak_resident_bytes;

/// High-water marks of resident memory in bytes; `None` where the system does not say.
#[derive(Clone, Copy, Debug)]
pub(super) struct MemoryPeaks {
    /// Since the process began: loading and warm-up included.
    pub(super) whole: Option<u64>,
    /// Since [`Mark::set`].
    pub(super) steady: Option<u64>,
}

/// The moment from which memory is the steady work's.
pub(super) struct Mark {
    /// The high-water mark until then, if it could be lowered.
    before: Option<u64>,
}

impl Mark {
    /// Lowers the process's high-water mark to what is resident now (Linux: `proc_pid_clear_refs(5)`).
    pub(super) fn set() -> Mark {
        let before = peak_resident_bytes();
        Mark { before: std::fs::write("/proc/self/clear_refs", "5").ok().and(before) }
    }

    pub(super) fn peaks(&self) -> MemoryPeaks {
        let now = peak_resident_bytes();
        MemoryPeaks { whole: now.max(self.before), steady: self.before.and(now) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_given_back_before_the_mark_is_not_the_steady_works() {
        const BYTES: u64 = 64 << 20;
        let touched = std::hint::black_box(vec![1u8; BYTES as usize]);
        drop(touched);
        let mark = Mark::set();
        let peaks = mark.peaks();
        if let (Some(whole), Some(steady)) = (peaks.whole, peaks.steady) {
            assert!(whole >= BYTES && steady + BYTES / 2 < whole, "{peaks:?}");
        }
        let kept = std::hint::black_box(vec![1u8; BYTES as usize]);
        assert!(mark.peaks().steady >= peaks.steady.map(|steady| steady + BYTES / 2), "{:?}", mark.peaks());
        drop(kept);
    }
}
