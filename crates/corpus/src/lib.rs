//! Prompts, tasks with verifiers, and curation.
