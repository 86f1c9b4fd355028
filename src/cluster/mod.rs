//! Clusters: their topology, and the Connection that is one crypto user logged in on every node of one.
//!
//! A [`Connection`] is the only way to use a key. It chooses a node for each request ([`route`]),
//! decides what a failure means ([`failover`]), proves every node that logs in and gives it the
//! cluster's key-encryption key (`prove`), looks after each that serves (`health`, `pace`), copies keys
//! from HSM to HSM (`replicate`), finds out what kinds of keys its HSMs can do (`abilities`) and lists what is in one (`listing`). It knows keys by their `CKA_ID`
//! and probe only; which keys there ought to be is for the rooms above.

mod abilities;
mod ceremony;
mod connection;
mod declared;
mod failover;
mod health;
mod listing;
mod made;
mod member;
mod membership;
mod names;
mod pace;
mod prove;
mod repeat;
mod replicate;
mod rotation;
mod route;
mod settings;
mod sign;

pub use abilities::{Lack, Learnt, Needed, withheld};
pub use connection::{Closing, Connection, Failure, KeyInHsms, KeyTemplate, Made, Sealed, zones};
pub use declared::{Declared, Undeclarable, differences};
pub use made::MadeSettings;
pub use member::{Member, Members};
pub use names::{Lineage, Lineages, SecurityGroupId};
pub use repeat::Repeat;
pub use rotation::{Program, Rotation, Strategy, StrategyName};
pub use settings::*;
