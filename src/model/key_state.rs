//! A key's states: what is stored, what leads from one to another, and what callers are told.

use std::fmt;

/// A key's stored state.
///
/// ```text
///                                          Disable
///   Creating ──probe answered──▶ Enabled ──────────▶ Disabled
///      │       in two zones         │  ◀──────────      │  ▲
///      │                            │      Enable       │  │ CancelDeletion
///      │            ScheduleDeletion└──────┐    ┌───────┘  │
///      │                                   ▼    ▼          │
///      └──settled: never acknowledged    PendingDeletion ──┘
///                 ▼                            │ the window has ended
///               (gone)                         ▼
///                                            (gone)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyState {
    Creating,
    Enabled,
    Disabled,
    PendingDeletion,
}

/// What callers do to a key's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyChange {
    Enable,
    Disable,
    ScheduleDeletion,
    CancelDeletion,
}

/// A key's state as callers are told it. [`ShownState::Unavailable`] is stored nowhere: it is what a key of a key store that
/// is not connected reports, whether it is enabled or disabled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ShownState {
    Creating,
    Enabled,
    Disabled,
    PendingDeletion,
    Unavailable,
}

impl KeyState {
    pub const ALL: [Self; 4] = [Self::Creating, Self::Enabled, Self::Disabled, Self::PendingDeletion];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "CREATING",
            Self::Enabled => "ENABLED",
            Self::Disabled => "DISABLED",
            Self::PendingDeletion => "PENDING_DELETION",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// Where a change leads, if the state has a way there.
    pub const fn after(self, change: KeyChange) -> Option<Self> {
        match (self, change) {
            (Self::Enabled | Self::Disabled, KeyChange::Enable) => Some(Self::Enabled),
            (Self::Enabled | Self::Disabled, KeyChange::Disable)
            | (Self::PendingDeletion, KeyChange::CancelDeletion) => Some(Self::Disabled),
            (Self::Enabled | Self::Disabled, KeyChange::ScheduleDeletion) => Some(Self::PendingDeletion),
            (Self::Creating, _)
            | (Self::PendingDeletion, KeyChange::Enable | KeyChange::Disable | KeyChange::ScheduleDeletion)
            | (Self::Enabled | Self::Disabled, KeyChange::CancelDeletion) => None,
        }
    }

    /// As callers are told it, while the key's HSMs can be used through its key store, or not.
    pub const fn shown(self, is_connected: bool) -> ShownState {
        match (self, is_connected) {
            (Self::Creating, _) => ShownState::Creating,
            (Self::PendingDeletion, _) => ShownState::PendingDeletion,
            (Self::Enabled | Self::Disabled, false) => ShownState::Unavailable,
            (Self::Enabled, true) => ShownState::Enabled,
            (Self::Disabled, true) => ShownState::Disabled,
        }
    }
}

impl ShownState {
    pub const ALL: [Self; 5] =
        [Self::Creating, Self::Enabled, Self::Disabled, Self::PendingDeletion, Self::Unavailable];

    /// The name as AWS writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "CREATING",
            Self::Enabled => "ENABLED",
            Self::Disabled => "DISABLED",
            Self::PendingDeletion => "PENDING_DELETION",
            Self::Unavailable => "UNAVAILABLE",
        }
    }
}

impl fmt::Display for ShownState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_of_the_table_of_changes() {
        use KeyChange as C;
        let (no, on, off, end) =
            (None, Some(KeyState::Enabled), Some(KeyState::Disabled), Some(KeyState::PendingDeletion));
        #[rustfmt::skip]
        let table = [
            // From                 CREATING ENABLED DISABLED PENDING_DELETION
            (C::Enable,            [no,      on,     on,      no]),
            (C::Disable,           [no,      off,    off,     no]),
            (C::ScheduleDeletion,  [no,      end,    end,     no]),
            (C::CancelDeletion,    [no,      no,     no,      off]),
        ];
        for (change, row) in table {
            for (state, expected) in KeyState::ALL.into_iter().zip(row) {
                assert_eq!(state.after(change), expected, "{state:?} {change:?}");
            }
        }
    }

    #[test]
    fn a_key_whose_store_is_not_connected_is_unavailable_unless_it_is_on_its_way_in_or_out() {
        let told = KeyState::ALL.map(|state| state.shown(false).as_str());
        assert_eq!(told, ["CREATING", "UNAVAILABLE", "UNAVAILABLE", "PENDING_DELETION"]);
        for state in KeyState::ALL {
            assert_eq!(state.shown(true).as_str(), state.as_str());
            assert_eq!(KeyState::parse(state.as_str()), Some(state));
        }
    }
}
