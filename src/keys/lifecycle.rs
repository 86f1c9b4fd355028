//! What a key's state lets happen: AWS's table, operation by state. Pure, and the only place that decides it.
//!
//! An operation that is not named here asks no key for its state. [`KeyState::after`](crate::model::KeyState::after) says
//! where those lead that change it.

use crate::model::ShownState;

/// What is done with a key, by the name of its call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    /// Every call of `CryptoService` that names a key, or takes what one has made; and GetPublicKey.
    Use,
    DescribeKey,
    EnableKey,
    DisableKey,
    ScheduleKeyDeletion,
    CancelKeyDeletion,
    UpdateKeyDescription,
    CreateAlias,
    /// Of the key that the alias is to stand for.
    UpdateAlias,
    ListAliases,
    TagResource,
    UntagResource,
    ListResourceTags,
    RotateKeyOnDemand,
    EnableKeyRotation,
    DisableKeyRotation,
    ListKeyVersions,
}

/// Why an operation is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Nobody was told of the key yet.
    NotFound,
    Disabled,
    PendingDeletion,
    NotPendingDeletion,
    /// Its key store is not connected.
    Unavailable,
}

type Cell = Result<(), Refusal>;

const OK: Cell = Ok(());
const NO: Cell = Err(Refusal::NotFound);
const OFF: Cell = Err(Refusal::Disabled);
const END: Cell = Err(Refusal::PendingDeletion);
const NOT: Cell = Err(Refusal::NotPendingDeletion);
const OUT: Cell = Err(Refusal::Unavailable);

/// By the states in the order of [`ShownState::ALL`].
#[rustfmt::skip]
const TABLE: [(Operation, [Cell; 5]); 17] = [
    //                                 CREATING ENABLED DISABLED PENDING_DELETION UNAVAILABLE
    (Operation::Use,                  [NO,      OK,     OFF,     END,             OUT]),
    (Operation::DescribeKey,          [OK,      OK,     OK,      OK,              OK]),
    (Operation::EnableKey,            [NO,      OK,     OK,      END,             OK]),
    (Operation::DisableKey,           [NO,      OK,     OK,      END,             OK]),
    (Operation::ScheduleKeyDeletion,  [NO,      OK,     OK,      END,             OK]),
    (Operation::CancelKeyDeletion,    [NO,      NOT,    NOT,     OK,              NOT]),
    (Operation::UpdateKeyDescription, [NO,      OK,     OK,      END,             OK]),
    (Operation::CreateAlias,          [NO,      OK,     OK,      END,             OK]),
    (Operation::UpdateAlias,          [NO,      OK,     OK,      END,             OK]),
    (Operation::ListAliases,          [NO,      OK,     OK,      OK,              OK]),
    (Operation::TagResource,          [NO,      OK,     OK,      END,             OK]),
    (Operation::UntagResource,        [NO,      OK,     OK,      END,             OK]),
    (Operation::ListResourceTags,     [NO,      OK,     OK,      OK,              OK]),
    (Operation::RotateKeyOnDemand,    [NO,      OK,     OFF,     END,             OUT]),
    (Operation::EnableKeyRotation,    [NO,      OK,     OFF,     END,             OK]),
    (Operation::DisableKeyRotation,   [NO,      OK,     OFF,     END,             OK]),
    (Operation::ListKeyVersions,      [NO,      OK,     OK,      OK,              OK]),
];

