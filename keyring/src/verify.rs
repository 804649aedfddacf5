//! Looking at everything, stopping at nothing.

use crate::error::KeyringError;
use crate::keyring::KeyringInfo;
use crate::master::MasterKey;
use crate::scope::DekState;
use crate::unlocked::{Unlocked, missing_lines};

/// What a verification found.
#[derive(Debug)]
pub struct VerifyReport {
    /// The root, if it could be read.
    pub info: Option<KeyringInfo>,
    /// Records whose seal is right.
    pub scopes: u64,
    /// Data keys that unwrapped and matched their check value.
    pub deks: u64,
    /// Data keys that were destroyed on purpose.
    pub destroyed: u64,
    /// Everything that is wrong; empty is good.
    pub problems: Vec<KeyringError>,
}

impl Unlocked {
    /// Checks the root, every record's seal, every data key and the sum over all records.
    pub fn verify(&self, master: &dyn MasterKey) -> VerifyReport {
        let mut report = VerifyReport { info: None, scopes: 0, deks: 0, destroyed: 0, problems: Vec::new() };
        let root = match self.root() {
            Ok(root) => root,
            Err(error) => {
                report.problems.push(error);
                return report;
            }
        };
        report.info = Some(crate::keyring::info_of(&root));
        let lines = match self.store.lines() {
            Ok(lines) => lines,
            Err(error) => {
                report.problems.push(error);
                return report;
            }
        };
        for line in missing_lines(&root.facts, &lines) {
            report.problems.push(self.no_record(line));
        }
        for &line in &lines {
            match self.scope(line) {
                Ok(scope) => {
                    report.scopes += 1;
                    self.verify_deks(&scope, master, &mut report);
                }
                Err(error) => report.problems.push(error),
            }
        }
        if report.problems.is_empty()
            && let Err(error) = self.check_sum()
        {
            report.problems.push(error);
        }
        report
    }

    fn verify_deks(&self, scope: &crate::Scope, master: &dyn MasterKey, report: &mut VerifyReport) {
        for entry in &scope.versions {
            if matches!(entry.state, DekState::Destroyed { .. }) {
                report.destroyed += 1;
                continue;
            }
            match self.dek_of(scope, entry.version, master) {
                Ok(_) => report.deks += 1,
                Err(error) => report.problems.push(error),
            }
        }
    }
}
