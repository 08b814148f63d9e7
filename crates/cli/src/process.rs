//! Runs one program with limits: what it reads, how long it may take, how much it may say.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::failure::{Exit, Failure};
use crate::recipe::Source;

/// Of what a program says, so much of its beginning and of its end is kept; the rest is read and dropped, so that it does not
/// wait for a reader.
const END_BYTES: usize = 64 << 10;
/// A program that says more than this is ended.
const FLOOD_BYTES_MAX: usize = 16 << 20;
/// How often a running program is looked at.
const LOOK: Duration = Duration::from_millis(3);
/// How long its last words are waited for after its end: a program that it left behind may hold the pipe.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How a program ended.
pub(crate) enum End {
    Exited(ExitStatus),
    TimedOut,
    Flooded,
}

pub(crate) struct Outcome {
    pub(crate) end: End,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

/// Runs a program in a group of its own and ends all of the group at the limit.
pub(crate) fn run(mut command: Command, input: Vec<u8>, time: Duration) -> std::io::Result<Outcome> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn()?;
    let started = Instant::now();
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input closes it; that is its own affair.
        std::thread::spawn(move || drop(stdin.write_all(&input)));
    }
    let stdout = child.stdout.take().map(kept);
    let stderr = child.stderr.take().map(kept);
    let end = loop {
        if let Some(status) = child.try_wait()? {
            break End::Exited(status);
        }
        if [&stdout, &stderr].into_iter().flatten().any(|said| said.flooded.try_recv().is_ok()) {
            break End::Flooded;
        }
        if started.elapsed() >= time {
            break End::TimedOut;
        }
        std::thread::sleep(LOOK);
    };
    end_group(&mut child);
    let words = |said: Option<Said>| {
        said.and_then(|said| said.kept.recv_timeout(LAST_WORDS).ok()).unwrap_or_default()
    };
    Ok(Outcome { end, stdout: words(stdout), stderr: words(stderr) })
}

/// Whatever the program started and left in its group ends with it.
fn end_group(child: &mut Child) {
    if let Ok(id) = i32::try_from(child.id()) {
        // Nobody may be left in it.
        let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
    }
    let _ = child.wait();
}

struct Said {
    kept: Receiver<Vec<u8>>,
    flooded: Receiver<()>,
}

/// Reads a pipe to its end beside us.
fn kept(mut pipe: impl Read + Send + 'static) -> Said {
    let (send_kept, kept) = channel();
    let (send_flood, flooded) = channel();
    std::thread::spawn(move || {
        let (mut words, mut seen, mut buffer) = (Vec::new(), 0, [0; 8192]);
        while let Ok(n) = pipe.read(&mut buffer) {
            if n == 0 {
                break;
            }
            seen += n;
            words.extend_from_slice(&buffer[..n]);
            if words.len() > 4 * END_BYTES {
                words.drain(END_BYTES..words.len() - END_BYTES);
            }
            if seen > FLOOD_BYTES_MAX {
                let _ = send_flood.send(());
                break;
            }
        }
        // The receiver may have waited long enough.
        let _ = send_kept.send(words);
    });
    Said { kept, flooded }
}

/// The program of a recipe's command, and its words. A path is looked for beside the recipe, a bare name in `PATH`.
pub(crate) fn located(source: &Source, command: &[String]) -> (PathBuf, Vec<String>) {
    let (first, words) =
        command.split_first().map_or(("", &[][..]), |(first, words)| (first.as_str(), words));
    let path = if first.contains('/') { source.resolve_path(first) } else { PathBuf::from(first) };
    let program =
        if path.components().count() > 1 { std::path::absolute(&path).unwrap_or(path) } else { path };
    (program, words.to_vec())
}

/// A command whose environment has `PATH` and nothing else, so no keys.
pub(crate) fn bare(program: &Path, words: &[String]) -> Command {
    let mut command = Command::new(program);
    command.args(words).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

/// Nobody who started this program said that the recipe's command may run.
pub(crate) fn not_allowed(words: &[String], place: String, when: &str) -> Failure {
    Failure::new(Exit::Policy, "the recipe asks to run a command on this machine")
        .code("command-not-allowed")
        .at(place)
        .detail(format!("it would run `{}` {when}", words.join(" ")))
        .fix("look at what it runs; if it may, say `--allow-commands`")
}

/// The first line of what was said, harmless and short.
pub(crate) fn first_line(said: &[u8]) -> String {
    const CHARS_MAX: usize = 160;
    let text = String::from_utf8_lossy(said);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("");
    line.chars().take(CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The end was lost, and with it the word by which a program says that it passed.
    #[test]
    fn beginning_and_end_of_much_output_are_kept() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo first; head -c 1000000 /dev/zero | tr '\\0' x; echo; echo last"]);
        let outcome = run(command, Vec::new(), Duration::from_secs(60)).expect("it runs");
        assert!(matches!(outcome.end, End::Exited(status) if status.success()));
        assert!(outcome.stdout.starts_with(b"first\n") && outcome.stdout.ends_with(b"x\nlast\n"));
        assert!(outcome.stdout.len() < 5 * END_BYTES, "{}", outcome.stdout.len());
    }
}