/// Whether a key in this state lets the operation happen.
pub(super) fn check(operation: Operation, state: ShownState) -> Result<(), Refusal> {
    let row = TABLE.iter().find(|(listed, _)| *listed == operation);
    let (_, cells) = row.expect("every operation has a row");
    match state {
        ShownState::Creating => cells[0],
        ShownState::Enabled => cells[1],
        ShownState::Disabled => cells[2],
        ShownState::PendingDeletion => cells[3],
        ShownState::Unavailable => cells[4],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{KeyChange, KeyState};

    const KEYS_PAGE: &str = include_str!("../../docs/keys.md");

    /// The page has the rows and columns that the table has, and says of each cell what it is.
    #[test]
    fn every_cell_of_the_table_is_as_the_document_has_it() {
        let told = |cell: Cell| match cell {
            Ok(()) => "yes",
            Err(Refusal::NotFound) => "`NOT_FOUND`",
            Err(Refusal::Disabled) => "`DISABLED`",
            Err(Refusal::PendingDeletion) => "pending: `KMS_INVALID_STATE`",
            Err(Refusal::NotPendingDeletion) => "not pending: `KMS_INVALID_STATE`",
            Err(Refusal::Unavailable) => "`KMS_INVALID_STATE`",
        };
        let page: Vec<Vec<&str>> = KEYS_PAGE
            .lines()
            .skip_while(|line| !line.starts_with("| Call |"))
            .take_while(|line| line.starts_with('|'))
            .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
            .collect();
        let states: Vec<String> = ShownState::ALL.iter().map(|state| format!("`{state}`")).collect();
        assert_eq!(page[0][1..], states, "the columns");
        for (operation, cells) in TABLE {
            let name = match operation {
                Operation::Use => "every call of `CryptoService` on a key".to_owned(),
                other => format!("`{other:?}`"),
            };
            let row =
                page.iter().find(|row| row[0] == name).unwrap_or_else(|| panic!("docs/keys.md has no row {name}"));
            assert_eq!(row[1..], cells.map(told), "{name}");
        }
        // Two lines of heading, and deleting an alias, for which no key is asked.
        assert_eq!(page.len(), TABLE.len() + 3, "a row that no operation has");
    }

    #[test]
    fn every_operation_has_one_row_that_is_found() {
        for (at, (operation, cells)) in TABLE.iter().enumerate() {
            assert!(TABLE[..at].iter().all(|(other, _)| other != operation), "{operation:?} stands twice");
            let found = ShownState::ALL.map(|state| check(*operation, state));
            assert_eq!(found, *cells, "{operation:?}");
        }
    }

    /// AWS's page of key states, in its own words: `docs/keys.md` could repeat a slip of the table, this does not.
    #[test]
    fn the_table_is_aws_own() {
        use Operation as O;
        let allowed = |operation, state| check(operation, state).is_ok();
        for state in [ShownState::Enabled, ShownState::Disabled, ShownState::PendingDeletion, ShownState::Unavailable] {
            let pending = state == ShownState::PendingDeletion;
            assert_eq!(allowed(O::Use, state), state == ShownState::Enabled, "{state}");
            assert_eq!(allowed(O::CancelKeyDeletion, state), pending, "{state}");
            for read in [O::DescribeKey, O::ListAliases, O::ListResourceTags, O::ListKeyVersions] {
                assert!(allowed(read, state), "{read:?} {state}");
            }
            for change in [
                O::EnableKey,
                O::DisableKey,
                O::ScheduleKeyDeletion,
                O::UpdateKeyDescription,
                O::CreateAlias,
                O::UpdateAlias,
                O::TagResource,
                O::UntagResource,
            ] {
                assert_eq!(allowed(change, state), !pending, "{change:?} {state}");
            }
            // Of a key that AWS itself can rotate, which none in a key store of AWS's is.
            assert_eq!(allowed(O::RotateKeyOnDemand, state), state == ShownState::Enabled, "{state}");
            let may_be_on = !pending && state != ShownState::Disabled;
            for switch in [O::EnableKeyRotation, O::DisableKeyRotation] {
                assert_eq!(allowed(switch, state), may_be_on, "{switch:?} {state}");
            }
        }
    }

    #[test]
    fn what_is_allowed_has_somewhere_to_lead() {
        let changes = [
            (Operation::EnableKey, KeyChange::Enable),
            (Operation::DisableKey, KeyChange::Disable),
            (Operation::ScheduleKeyDeletion, KeyChange::ScheduleDeletion),
            (Operation::CancelKeyDeletion, KeyChange::CancelDeletion),
        ];
        for (operation, change) in changes {
            for (state, is_connected) in KeyState::ALL.into_iter().flat_map(|state| [(state, true), (state, false)]) {
                let allowed = check(operation, state.shown(is_connected)).is_ok();
                assert_eq!(allowed, state.after(change).is_some(), "{operation:?} {state:?}");
            }
        }
    }
}
