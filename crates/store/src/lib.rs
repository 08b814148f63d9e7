//! The run directory: atomic commits, locks, stages, events.
