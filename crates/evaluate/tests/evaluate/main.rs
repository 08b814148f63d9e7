//! Measurements, checks and reports, by way of invented data.

mod heldout;
mod made_up;
mod measurements;
mod report;
