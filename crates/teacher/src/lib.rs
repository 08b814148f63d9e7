//! Where supervision comes from over the wire: endpoints with their limits and faults, and budgets.
//!
//! Every call has a row in the ledger (`stillroom_store::Ledger`) before it is sent, and its receipt is durable before
//! its reply is used, so that no reply is bought twice.
