//! Where data may go: the second half of the gate, and the only mint of [`Cleared`].

use stillroom_core::{Cleared, Reach};

use crate::decision::Decision;
use crate::error::{GovernanceError, Result};

/// `policy.egress`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Egress {
    /// Nothing leaves this machine: only its own loopback may be asked.
    #[default]
    Local,
    /// These places only.
    Listed(Reach),
    /// Every place to which text goes encrypted; an open one has to be listed.
    Any,
}

impl Egress {
    /// The first place of `reach` that the policy does not allow.
    pub fn refuses(&self, reach: &Reach) -> Option<String> {
        match self {
            Egress::Local => reach.beyond_loopback(),
            Egress::Listed(listed) => listed.lacks(reach),
            Egress::Any => reach.open_places().next(),
        }
    }
}

impl Decision {
    /// Leave to use the network for `subject` within `reach`: given where this decision passes and the
    /// policy covers every place of it.
    pub fn clear(&self, subject: &str, egress: &Egress, reach: Reach) -> Result<Cleared> {
        self.enforce()?;
        match egress.refuses(&reach) {
            Some(place) => Err(GovernanceError::Egress { place }),
            None => Ok(Cleared::mint(subject, reach)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::{Question, decide};
    use crate::subject::Subject;

    fn about(id: &str) -> Decision {
        decide(&Question::about(Subject::id(id)))
    }

    #[test]
    fn leave_needs_a_verdict_and_a_policy() {
        let reach = || Reach::of(["https://hub.example"]).unwrap();
        let listed = Egress::Listed(Reach::of(["https://hub.example", "https://other.example"]).unwrap());
        let known = about("HuggingFaceTB/SmolLM2-135M");
        let cleared = known.clear("HuggingFaceTB/SmolLM2-135M", &listed, reach()).unwrap();
        assert_eq!((cleared.subject(), cleared.reach()), ("HuggingFaceTB/SmolLM2-135M", &reach()));
        assert!(known.clear("x", &Egress::Any, reach()).is_ok());
        let shut = known.clear("x", &Egress::Local, reach()).unwrap_err();
        assert!(matches!(shut, GovernanceError::Egress { place } if place == "https://hub.example"));
        let elsewhere = Reach::of(["https://hub.example.evil"]).unwrap();
        assert!(matches!(known.clear("x", &listed, elsewhere), Err(GovernanceError::Egress { .. })));
        let open = || Reach::of_open(["http://10.0.0.1:8000"]).unwrap();
        for policy in [Egress::Local, Egress::Any, Egress::Listed(reach())] {
            let refused = known.clear("x", &policy, open()).unwrap_err();
            assert!(matches!(refused, GovernanceError::Egress { place } if place == "http://10.0.0.1:8000"));
        }
        assert!(known.clear("x", &Egress::Listed(open()), open()).is_ok());
        for shut in ["meta-llama/Llama-2-7b-hf", "nobody/knows-this"] {
            let refused = about(shut).clear(shut, &Egress::Any, reach()).unwrap_err();
            assert!(matches!(refused, GovernanceError::Refused(_)), "{shut}");
        }
    }
}
