//! How a failure reaches the user: code, cause, place, fix and the next command; and its exit code.

use std::fmt;

use stillroom_core::ErrorKind;

use crate::terminal::harmless;

/// Exit codes that scripts may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Failed = 1,
    Usage = 2,
    BadData = 65,
    Io = 74,
    TryLater = 75,
    Policy = 77,
    BadRecipe = 78,
    Interrupted = 130,
}

impl From<ErrorKind> for Exit {
    fn from(kind: ErrorKind) -> Exit {
        match kind {
            ErrorKind::Failed => Exit::Failed,
            ErrorKind::BadData => Exit::BadData,
            ErrorKind::Io => Exit::Io,
            ErrorKind::TryLater => Exit::TryLater,
            ErrorKind::Policy => Exit::Policy,
            ErrorKind::BadRecipe => Exit::BadRecipe,
        }
    }
}

impl Exit {
    /// The code in brackets after `error` where nothing more particular is known.
    fn code(self) -> &'static str {
        match self {
            Exit::Failed => "failed",
            Exit::Usage => "usage",
            Exit::BadData => "bad-data",
            Exit::Io => "io",
            Exit::TryLater => "try-later",
            Exit::Policy => "policy",
            Exit::BadRecipe => "bad-recipe",
            Exit::Interrupted => "interrupted",
        }
    }
}

/// A failure as the user sees it.
#[derive(Debug)]
pub(crate) struct Failure(Box<Parts>);

#[derive(Debug)]
struct Parts {
    exit: Exit,
    code: &'static str,
    cause: String,
    place: Option<String>,
    details: Vec<String>,
    fix: Option<String>,
    next: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, cause: impl Into<String>) -> Failure {
        Failure(Box::new(Parts {
            exit,
            code: exit.code(),
            cause: cause.into(),
            place: None,
            details: Vec::new(),
            fix: None,
            next: None,
        }))
    }

    pub(crate) fn exit(&self) -> Exit {
        self.0.exit
    }

    /// A more particular code than the exit code's own.
    pub(crate) fn code(mut self, code: &'static str) -> Failure {
        self.0.code = code;
        self
    }

    /// Where: `recipes/x.toml:12`, a path, a flag. The innermost place wins.
    pub(crate) fn at(mut self, place: impl Into<String>) -> Failure {
        self.0.place.get_or_insert(place.into());
        self
    }

    /// A line between the place and the fix.
    pub(crate) fn detail(mut self, line: impl Into<String>) -> Failure {
        self.0.details.push(line.into());
        self
    }

    /// What the user can do; the innermost advice wins.
    pub(crate) fn fix(mut self, fix: impl Into<String>) -> Failure {
        self.0.fix.get_or_insert(fix.into());
        self
    }

    /// The command to type next; the innermost wins.
    pub(crate) fn next(mut self, command: impl Into<String>) -> Failure {
        self.0.next.get_or_insert(command.into());
        self
    }

    /// From an error of another crate: its kind gives the exit code, its sources the rest of the cause.
    pub(crate) fn of(error: &dyn std::error::Error, kind: ErrorKind, fix: Option<String>) -> Failure {
        let mut cause = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            let text = inner.to_string();
            if !cause.contains(&text) {
                cause.push_str(": ");
                cause.push_str(&text);
            }
            source = inner.source();
        }
        let general = match kind {
            ErrorKind::Io => Some("check that the path is there and can be read and written"),
            ErrorKind::BadData => Some("take the file anew from where it came"),
            _ => None,
        };
        let failure = Failure::new(Exit::from(kind), cause);
        match fix.or(general.map(str::to_owned)) {
            Some(fix) => failure.fix(fix),
            None => failure,
        }
    }

    /// Reading or writing `path` failed.
    pub(crate) fn io(action: &str, path: &std::path::Path, error: &std::io::Error) -> Failure {
        let cause = match error.kind() {
            std::io::ErrorKind::NotFound => format!("cannot {action} `{}`: no such file", path.display()),
            std::io::ErrorKind::PermissionDenied => {
                format!("cannot {action} `{}`: permission denied", path.display())
            }
            _ => format!("cannot {action} `{}`: {error}", path.display()),
        };
        let failure = Failure::new(Exit::Io, cause);
        match error.kind() {
            std::io::ErrorKind::NotFound => {
                failure.fix("check the path; it is taken from the working directory")
            }
            std::io::ErrorKind::StorageFull => failure.fix("free some disk space, then repeat the command"),
            _ => failure.fix("check that the path can be read and written"),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parts { code, cause, place, details, fix, next, .. } = &*self.0;
        write!(f, "error[{code}]: {}", harmless(cause))?;
        if let Some(place) = place {
            write!(f, "\n  --> {}", harmless(place))?;
        }
        for line in details {
            write!(f, "\n  {}", harmless(line))?;
        }
        if let Some(fix) = fix {
            write!(f, "\n  fix: {}", harmless(fix))?;
        }
        if let Some(next) = next {
            write!(f, "\n  next: {}", harmless(next))?;
        }
        Ok(())
    }
}

