//! Energy by the CPU's own counters (RAPL), as Linux offers them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::measured::Measured;

const POWERCAP: &str = "/sys/class/powercap";

/// Measures the energy of all CPU packages from [`start`](EnergyMeter::start) to
/// [`stop`](EnergyMeter::stop), everything that runs on the machine included.
///
/// The counters wrap (after some 65 kJ to 260 kJ); [`sample`](EnergyMeter::sample) between start and
/// stop, at least every few minutes, keeps count of that.
pub struct EnergyMeter {
    packages: Result<Vec<Package>, String>,
}

struct Package {
    counter: PathBuf,
    range_uj: u64,
    last_uj: u64,
    total_uj: u64,
}

impl EnergyMeter {
    pub fn start() -> EnergyMeter {
        EnergyMeter::start_in(Path::new(POWERCAP))
    }

    /// Reads `intel-rapl:N` folders (AMD's are named so too) below another folder.
    pub fn start_in(powercap: &Path) -> EnergyMeter {
        EnergyMeter { packages: packages(powercap) }
    }

    /// Takes the counters' advance since the last look into account.
    pub fn sample(&mut self) {
        let Ok(packages) = &mut self.packages else { return };
        let failure = packages.iter_mut().find_map(|package| package.advance().err());
        if let Some(reason) = failure {
            self.packages = Err(reason);
        }
    }

    /// Joules since the start, or why they are not known.
    pub fn stop(mut self) -> Measured<f64> {
        self.sample();
        match self.packages {
            Ok(packages) => Measured::Value(packages.iter().map(|p| p.total_uj as f64).sum::<f64>() * 1e-6),
            Err(reason) => Measured::NotMeasured(reason),
        }
    }
}

impl Package {
    fn advance(&mut self) -> Result<(), String> {
        let now_uj = read_number(&self.counter)?;
        let advance = match now_uj.checked_sub(self.last_uj) {
            Some(advance) => advance,
            None => now_uj + self.range_uj.saturating_sub(self.last_uj),
        };
        self.total_uj = self.total_uj.saturating_add(advance);
        self.last_uj = now_uj;
        Ok(())
    }
}

/// The top-level zones: `intel-rapl:0`, not `intel-rapl:0:1`, which is part of it.
fn packages(powercap: &Path) -> Result<Vec<Package>, String> {
    let none = || format!("no energy counters of the CPU under `{}`", powercap.display());
    let entries = fs::read_dir(powercap).map_err(|_| none())?;
    let mut zones: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let number = name.strip_prefix("intel-rapl:").unwrap_or_default();
            !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
        })
        // `psys` counts the packages again, with the rest of the board.
        .filter(|path| fs::read_to_string(path.join("name")).is_ok_and(|name| name.starts_with("package")))
        .collect();
    zones.sort();
    if zones.is_empty() {
        return Err(none());
    }
    zones
        .into_iter()
        .map(|zone| {
            let counter = zone.join("energy_uj");
            let last_uj = read_number(&counter)?;
            let range_uj = read_number(&zone.join("max_energy_range_uj"))?;
            Ok(Package { counter, range_uj, last_uj, total_uj: 0 })
        })
        .collect()
}

fn read_number(path: &Path) -> Result<u64, String> {
    let text = fs::read_to_string(path)
        .map_err(|error| format!("`{}` is not readable ({})", path.display(), error.kind()))?;
    text.trim().parse().map_err(|_| format!("`{}` holds no number", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(zone: &Path, energy_uj: u64) {
        fs::write(zone.join("energy_uj"), format!("{energy_uj}\n")).unwrap();
    }

    fn zone(root: &Path, folder: &str, name: &str) -> PathBuf {
        let zone = root.join(folder);
        fs::create_dir(&zone).unwrap();
        fs::write(zone.join("name"), name).unwrap();
        fs::write(zone.join("max_energy_range_uj"), "1000000").unwrap();
        write(&zone, 900_000);
        zone
    }

    #[test]
    fn packages_are_summed_across_a_wrap_and_parts_are_not_counted_twice() {
        let root = tempfile::tempdir().unwrap();
        let first = zone(root.path(), "intel-rapl:0", "package-0\n");
        let second = zone(root.path(), "intel-rapl:1", "package-1\n");
        let core = zone(root.path(), "intel-rapl:0:0", "core\n");
        let board = zone(root.path(), "intel-rapl:2", "psys\n");
        let mut meter = EnergyMeter::start_in(root.path());
        write(&first, 100_000);
        write(&second, 950_000);
        [&core, &board].iter().for_each(|zone| write(zone, 990_000));
        meter.sample();
        write(&first, 150_000);
        let joules = *meter.stop().value().unwrap();
        assert!((joules - 0.3).abs() < 1e-12, "{joules}");
    }

    #[test]
    fn missing_or_silent_counters_are_a_reason_not_a_zero() {
        let root = tempfile::tempdir().unwrap();
        let reason = |meter: EnergyMeter| meter.stop().reason().unwrap().to_string();
        assert!(reason(EnergyMeter::start_in(&root.path().join("absent"))).contains("no energy counters"));
        assert!(reason(EnergyMeter::start_in(root.path())).contains("no energy counters"));
        let first = zone(root.path(), "intel-rapl:0", "package-0");
        let meter = EnergyMeter::start_in(root.path());
        fs::write(first.join("energy_uj"), "lots").unwrap();
        assert!(reason(meter).contains("holds no number"));
    }
}
