//! What `Ctrl-C` does.

use std::sync::{Mutex, PoisonError};

use nix::sys::signal::{SigSet, Signal};

use crate::failure::Exit;
use crate::terminal;

/// What the first `Ctrl-C` does instead of ending the program.
static INSTEAD: Mutex<Option<Box<dyn FnOnce() + Send>>> = Mutex::new(None);

/// `Ctrl-C` ends the program at once: what lies on disk is whole at any moment, as after a power cut.
pub(crate) fn install(continues: bool) {
    let installed = ctrlc::set_handler(move || {
        if let Some(instead) = INSTEAD.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return instead();
        }
        let more = if continues { ": the same command continues where it stopped" } else { "" };
        terminal::note_below(&format!("interrupted{more}"));
        #[expect(clippy::exit, reason = "nothing is left to clean up, and the main thread may be computing")]
        std::process::exit(Exit::Interrupted as i32);
    });
    // Without a handler the signal ends the program all the same.
    drop(installed);
}

/// Keeps the signal by which systems end a service for [`on_end`]. To be called before there is any other thread: they all
/// take this over.
pub(crate) fn hold_termination() {
    // Where it cannot be held it ends the program, as it does any other.
    let _ = SigSet::from(Signal::SIGTERM).thread_block();
}

/// Does this at the first `Ctrl-C`, or at the signal that [`hold_termination`] holds.
pub(crate) fn on_end(end: impl Fn() + Clone + Send + 'static) {
    let at_termination = end.clone();
    *INSTEAD.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(end));
    std::thread::spawn(move || {
        while SigSet::from(Signal::SIGTERM).wait().is_ok() {
            at_termination();
        }
    });
}
