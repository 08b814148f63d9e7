//! What the log of a run has of the papers that its record agrees with. Its entries are salted digests: only who has the log's
//! secret can look, and so this is for the run itself.

use std::path::Path;

use stillroom_governance::log::Kind;
use stillroom_store::{StageRecord, digest_file};

use crate::failure::{Exit, Failure, Result};
use crate::flow::logbook::{FOLDER, number_of_stage, open_entry, read_secret};
use crate::flow::{release, report};

/// The papers whose bytes the log has, as the run has them now: the decision, and what the report's stage wrote. None without the
/// secret.
pub(super) fn in_log(run: &Path) -> Result<Option<Vec<String>>> {
    let is_released = run.join("stages").join(format!("{}.json", release::STAGE)).exists();
    if !is_released || read_secret(&run.join(FOLDER))?.is_none() {
        return Ok(None);
    }
    open_entry(run, Kind::Decision, 0, None)?;
    let stage = open_entry(run, Kind::Stage, number_of_stage(report::STAGE), Some(report::STAGE))?;
    let record: StageRecord = serde_json::from_str(&stage.opening.entry)
        .map_err(|e| Failure::new(Exit::BadData, format!("the record of the stage is damaged: {e}")))?;
    let mut papers = vec!["licence.json".to_owned()];
    for output in record.outputs {
        let found = digest_file(&run.join(&output.path))?.0;
        if found != output.digest {
            let cause = format!(
                "`{}` is not what the run's log has: SHA-256 {found}, and the log says {}",
                output.path, output.digest
            );
            return Err(Failure::new(Exit::BadData, cause)
                .code("disagrees")
                .at(run.display().to_string())
                .fix("take the run from where it came, or run `stillroom release` again where it was made"));
        }
        papers.push(output.path);
    }
    Ok(Some(papers))
}
