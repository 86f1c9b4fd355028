//! Wrong PINs, counted in a file beside the control file: a user locked stays locked when the process ends.

use std::path::{Path, PathBuf};

use cryptoki_sys::{CK_SLOT_ID, CK_USER_TYPE};

use crate::faults::pins_of;
use crate::journal;

/// The count of one user's wrong PINs: a line for each answer, of which those since the last right one count.
pub(super) struct Pins {
    file: PathBuf,
    user: String,
}

impl Pins {
    pub(super) fn of(control: &Path, slot: CK_SLOT_ID, user: CK_USER_TYPE) -> Self {
        Self { file: pins_of(control), user: format!("slot-{slot:x}.user-{user}") }
    }

    pub(super) fn wrong_in_a_row(&self) -> usize {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        let answers = text.lines().rev().filter_map(|line| line.strip_prefix(self.user.as_str())).map(str::trim);
        answers.take_while(|answer| *answer == "wrong").count()
    }

    pub(super) fn note_wrong(&self) {
        journal::append(&self.file, &format!("{} wrong", self.user));
    }

    pub(super) fn note_right(&self) {
        if self.wrong_in_a_row() > 0 {
            journal::append(&self.file, &format!("{} right", self.user));
        }
    }
}
