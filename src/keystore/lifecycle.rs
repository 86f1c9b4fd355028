//! What a custom key store's state lets happen, and where it leads. Pure, and the only place that decides it.
//!
//! ```text
//!                    Connect                  Connected
//!   DISCONNECTED ─────────────▶ CONNECTING ─────────────▶ CONNECTED
//!      ▲    ▲                     │     │                     │
//!      │    │                     │     └──Failed──▶ FAILED   │
//!      │    │          Disconnect │                    │      │ Disconnect
//!      │    │                     ▼     Disconnect     ▼      │
//!      │    └────Drained──── DISCONNECTING ◀──────────────────┘
//!      └ Delete (and it is gone)
//!
//!                    Rename   Reconfigure   TryPassword   CreateKey   Use
//!   DISCONNECTED      yes        yes            yes
//!   CONNECTED         yes                                    yes      yes
//!   FAILED                                      yes
//!   all others
//! ```
//!
//! `Connect` changes nothing where it was done, or is being done, already. A CONNECTED store stays CONNECTED while its
//! nodes are down: their health tells that.

use std::fmt;

use crate::model::ConnectionState;

/// What happens to a store: most by request, the last three by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Connect,
    Disconnect,
    Rename,
    /// Another password, or another cluster.
    Reconfigure,
    Delete,
    /// A login as its user beside it, for somebody who wants to know whether a password is right.
    TryPassword,
    CreateKey,
    /// Work with a key that exists, or random bytes.
    Use,
    Connected,
    Failed,
    Drained,
}

/// Where an event leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Move(ConnectionState),
    /// It may happen, and the state stays as it is.
    Stay,
    Gone,
}

/// The state does not allow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event} is not possible while the key store is {state}")]
pub struct Refused {
    pub state: ConnectionState,
    pub event: Event,
}

/// The table.
pub fn next(state: ConnectionState, event: Event) -> Result<Step, Refused> {
    use ConnectionState::{Connected, Connecting, Disconnected, Disconnecting, Failed};
    use Event as E;
    use Step::{Gone, Move, Stay};
    match (state, event) {
        (Disconnected, E::Connect) => Ok(Move(Connecting)),
        (Connecting | Connected | Failed, E::Disconnect) => Ok(Move(Disconnecting)),
        (Connecting, E::Connected) => Ok(Move(Connected)),
        (Connecting, E::Failed) => Ok(Move(Failed)),
        (Disconnecting, E::Drained) => Ok(Move(Disconnected)),
        (Connecting | Connected, E::Connect)
        | (Disconnected | Connected, E::Rename)
        | (Disconnected, E::Reconfigure)
        | (Connected, E::CreateKey | E::Use)
        | (Disconnected | Failed, E::TryPassword) => Ok(Stay),
        (Disconnected, E::Delete) => Ok(Gone),
        (Disconnecting | Failed, E::Connect)
        | (Disconnected | Disconnecting, E::Disconnect)
        | (Connecting | Disconnecting | Failed, E::Rename)
        | (Connecting | Connected | Disconnecting | Failed, E::Reconfigure | E::Delete)
        | (Connecting | Connected | Disconnecting, E::TryPassword)
        | (Disconnected | Connecting | Disconnecting | Failed, E::CreateKey | E::Use)
        | (Disconnected | Connected | Disconnecting | Failed, E::Connected | E::Failed)
        | (Disconnected | Connecting | Connected | Failed, E::Drained) => Err(Refused { state, event }),
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connecting",
            Self::Disconnect => "disconnecting",
            Self::Rename => "changing the name",
            Self::Reconfigure => "changing the password or the cluster",
            Self::Delete => "deleting",
            Self::TryPassword => "trying a password",
            Self::CreateKey => "making a key",
            Self::Use => "using the HSMs",
            Self::Connected => "having connected",
            Self::Failed => "having failed to connect",
            Self::Drained => "having disconnected",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_of_the_table() {
        use ConnectionState::{Connected, Connecting, Disconnected, Disconnecting, Failed};
        use Event as E;
        let (no, stay, gone) = (None, Some(Step::Stay), Some(Step::Gone));
        let to = |state| Some(Step::Move(state));
        let (ing, on, ending, off, fail) =
            (to(Connecting), to(Connected), to(Disconnecting), to(Disconnected), to(Failed));
        #[rustfmt::skip]
        let table = [
            // From           DISCONNECTED CONNECTING CONNECTED DISCONNECTING FAILED
            (E::Connect,     [ing,         stay,      stay,     no,           no]),
            (E::Disconnect,  [no,          ending,    ending,   no,           ending]),
            (E::Rename,      [stay,        no,        stay,     no,           no]),
            (E::Reconfigure, [stay,        no,        no,       no,           no]),
            (E::Delete,      [gone,        no,        no,       no,           no]),
            (E::TryPassword, [stay,        no,        no,       no,           stay]),
            (E::CreateKey,   [no,          no,        stay,     no,           no]),
            (E::Use,         [no,          no,        stay,     no,           no]),
            (E::Connected,   [no,          on,        no,       no,           no]),
            (E::Failed,      [no,          fail,      no,       no,           no]),
            (E::Drained,     [no,          no,        no,       off,          no]),
        ];
        for (event, row) in table {
            let states = [Disconnected, Connecting, Connected, Disconnecting, Failed];
            for (state, expected) in states.into_iter().zip(row) {
                assert_eq!(next(state, event).ok(), expected, "{state} {event:?}");
            }
        }
    }

    #[test]
    fn a_refusal_names_the_state_and_the_event() {
        let refused = next(ConnectionState::Failed, Event::Connect).unwrap_err();
        assert_eq!(refused.to_string(), "connecting is not possible while the key store is FAILED");
    }
}
