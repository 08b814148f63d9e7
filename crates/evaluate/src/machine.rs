//! The machine that a run ran on.

use std::fs;

use serde::{Deserialize, Serialize};

/// What the figures of a report depend on besides the recipe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MachineFacts {
    pub cpu: String,
    pub logical_cores: u64,
    /// Threads that the engine used.
    pub threads: u64,
    /// Instruction sets and blocking that the kernels chose; weights are reproducible within one such class.
    pub kernels: String,
    pub memory_bytes: Option<u64>,
    pub os: String,
    /// Most memory that the process held at once.
    pub peak_resident_bytes: Option<u64>,
}

impl MachineFacts {
    /// Asks the operating system. `threads` and `kernels` are the engine's to say.
    pub fn read(threads: usize, kernels: impl Into<String>) -> MachineFacts {
        let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
        MachineFacts {
            cpu: cpu_name(&file("/proc/cpuinfo")).unwrap_or_else(|| std::env::consts::ARCH.to_string()),
            logical_cores: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
            threads: threads as u64,
            kernels: kernels.into(),
            memory_bytes: kilobytes(&file("/proc/meminfo"), "MemTotal:"),
            os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            peak_resident_bytes: peak_resident_bytes(),
        }
    }
}

/// Most memory that this process has held at once, where the system says so.
pub fn peak_resident_bytes() -> Option<u64> {
    kilobytes(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

fn cpu_name(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

/// Value of a `Name:  123 kB` line in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_are_read() {
        assert_eq!(kilobytes("VmPeak:\t 9 kB\nVmHWM:\t    2048 kB\n", "VmHWM:"), Some(2 << 20));
        assert_eq!(kilobytes("VmHWM: many kB", "VmHWM:"), None);
        assert_eq!(cpu_name("processor: 0\nmodel name\t: A Cpu @ 3\n"), Some("A Cpu @ 3".into()));
        assert_eq!(cpu_name(""), None);
    }
}
