//! What holds for clusters that keyway makes.

use std::path::{Path, PathBuf};

use crate::cluster::{MadeSettings, Profile};
use crate::host;
use crate::model::Realm;

use super::clusters::{Limits, MIN_HSMS_TO_CREATE, MOST_HSMS, limits};
use super::daemon::directory;
use super::rotation::rotation;
use super::section::Section;
use super::value::{existing_file, number, text};

const SECTION: &str = "made_clusters";

/// `Some(None)` without the section: keyway makes no clusters.
pub(super) fn made_clusters(root: &mut Section<'_>, data_dir: Option<&Path>) -> Option<Option<MadeSettings>> {
    if !root.has(SECTION) {
        return Some(None);
    }
    root.section(SECTION, |section| read(section, data_dir).map(Some))
}

fn read(section: &mut Section<'_>, data_dir: Option<&Path>) -> Option<MadeSettings> {
    let region = section.required("region", text, "name the clusters' region, such as \"us-east-1\"");
    let account = section.required("account", text, "give 12 digits, such as \"000000000000\"");
    let quota = section.defaulted("quota", 10, number(1..=1_000));
    let module = softhsm2(section);
    let home = section.optional("directory", directory);
    let rotation = rotation(section, Some(Profile::SoftHsm2));
    let min_hsms_to_create =
        section.defaulted("min_hsms_to_create", MIN_HSMS_TO_CREATE, number(MIN_HSMS_TO_CREATE.get()..=MOST_HSMS));
    let limits = limits(section);
    let Limits { pool_size, queue_limit, patience, memory_limit } = limits?;
    Some(MadeSettings {
        realm: Realm { region: region?, account: account? },
        quota: quota?,
        first: None,
        module: module?,
        directory: home?.or_else(|| Some(data_dir?.join("clusters")))?,
        rotation: rotation?,
        min_hsms_to_create: min_hsms_to_create?,
        pool_size,
        queue_limit,
        patience,
        memory_limit,
    })
}

/// The library that is named, or the one that is where distributions keep it.
fn softhsm2(section: &mut Section<'_>) -> Option<PathBuf> {
    match section.optional("softhsm2", existing_file)? {
        Some(named) => Some(named),
        None => {
            let usual = host::usual_softhsm2();
            if usual.is_none() {
                section.complain_of("softhsm2", "is missing, and SoftHSM2 is in no usual place: name its library");
            }
            usual
        }
    }
}
