//! What a host says of itself on a link to another host, and back into the error that it was.

use crate::link::v1::HostFault;
use crate::link::v1::host_fault::Kind;
use crate::model::HsmId;

use super::OpeningError;
use super::opening::OPENING_PATIENCE;

/// An answer in the worker's stead. Faults of the worker's own travel as they are.
pub(super) fn told(error: &OpeningError) -> HostFault {
    let kind = match error {
        OpeningError::Files { .. } | OpeningError::Spawn(_) | OpeningError::Host(_) => Kind::Host,
        OpeningError::DifferentBuild(_) => Kind::DifferentBuild,
        OpeningError::UnknownSlot(_) => Kind::UnknownSlot,
        OpeningError::SlotTaken(_) => Kind::SlotTaken,
        OpeningError::NoToken => Kind::NoToken,
        OpeningError::NoSoPin(_) => Kind::NoSoPin,
        OpeningError::SoPin(_) => Kind::SoPinUnreadable,
        OpeningError::Silent(_) => Kind::Silent,
        OpeningError::Frame(_) | OpeningError::OutOfTurn | OpeningError::Fault(_) => Kind::OutOfTurn,
        OpeningError::Ended | OpeningError::Unreachable { .. } | OpeningError::Cut { .. } => Kind::Ended,
    };
    let detail = match error {
        OpeningError::DifferentBuild(detail)
        | OpeningError::UnknownSlot(detail)
        | OpeningError::Host(detail)
        | OpeningError::SlotTaken(detail) => detail.clone(),
        OpeningError::SoPin(error) => error.to_string(),
        OpeningError::Files { path, source } => format!("{}: {source}", path.display()),
        OpeningError::Spawn(source) => format!("{error}: {source}"),
        other => other.to_string(),
    };
    HostFault { kind: kind.into(), detail }
}

/// The error that it was. What a newer node may say beyond that may have been anything.
pub(super) fn heard(fault: HostFault, hsm: &HsmId) -> OpeningError {
    match fault.kind() {
        Kind::DifferentBuild => OpeningError::DifferentBuild(fault.detail),
        Kind::UnknownSlot => OpeningError::UnknownSlot(fault.detail),
        Kind::Host => OpeningError::Host(fault.detail),
        Kind::SlotTaken => OpeningError::SlotTaken(fault.detail),
        Kind::NoToken => OpeningError::NoToken,
        Kind::NoSoPin => OpeningError::NoSoPin(hsm.clone()),
        Kind::SoPinUnreadable => OpeningError::SoPin(std::io::Error::other(fault.detail)),
        Kind::Silent => OpeningError::Silent(OPENING_PATIENCE),
        Kind::OutOfTurn => OpeningError::OutOfTurn,
        Kind::Ended | Kind::Unspecified => OpeningError::Ended,
    }
}
