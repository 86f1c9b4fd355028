//! Where a cluster and its HSMs are in their lives, as their owner says. AWS CloudHSM's words.

use std::fmt;
use std::str::FromStr;

use super::Invalid;

/// A state's names: as AWS writes them, and as configuration files do.
macro_rules! states {
    ($(#[$doc:meta])* $name:ident, $what:literal: $($(#[$of:meta])* $state:ident = $text:literal,)*) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[$of])* $state,)*
        }

        impl $name {
            pub const ALL: &[Self] = &[$(Self::$state),*];

            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$state => $text,)*
                }
            }
        }

        impl FromStr for $name {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                Self::ALL.iter().copied().find(|state| state.as_str() == text).ok_or_else(|| {
                    let all: Vec<_> = Self::ALL.iter().map(|state| state.as_str()).collect();
                    Invalid::new(format!(concat!($what, " is one of {}"), all.join(", ")))
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

states! {
    /// Where a cluster is in its life.
    ClusterState, "a cluster's state":
    CreateInProgress = "CREATE_IN_PROGRESS",
    Uninitialized = "UNINITIALIZED",
    InitializeInProgress = "INITIALIZE_IN_PROGRESS",
    Initialized = "INITIALIZED",
    /// The only one in which a key store can be made on it, or connected.
    Active = "ACTIVE",
    UpdateInProgress = "UPDATE_IN_PROGRESS",
    ModifyInProgress = "MODIFY_IN_PROGRESS",
    RollbackInProgress = "ROLLBACK_IN_PROGRESS",
    DeleteInProgress = "DELETE_IN_PROGRESS",
    Deleted = "DELETED",
    Degraded = "DEGRADED",
}

states! {
    /// Where an HSM is in its life.
    HsmState, "an HSM's state":
    CreateInProgress = "CREATE_IN_PROGRESS",
    /// The only one in which it counts, and takes part in a Connection.
    Active = "ACTIVE",
    Degraded = "DEGRADED",
    DeleteInProgress = "DELETE_IN_PROGRESS",
    Deleted = "DELETED",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_read_as_it_is_written_and_another_word_is_told_all_of_them() {
        for state in ClusterState::ALL {
            assert_eq!(state.to_string().parse(), Ok(*state));
        }
        for state in HsmState::ALL {
            assert_eq!(state.to_string().parse(), Ok(*state));
        }
        let refused = "active".parse::<HsmState>().unwrap_err().to_string();
        assert!(refused.contains("ACTIVE, DEGRADED"), "{refused}");
    }
}
