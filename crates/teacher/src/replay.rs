//! What was asked before is answered from that run's ledger: offline, for nothing, and with the same replies.

use stillroom_store::LedgerReader;

use crate::TeacherError;
use crate::ask::{Answer, Ask};
use crate::outcome;
use crate::session::{Counts, Teacher};

impl Teacher {
    /// Answers everything from `ledger`, in the order of `asks`; nothing is sent. What was never asked there is given up.
    pub fn replay<E: From<TeacherError>>(
        &self,
        ledger: &LedgerReader,
        asks: &mut dyn Iterator<Item = Result<Ask, E>>,
        deliver: &mut dyn FnMut(Ask, Answer, Counts) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut counts = Counts::default();
        for ask in asks {
            let ask = ask?;
            let answer = outcome::kept(ledger, &self.request_digest(&ask), &ask.id)?.unwrap_or_else(|| {
                Answer::GivenUp { fault: "it is not in the ledger that is replayed".to_owned() }
            });
            counts.answers += 1;
            counts.kept += 1;
            deliver(ask, answer, counts)?;
        }
        Ok(())
    }
}
