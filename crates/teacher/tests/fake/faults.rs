//! Which fault a request gets.

use super::words::Draw;

/// How often each kind comes, as shares of all requests; the rest is answered well.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Faults {
    /// 429, always with `Retry-After`.
    pub(crate) too_many: f64,
    /// 500, 502 or 503, some with `Retry-After`.
    pub(crate) server_error: f64,
    /// Silence: at once, after the headers, or amid the reply.
    pub(crate) stall: f64,
    /// The connection ends amid the reply.
    pub(crate) cut: f64,
    pub(crate) bad_json: f64,
    /// A stream repeats chunks that carry no text. Whole bodies have no chunks and are good.
    pub(crate) repeated: f64,
    /// A stream repeats a chunk of text.
    pub(crate) repeated_text: f64,
    /// Other choices before and after the one that was asked for.
    pub(crate) extra_choices: f64,
    /// Only a choice of another index.
    pub(crate) wrong_index: f64,
    /// The reply to another request, under that one's `x-client-request-id`.
    pub(crate) wrong_id: f64,
    pub(crate) no_choices: f64,
    pub(crate) huge: f64,
    /// A request that had this many faults gets no more.
    pub(crate) per_request_max: u64,
}

/// What is wrong with a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    TooMany {
        as_date: bool,
    },
    ServerError {
        status: u16,
        retry_after: bool,
    },
    Stall(Amid),
    Cut(Amid),
    BadJson,
    Repeated,
    RepeatedText,
    ExtraChoices,
    WrongIndex,
    WrongId,
    NoChoices,
    Huge,
    /// A hostile reply, which a reader takes or refuses.
    Hostile {
        is_good: bool,
    },
}

/// Where a reply ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Amid {
    Nothing,
    Headers,
    Text,
}

impl Faults {
    pub(crate) fn none() -> Faults {
        Faults {
            too_many: 0.0,
            server_error: 0.0,
            stall: 0.0,
            cut: 0.0,
            bad_json: 0.0,
            repeated: 0.0,
            repeated_text: 0.0,
            extra_choices: 0.0,
            wrong_index: 0.0,
            wrong_id: 0.0,
            no_choices: 0.0,
            huge: 0.0,
            per_request_max: 8,
        }
    }

    /// A bad day: a third of the requests.
    pub(crate) fn usual() -> Faults {
        Faults {
            too_many: 0.20,
            server_error: 0.05,
            stall: 0.02,
            cut: 0.02,
            bad_json: 0.02,
            repeated: 0.01,
            extra_choices: 0.01,
            wrong_index: 0.005,
            wrong_id: 0.01,
            no_choices: 0.005,
            huge: 0.001,
            ..Faults::none()
        }
    }

    /// The fault of one attempt.
    pub(crate) fn draw(&self, mut draw: Draw, attempt: u64) -> Fault {
        if attempt >= self.per_request_max {
            return Fault::None;
        }
        let (which, mut how) = (draw.unit(), draw);
        let mut bound = 0.0;
        let mut within = |share: f64| {
            bound += share;
            which < bound
        };
        match () {
            () if within(self.too_many) => Fault::TooMany { as_date: how.below(8) == 0 },
            () if within(self.server_error) => {
                let status = [500, 502, 503][how.below(3) as usize];
                Fault::ServerError { status, retry_after: status == 503 && how.below(2) == 0 }
            }
            () if within(self.stall) => {
                Fault::Stall([Amid::Nothing, Amid::Headers, Amid::Text][how.below(3) as usize])
            }
            () if within(self.cut) => {
                Fault::Cut([Amid::Nothing, Amid::Text, Amid::Text][how.below(3) as usize])
            }
            () if within(self.bad_json) => Fault::BadJson,
            () if within(self.repeated) => Fault::Repeated,
            () if within(self.repeated_text) => Fault::RepeatedText,
            () if within(self.extra_choices) => Fault::ExtraChoices,
            () if within(self.wrong_index) => Fault::WrongIndex,
            () if within(self.wrong_id) => Fault::WrongId,
            () if within(self.no_choices) => Fault::NoChoices,
            () if within(self.huge) => Fault::Huge,
            () => Fault::None,
        }
    }
}

impl Fault {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Fault::None => "none",
            Fault::TooMany { as_date: false } => "too_many",
            Fault::TooMany { as_date: true } => "too_many_date",
            Fault::ServerError { retry_after: false, .. } => "server_error",
            Fault::ServerError { retry_after: true, .. } => "server_error_wait",
            Fault::Stall(Amid::Nothing) => "stall",
            Fault::Stall(Amid::Headers) => "stall_headers",
            Fault::Stall(Amid::Text) => "stall_text",
            Fault::Cut(Amid::Text) => "cut_text",
            Fault::Cut(_) => "cut",
            Fault::BadJson => "bad_json",
            Fault::Repeated => "repeated",
            Fault::RepeatedText => "repeated_text",
            Fault::ExtraChoices => "extra_choices",
            Fault::WrongIndex => "wrong_index",
            Fault::WrongId => "wrong_id",
            Fault::NoChoices => "no_choices",
            Fault::Huge => "huge",
            Fault::Hostile { is_good: true } => "hostile",
            Fault::Hostile { is_good: false } => "hostile_refused",
        }
    }

    /// Whether a careful reader gets the right reply all the same.
    pub(crate) fn is_good(self) -> bool {
        matches!(self, Fault::None | Fault::Repeated | Fault::ExtraChoices | Fault::Hostile { is_good: true })
    }
}
