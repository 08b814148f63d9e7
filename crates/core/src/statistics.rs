//! Intervals and paired comparisons.
