//! Killed at any moment, the same command goes on, buys nothing again that it had, and ends with the same bytes.

use std::path::Path;
use std::time::{Duration, Instant};

use stillroom_core::CounterRng;

use crate::bought::Interrupted;
use crate::desk::{Desk, retry_soon, size};
use crate::fake::{FakeTeacher, Faults, Options};
use crate::shop;

const PROMPTS: usize = 240;
/// Kills of one run, so that it ends some day.
const KILLS_PER_RUN: usize = 12;

/// When a run is killed.
#[derive(Clone, Copy, Debug)]
enum Point {
    After(Duration),
    /// As soon as the server's log has grown by so many bytes.
    Answered(u64),
    /// So long after a stage began.
    Stage(&'static str, Duration),
}

impl Point {
    fn draw(chance: &mut CounterRng) -> Point {
        let micros = |chance: &mut CounterRng, most| Duration::from_micros(chance.below(most));
        match chance.below(8) {
            0..=3 => Point::Answered(chance.below(30_000)),
            4 | 5 => Point::After(micros(chance, 400_000)),
            6 => Point::Stage("teach", micros(chance, 30_000)),
            _ => Point::Stage("curate", micros(chance, 8_000)),
        }
    }
}

#[test]
fn killed_at_any_moment_it_buys_nothing_twice_and_ends_with_the_same_bytes() {
    let kills = size("STILLROOM_WIRE_KILLS", 20);
    let desk = Desk::new(PROMPTS);
    let mut chance = CounterRng::new(&[5]);
    let killed = Interrupted { what: "kills", below: "", times: kills, per_run_max: KILLS_PER_RUN };
    killed.check(
        &desk,
        |seed| server(&desk, seed),
        |output, kills_max| run_to_its_end(&desk, output, &mut chance, kills_max),
    );
}

/// With faults that cost little time.
fn server(desk: &Desk, seed: u64) -> FakeTeacher {
    let faults = Faults { stall: 0.0, huge: 0.0, ..Faults::usual() };
    let log = Some(desk.path("server.jsonl"));
    FakeTeacher::start(retry_soon(Options { seed, faults, log, ..Options::default() }))
}

/// How often it was killed before it came to its end.
fn run_to_its_end(desk: &Desk, output: &str, chance: &mut CounterRng, kills_max: usize) -> usize {
    for times in 0..kills_max {
        let point = Point::draw(chance);
        if !is_killed_at(desk, &["curate", "bad.toml", "--output", output], output, point) {
            return times;
        }
    }
    desk.succeed(&["curate", "bad.toml", "--output", output]);
    kills_max
}

/// Whether the point came before the run's end.
fn is_killed_at(desk: &Desk, args: &[&str], output: &str, point: Point) -> bool {
    let (log, events) = (desk.path("server.jsonl"), desk.path(output).join("events.jsonl"));
    let (answered, stages) = (length(&log), |stage| times_started(&events, stage));
    let before = match point {
        Point::Stage(stage, _) => stages(stage),
        _ => 0,
    };
    let started = Instant::now();
    let has_come = || match point {
        Point::After(time) => started.elapsed() >= time,
        Point::Answered(bytes) => length(&log) >= answered + bytes,
        Point::Stage(stage, delay) => {
            let has_begun = stages(stage) > before;
            if has_begun {
                std::thread::sleep(delay);
            }
            has_begun
        }
    };
    shop::kill_when(shop::command(desk.dir.path(), args), has_come).1
}

fn length(path: &Path) -> u64 {
    path.metadata().map_or(0, |meta| meta.len())
}

fn times_started(events: &Path, stage: &str) -> usize {
    let text = std::fs::read(events).unwrap_or_default();
    let started = format!("\"event\":\"stage_started\",\"stage\":\"{stage}\"");
    shop::text(&text).matches(&started).count()
}