impl From<stillroom_formats::FormatError> for Failure {
    fn from(error: stillroom_formats::FormatError) -> Failure {
        Failure::of(&error, error.kind(), error.fix())
    }
}

impl From<stillroom_model::ModelError> for Failure {
    fn from(error: stillroom_model::ModelError) -> Failure {
        Failure::of(&error, error.kind(), error.fix())
    }
}

impl From<stillroom_store::StoreError> for Failure {
    fn from(error: stillroom_store::StoreError) -> Failure {
        Failure::of(&error, error.kind(), error.fix())
    }
}

impl From<stillroom_corpus::CorpusError> for Failure {
    fn from(error: stillroom_corpus::CorpusError) -> Failure {
        Failure::of(&error, error.kind(), error.fix())
    }
}

impl From<stillroom_distill::DistillError> for Failure {
    fn from(error: stillroom_distill::DistillError) -> Failure {
        Failure::of(&error, error.kind(), error.fix())
    }
}

impl From<stillroom_evaluate::EvaluateError> for Failure {
    fn from(error: stillroom_evaluate::EvaluateError) -> Failure {
        Failure::of(&error, error.kind(), error.fix())
    }
}

impl From<stillroom_governance::GovernanceError> for Failure {
    fn from(error: stillroom_governance::GovernanceError) -> Failure {
        Failure::of(&error, error.kind(), error.fix())
    }
}

impl From<stillroom_teacher::TeacherError> for Failure {
    fn from(error: stillroom_teacher::TeacherError) -> Failure {
        Failure::of(&error, error.kind(), error.fix())
    }
}

impl From<stillroom_serve::ServeError> for Failure {
    fn from(error: stillroom_serve::ServeError) -> Failure {
        Failure::of(&error, error.kind(), error.fix())
    }
}

/// Only stdout is written without a path.
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::new(Exit::Io, format!("cannot write to stdout: {error}"))
    }
}

pub(crate) type Result<T> = std::result::Result<T, Failure>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_code_cause_place_fix_and_next_command() {
        let failure = Failure::new(Exit::BadRecipe, "unknown key `lerning_rate`")
            .at("recipes/x.toml:12")
            .fix("did you mean `learning_rate`?")
            .fix("a later piece of advice does not replace the first")
            .next("stillroom plan recipes/x.toml");
        let expected = "error[bad-recipe]: unknown key `lerning_rate`\n  --> recipes/x.toml:12\n  \
                        fix: did you mean `learning_rate`?\n  next: stillroom plan recipes/x.toml";
        assert_eq!(failure.to_string(), expected);
    }

    #[test]
    fn foreign_text_in_a_cause_cannot_steer_the_terminal() {
        let failure = Failure::new(Exit::BadData, "name `\u{1b}[2J`").at("\u{9b}x");
        assert!(!failure.to_string().chars().any(|c| c == '\u{1b}' || c == '\u{9b}'));
    }
}
