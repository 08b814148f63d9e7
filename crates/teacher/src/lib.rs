//! Where supervision comes from: local weights.
