//! Teachers over the wire on bad days: faults, kills, power cuts, hostile replies, secrets, and where requests may go.
//!
//! Sizes are small by default; `STILLROOM_WIRE_PROMPTS`, `STILLROOM_WIRE_KILLS` and `STILLROOM_WIRE_CUTS` ask for more.

#[path = "../common/shop.rs"]
mod shop;

#[path = "../../../teacher/tests/fake/mod.rs"]
mod fake;

mod bought;
mod completions;
mod cuts;
mod desk;
mod egress;
mod endpoints;
mod faults;
mod hedges;
mod hostile;
mod kills;
mod logged;
mod plan;
mod scoring;
mod secrets;
