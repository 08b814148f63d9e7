//! The verifier `code`: the Python of a reply passes the prompt's tests, in a sandbox or not at all.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use stillroom_core::{Digest, Message, Prompt};
use stillroom_corpus::{Verdict, Verifier};

use crate::process::{End, Outcome, first_line, run};

/// Sets the sandbox up, as the namespace's root: a file system of what a program needs to run, read-only, in memory that goes
/// with it. Then gives up every right that it has over the namespace, and takes the limits. `/proc` is there only as long as
/// `umount` wants it.
///
/// `$1`: bytes of memory; `$2`: seconds of CPU; `$3`: the interpreter; `$4`: where it is installed.
const SETUP: &str = r#"
set -eu
mount --make-rprivate /
mount -t tmpfs -o size=32m,mode=0755,nosuid,nodev sandbox /tmp
cd /tmp
mkdir old tmp dev proc
chmod 1777 tmp
for from in /usr /bin /sbin /lib /lib32 /lib64 /etc/ld.so.cache "$4"; do
    if [ -L "$from" ]; then cp -P "$from" ".$from"
    elif [ -d "$from" ] && [ ! -e ".$from" ]; then
        mkdir -p ".$from"; mount --bind "$from" ".$from"; mount -o remount,bind,ro,nosuid,nodev ".$from"
    elif [ -f "$from" ] && [ ! -e ".$from" ]; then
        mkdir -p ".$(dirname "$from")"; cp "$from" ".$from"
    fi
done
for device in null zero urandom; do : > "dev/$device"; mount --bind "/dev/$device" "dev/$device"; done
mount -t proc proc proc 2>/dev/null || mount --rbind /proc proc
pivot_root . old
cd /
umount -l /old
umount -l /proc
cd /tmp
exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all --ambient-caps=-all -- \
    prlimit --as="$1" --cpu="$2" --nproc=32 --fsize=16777216 --nofile=64 --core=0 -- "$3" -I -
"#;
/// Of a group of processes, its memory counts for each.
const MIB: u64 = 1 << 20;
/// How long the sandbox itself may take beside the program.
const OVERHEAD: Duration = Duration::from_secs(2);

/// Runs Python that is not trusted: no network, no processes but its own, no files but the system's and those read-only.
pub(super) struct CodeVerifier {
    interpreter: PathBuf,
    time: Duration,
    memory_mb: usize,
}

impl CodeVerifier {
    /// A verifier whose sandbox works here.
    ///
    /// # Errors
    /// Says what there is no sandbox for.
    pub(super) fn new(time: Duration, memory_mb: usize) -> Result<CodeVerifier, String> {
        let interpreter = python().ok_or("there is no `python3`")?;
        let verifier = CodeVerifier { interpreter, time, memory_mb };
        let outcome =
            verifier.run("print('ready')".into()).map_err(|e| format!("`unshare` cannot be run: {e}"))?;
        match outcome.stdout.as_slice() {
            b"ready\n" => Ok(verifier),
            _ => Err(format!("namespaces cannot be had: {}", first_line(&outcome.stderr))),
        }
    }

    fn run(&self, program: String) -> std::io::Result<Outcome> {
        let mut command = Command::new("unshare");
        command.args([
            "--user",
            "--map-root-user",
            "--mount",
            "--net",
            "--pid",
            "--ipc",
            "--uts",
            "--fork",
            "--kill-child",
        ]);
        let prefix = self.interpreter.parent().and_then(|bin| bin.parent()).unwrap_or(&self.interpreter);
        let bytes = (self.memory_mb as u64 * MIB).to_string();
        let seconds = cpu_seconds(self.time).to_string();
        command
            .args(["--", "sh", "-c", SETUP, "sandbox", &bytes, &seconds])
            .arg(&self.interpreter)
            .arg(prefix);
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
            .env("LANG", "C.UTF-8")
            .env("HOME", "/tmp");
        run(command, program.into_bytes(), self.time + OVERHEAD)
    }
}

/// Whole seconds are what the system counts: no fewer than the time allows.
fn cpu_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// The interpreter itself, never a link or a wrapper in somebody's home.
fn python() -> Option<PathBuf> {
    ["/usr/bin/python3", "/usr/local/bin/python3"]
        .iter()
        .filter_map(|path| std::fs::canonicalize(path).ok())
        .find(|path| path.starts_with("/usr"))
}

impl Verifier for CodeVerifier {
    fn name(&self) -> &'static str {
        "code"
    }

    fn verify(&self, prompt: &Prompt, reply: &Message) -> Verdict {
        let Some(tests) = prompt.answer.as_deref().filter(|tests| !tests.trim().is_empty()) else {
            return Verdict::wrong("the prompt has no tests as its answer");
        };
        let Some(code) = code_of(&reply.content) else { return Verdict::wrong("no code in the reply") };
        // A program that ends itself before its tests has not passed them: only their end says this word.
        let word = word_of(prompt, code);
        let program = format!("{code}\n\n{tests}\n\nprint({word:?})\n");
        match self.run(program) {
            Err(error) => Verdict::wrong(format!("the sandbox cannot be run: {error}")),
            Ok(outcome) => self.judge(&outcome, &word),
        }
    }

    fn answer(&self, _: &Message) -> Option<String> {
        None
    }
}

