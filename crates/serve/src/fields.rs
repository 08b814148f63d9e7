//! The fields of a request's body, each taken by its name. What nobody took is refused: to pass over a field that would have
//! changed the answer is to give a wrong one.

use serde_json::{Map, Value};

use crate::refusal::Refusal;

/// Characters of a foreign name that are repeated to whoever sent it.
const NAME_CHARS_MAX: usize = 64;

type Result<T> = std::result::Result<T, Refusal>;

pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    /// Of a JSON object. A field that is null is not there.
    pub(crate) fn read(body: &str) -> Result<Fields> {
        let value: Value = serde_json::from_str(body).map_err(|error| {
            Refusal::new(400, format!("the body is no JSON: {error}")).code("invalid_json")
        })?;
        match value {
            Value::Object(fields) => {
                Ok(Fields(fields.into_iter().filter(|(_, value)| !value.is_null()).collect()))
            }
            _ => Err(Refusal::new(400, "the body is no JSON object").code("invalid_json")),
        }
    }

    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.shift_remove(name)
    }

    pub(crate) fn bool(&mut self, name: &str) -> Result<bool> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(value),
            Some(_) => Err(Refusal::of(name, format!("`{name}` is true or false"))),
        }
    }

    /// A whole number from `least` to `most`.
    pub(crate) fn count(&mut self, name: &str, least: u64, most: u64) -> Result<Option<usize>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let count = value.as_u64().filter(|count| (least..=most).contains(count));
        let count = count
            .ok_or_else(|| Refusal::of(name, format!("`{name}` is a whole number from {least} to {most}")))?;
        Ok(Some(count as usize))
    }

    pub(crate) fn number(&mut self, name: &str, least: f64, most: f64) -> Result<Option<f64>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_f64().filter(|number| (least..=most).contains(number));
        let number = number
            .ok_or_else(|| Refusal::of(name, format!("`{name}` is a number from {least} to {most}")))?;
        Ok(Some(number))
    }

    /// A whole number of either sign, as its 64 bits.
    pub(crate) fn seed(&mut self, name: &str) -> Result<Option<u64>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let bits = value.as_u64().or_else(|| value.as_i64().map(|signed| signed as u64));
        bits.map(Some).ok_or_else(|| Refusal::of(name, format!("`{name}` is a whole number of 64 bits")))
    }

    /// Takes a field that this server does not know how to heed, if it asks for nothing.
    pub(crate) fn neutral(&mut self, name: &str, is_neutral: impl Fn(&Value) -> bool) -> Result<()> {
        match self.take(name) {
            Some(value) if !is_neutral(&value) => {
                let message = format!("`{name}` with this value is not supported by this server");
                Err(Refusal::of(name, message).code("unsupported_value"))
            }
            _ => Ok(()),
        }
    }

    /// Takes fields that change nothing in an answer.
    pub(crate) fn ignore(&mut self, names: &[&str]) {
        names.iter().for_each(|name| drop(self.take(name)));
    }

    /// Refuses what is left.
    pub(crate) fn finish(self) -> Result<()> {
        let Some(name) = self.0.keys().next() else { return Ok(()) };
        let name: String = name.chars().take(NAME_CHARS_MAX).collect();
        Err(Refusal::of(&name, format!("`{name}` is not supported by this server")).code("unknown_parameter"))
    }
}
