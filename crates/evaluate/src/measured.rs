//! A number, or the reason why there is none.

use serde::{Deserialize, Serialize};

/// A measured value, or why it was not measured. Nothing is ever filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measured<T> {
    Value(T),
    /// A lowercase fragment: `the task has no verifier`.
    NotMeasured(String),
}

impl<T> Measured<T> {
    pub fn not_measured(reason: impl Into<String>) -> Measured<T> {
        Measured::NotMeasured(reason.into())
    }

    pub fn value(&self) -> Option<&T> {
        match self {
            Measured::Value(value) => Some(value),
            Measured::NotMeasured(_) => None,
        }
    }

    pub fn reason(&self) -> Option<&str> {
        match self {
            Measured::Value(_) => None,
            Measured::NotMeasured(reason) => Some(reason),
        }
    }

    /// Computes a further value; a missing one stays missing for the same reason.
    pub fn and_then<U>(&self, compute: impl FnOnce(&T) -> Measured<U>) -> Measured<U> {
        match self {
            Measured::Value(value) => compute(value),
            Measured::NotMeasured(reason) => Measured::NotMeasured(reason.clone()),
        }
    }
}

impl Measured<f64> {
    /// A quotient; missing where the denominator is 0 or the result is not finite.
    pub fn ratio(numerator: f64, denominator: f64, reason: &str) -> Measured<f64> {
        let value = numerator / denominator;
        if denominator != 0.0 && value.is_finite() {
            Measured::Value(value)
        } else {
            Measured::not_measured(reason)
        }
    }
}
