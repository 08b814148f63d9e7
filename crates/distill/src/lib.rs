//! Divergences and their targets, schedules, and the trainer.
