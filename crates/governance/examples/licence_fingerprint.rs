//! Prints the fingerprint of licence texts, as `assets/licence_fingerprints.csv` holds them:
//! `cargo run --release -p stillroom-governance --example licence_fingerprint -- FILE…`

use stillroom_governance::{Identified, fingerprint, identify};

#[expect(clippy::print_stdout, reason = "printing is all that this example does")]
fn main() -> std::io::Result<()> {
    for path in std::env::args().skip(1) {
        let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
        let known = match identify(&text) {
            Identified::As { licence } => licence,
            Identified::Resembles { licence, first_difference } => {
                format!("resembles {licence}: {first_difference}")
            }
            _ => "unknown".to_owned(),
        };
        println!("{} {path} ({known})", fingerprint(&text));
    }
    Ok(())
}
