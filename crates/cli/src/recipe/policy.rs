//! Keys of `[policy]`: which licences are accepted, and which data may go where.

use std::collections::BTreeMap;

use serde::Serialize;
use stillroom_core::{Digest, Reach};

use super::raw::{RawDataClass, RawPolicy};
use super::resolve::Checker;
use super::wire::Endpoint;
use crate::failure::Result;

/// Data that may go wherever `egress` allows.
pub(super) const PUBLIC: &str = "public";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Egress {
    /// Nothing leaves this machine.
    Local,
    Listed,
    Any,
}

/// What becomes of personal data in prompts that go to other machines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PromptPii {
    /// The run stops before anything is sent.
    #[default]
    Block,
    /// What is found is replaced by its class.
    Redact,
    Allow,
}

impl PromptPii {
    fn is_block(&self) -> bool {
        *self == PromptPii::Block
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Policy {
    pub(crate) egress: Egress,
    pub(crate) listed: Vec<String>,
    /// Conditions of licences that the user accepts.
    pub(crate) accept: Vec<String>,
    /// The reason for which a closed gate is opened; it stays in the record.
    #[serde(rename = "override", skip_serializing_if = "Option::is_none")]
    pub(crate) override_reason: Option<String>,
    /// A table of the user's own beside the licence register.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) register: Option<String>,
    /// Directories with the licence files of models that are not on this machine.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) licence_files: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "PromptPii::is_block")]
    pub(crate) prompt_pii: PromptPii,
    /// Where data of each class may go.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) data_classes: BTreeMap<String, DataClass>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) declare: BTreeMap<String, Declaration>,
}

/// Who may get data of a class; an empty list sets no bound.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct DataClass {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    owners: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    jurisdictions: Vec<String>,
}

/// A private model of one's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Declaration {
    pub(crate) owner: String,
    pub(crate) licence: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) digest: Option<Digest>,
}

impl Policy {
    /// Why data of this class may not go to this endpoint; nothing where it may. This machine is nobody else.
    pub(crate) fn refuses(&self, class: Option<&str>, endpoint: &Endpoint) -> Option<String> {
        let class = class?;
        if is_this_machine(&endpoint.base_url) {
            return None;
        }
        let Some(rule) = self.data_classes.get(class) else {
            return Some(format!("`policy.data_classes` does not say where data of class `{class}` may go"));
        };
        let outside = |label: &str, is: Option<&str>, allowed: &[String]| {
            let inside = allowed.is_empty() || is.is_some_and(|is| allowed.iter().any(|one| one == is));
            (!inside).then(|| match is {
                Some(is) => format!("data of class `{class}` may not go to the {label} `{is}`"),
                None => format!("data of class `{class}` may not go where no `{label}` is named"),
            })
        };
        outside("owner", endpoint.owner.as_deref(), &rule.owners)
            .or_else(|| outside("jurisdiction", endpoint.jurisdiction.as_deref(), &rule.jurisdictions))
    }

    /// Why data of this class may not go into files that somebody carries; nothing where it may.
    pub(crate) fn refuses_files(&self, class: Option<&str>) -> Option<String> {
        let class = class?;
        let rule = self.data_classes.get(class);
        let goes_anywhere = rule.is_some_and(|rule| rule.owners.is_empty() && rule.jurisdictions.is_empty());
        (!goes_anywhere)
            .then(|| format!("files with data of class `{class}` could be carried where it may not go"))
    }
}

/// Whether an address is this machine's own.
pub(crate) fn is_this_machine(url: &str) -> bool {
    Reach::of([url]).is_ok_and(|reach| reach.beyond_loopback().is_none())
}

pub(super) fn policy(at: &Checker<'_>, raw: RawPolicy) -> Result<Policy> {
    let modes = [("local", Egress::Local), ("listed", Egress::Listed), ("any", Egress::Any)];
    let egress = at.choose(&["policy", "egress"], raw.egress.as_deref().unwrap_or("local"), &modes)?;
    let ways = [("block", PromptPii::Block), ("redact", PromptPii::Redact), ("allow", PromptPii::Allow)];
    let prompt_pii =
        at.choose(&["policy", "prompt_pii"], raw.prompt_pii.as_deref().unwrap_or("block"), &ways)?;
    let mut declare = BTreeMap::new();
    for (id, raw) in raw.declare.unwrap_or_default() {
        let key = ["policy", "declare", id.as_str()];
        let fix = "a declaration has an `owner` and a `licence`";
        let digest = raw.digest.map(|text| {
            Digest::try_from(text)
                .map_err(|cause| at.bad(&key, cause).fix("write the 64 digits of its SHA-256"))
        });
        let declaration = Declaration {
            owner: at.need(&key, raw.owner, fix)?,
            licence: at.need(&key, raw.licence.or(raw.license), fix)?,
            digest: digest.transpose()?,
        };
        declare.insert(id, declaration);
    }
    let class = |(name, raw): (String, RawDataClass)| {
        let owners = raw.owners.unwrap_or_default();
        (name, DataClass { owners, jurisdictions: raw.jurisdictions.unwrap_or_default() })
    };
    Ok(Policy {
        egress,
        listed: raw.listed.unwrap_or_default(),
        accept: raw.accept.unwrap_or_default(),
        override_reason: raw.override_reason.filter(|reason| !reason.trim().is_empty()),
        register: raw.register,
        licence_files: raw.licence_files.unwrap_or_default(),
        prompt_pii,
        data_classes: raw.data_classes.unwrap_or_default().into_iter().map(class).collect(),
        declare,
    })
}

#[cfg(test)]
mod tests {
    use crate::recipe::{load, loaded};

    const WIRE: &str = r#"
        [teacher]
        kind = "openai"
        model = "us:teacher"
        endpoints = [
            { base_url = "https://eu.example/v1", owner = "us", jurisdiction = "EU" },
            { base_url = "https://other.example/v1", owner = "them" },
            { base_url = "http://127.0.0.1:8080/v1" },
        ]
        [prompts]
        path = "p.jsonl"
        data_class = "internal"
        [policy]
        egress = "any"
        [policy.data_classes.internal]
        owners = ["us"]
        jurisdictions = ["EU", "CH"]
    "#;

    #[test]
    fn data_goes_only_to_whom_its_class_allows() {
        let recipe = loaded(WIRE, &[]);
        let wire = recipe.teacher.as_ref().unwrap().wire.as_ref().unwrap();
        let refused = |class: Option<&str>, i: usize| recipe.policy.refuses(class, &wire.endpoints[i]);
        assert_eq!(refused(Some("internal"), 0), None);
        assert!(refused(Some("internal"), 1).unwrap().contains("owner `them`"));
        assert_eq!(refused(Some("internal"), 2), None, "this machine is nobody else");
        assert!(refused(Some("health"), 0).unwrap().contains("does not say"));
        assert_eq!(refused(None, 1), None);
        let public = load(WIRE, &["prompts.data_class=public"]).unwrap();
        assert_eq!(public.prompts.data_class, None);
    }
}
