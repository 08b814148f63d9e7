//! Licence register and gate, release manifest and its verification.
