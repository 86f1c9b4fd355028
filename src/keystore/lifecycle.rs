//! What a custom key store's state lets happen, and where it leads. Pure.
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
//! ```
//!
//! A CONNECTED store stays CONNECTED while its nodes are down: their health tells that.

use crate::model::ConnectionState;

/// What happens to a store: the first three by request, the rest by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Connect,
    Disconnect,
    Delete,
    Connected,
    Failed,
    Drained,
}

/// Where an event leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Move(ConnectionState),
    /// Already so, or on the way: nothing to do.
    Stay,
    Gone,
}

/// The state does not allow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} is not possible while the key store is {state}")]
pub struct Refused {
    pub state: ConnectionState,
    pub event: Event,
}

/// The table.
pub fn next(state: ConnectionState, event: Event) -> Result<Step, Refused> {
    use ConnectionState::{Connected, Connecting, Disconnected, Disconnecting, Failed};
    use Step::{Gone, Move, Stay};
    match (state, event) {
        (Disconnected, Event::Connect) => Ok(Move(Connecting)),
        (Connecting | Connected, Event::Connect) => Ok(Stay),
        (Connecting | Connected | Failed, Event::Disconnect) => Ok(Move(Disconnecting)),
        (Disconnected, Event::Delete) => Ok(Gone),
        (Connecting, Event::Connected) => Ok(Move(Connected)),
        (Connecting, Event::Failed) => Ok(Move(Failed)),
        (Disconnecting, Event::Drained) => Ok(Move(Disconnected)),
        (Disconnecting | Failed, Event::Connect)
        | (Disconnected | Disconnecting, Event::Disconnect)
        | (Connecting | Connected | Disconnecting | Failed, Event::Delete)
        | (Disconnected | Connected | Disconnecting | Failed, Event::Connected | Event::Failed)
        | (Disconnected | Connecting | Connected | Failed, Event::Drained) => Err(Refused { state, event }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_of_the_table() {
        use ConnectionState::{Connected, Connecting, Disconnected, Disconnecting, Failed};
        let events =
            [Event::Connect, Event::Disconnect, Event::Delete, Event::Connected, Event::Failed, Event::Drained];
        let (no, stay, gone) = (None, Some(Step::Stay), Some(Step::Gone));
        let to = |state| Some(Step::Move(state));
        let table = [
            (Disconnected, [to(Connecting), no, gone, no, no, no]),
            (Connecting, [stay, to(Disconnecting), no, to(Connected), to(Failed), no]),
            (Connected, [stay, to(Disconnecting), no, no, no, no]),
            (Disconnecting, [no, no, no, no, no, to(Disconnected)]),
            (Failed, [no, to(Disconnecting), no, no, no, no]),
        ];
        for (state, row) in table {
            for (event, expected) in events.into_iter().zip(row) {
                assert_eq!(next(state, event).ok(), expected, "{state} {event:?}");
            }
        }
    }

    #[test]
    fn a_refusal_names_the_state_and_the_event() {
        let refused = next(ConnectionState::Failed, Event::Connect).unwrap_err();
        assert_eq!(refused.to_string(), "Connect is not possible while the key store is FAILED");
    }
}
