//! Held-out metrics and the report of teacher against student.