impl CodeVerifier {
    fn judge(&self, outcome: &Outcome, word: &str) -> Verdict {
        match &outcome.end {
            End::TimedOut => Verdict::wrong(format!("took longer than {} s", self.time.as_secs_f64())),
            End::Flooded => Verdict::wrong("says too much"),
            End::Exited(status) if status.success() => {
                let said = String::from_utf8_lossy(&outcome.stdout);
                match said.trim_end().ends_with(word) {
                    true => Verdict::right(),
                    false => Verdict::wrong("ended before its tests did"),
                }
            }
            // Python says the error in its last line.
            End::Exited(_) => {
                let said = String::from_utf8_lossy(&outcome.stderr);
                let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("").to_owned();
                match last.is_empty() {
                    true => Verdict::wrong("ended by a limit"),
                    false => Verdict::wrong(first_line(last.as_bytes())),
                }
            }
        }
    }
}

/// Another word for each prompt and reply, the same each time.
fn word_of(prompt: &Prompt, code: &str) -> String {
    let digest = Digest::of(format!("{}\0{code}", prompt.id).as_bytes()).to_string();
    format!("passed-{}", &digest[..16])
}

/// The last fenced block of a reply that says Python or nothing; a reply without a fence is code as a whole.
fn code_of(reply: &str) -> Option<&str> {
    if !reply.contains("```") {
        return Some(reply.trim()).filter(|code| !code.is_empty());
    }
    let blocks = reply.split("```").skip(1).step_by(2);
    let python = blocks.filter_map(|block| {
        let (language, code) = block.split_once('\n')?;
        ["", "python", "python3", "py"]
            .contains(&language.trim().to_ascii_lowercase().as_str())
            .then_some(code)
    });
    python.last().map(str::trim).filter(|code| !code.is_empty())
}

#[cfg(test)]
mod tests {
    use stillroom_core::Role;

    use super::*;

    #[test]
    fn the_last_block_of_python_is_the_code() {
        for (reply, code) in [
            ("x = 1", Some("x = 1")),
            ("Try:\n```python\nx = 1\n```\nor\n```py\nx = 2\n```\nRun\n```bash\nls\n```", Some("x = 2")),
            ("```\nx = 1", Some("x = 1")),
            ("```json\n{}\n```", None),
            ("", None),
        ] {
            assert_eq!(code_of(reply), code, "{reply}");
        }
    }

    #[test]
    fn the_time_of_the_processor_is_no_less_than_the_time() {
        let seconds = [0.1, 1.0, 1.5, 10.0].map(|s| cpu_seconds(Duration::from_secs_f64(s)));
        assert_eq!(seconds, [1, 1, 2, 10]);
    }

    /// Where the system gives namespaces and has Python, each of these has to hold; elsewhere nothing is run.
    #[test]
    fn code_runs_within_its_limits_or_not_at_all() {
        let verifier = match CodeVerifier::new(Duration::from_secs(2), 256) {
            Ok(verifier) => verifier,
            Err(reason) => {
                let namespaces = Command::new("unshare").args(["--user", "--net", "true"]).status();
                let possible = python().is_some() && namespaces.is_ok_and(|status| status.success());
                return assert!(!possible, "no sandbox, though there could be one: {reason}");
            }
        };
        let judge = |code: &str| {
            let prompt = Prompt {
                id: "1".into(),
                messages: vec![],
                answer: Some("assert add(2, 3) == 5".into()),
                target: None,
            };
            let verdict =
                verifier.verify(&prompt, &Message::new(Role::Assistant, format!("```python\n{code}\n```")));
            (verdict.correct, verdict.reason)
        };
        let add = "def add(a, b):\n    return a + b\n";
        assert_eq!(judge(add), (true, "right answer".into()));
        let wrong = |code: &str, said: &str| {
            let (correct, reason) = judge(code);
            assert!(!correct && reason.contains(said), "{code}: {reason}");
        };
        wrong("def add(a, b):\n    return a - b", "AssertionError");
        wrong("import os\nos._exit(0)", "ended before its tests");
        wrong("raise SystemExit(0)", "ended before its tests");
        assert_eq!(judge(&format!("{add}print('x' * 1000000)")), (true, "right answer".into()));
        wrong("while True: pass", "");
        wrong("import time\ntime.sleep(60)", "took longer than 2 s");
        wrong("x = bytearray(1 << 30)", "MemoryError");
        wrong("while True: print('x' * 100000)", "");
        wrong(&format!("{add}import socket\nsocket.create_connection(('1.1.1.1', 53), 1)"), "OSError");
        wrong(&format!("{add}open('/usr/x', 'w')"), "Error");
        wrong(&format!("{add}open('/etc/passwd')"), "FileNotFoundError");
        wrong(&format!("{add}import os\nassert os.listdir('/root')"), "FileNotFoundError");
        wrong(&format!("{add}import os\nwhile True: os.fork()"), "");
        wrong(
            &format!(
                "{add}import subprocess\nsubprocess.run(['mount', '-o', 'remount,rw', '/usr'], check=True)"
            ),
            "Error",
        );
    }
}
