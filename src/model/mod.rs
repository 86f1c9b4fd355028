//! The words every room shares: ids, key specs and states, secret types, the encryption context.
//!
//! Nothing here does I/O, waits, locks or reads a clock. A value of one of these types has
//! been checked once, where it was made, and no room checks it again.

mod about;
mod causes;
mod certificate;
mod cluster;
mod context;
mod credential;
mod escrow;
mod hsm_key;
mod id;
mod key;
mod key_state;
mod place;
mod request;
mod seal;
mod secret;
mod store;

pub use about::{KeyDescription, Tags};
pub use causes::with_causes;
pub use certificate::{Certificate, OutOfDate, TrustAnchor};
pub use cluster::{ClusterState, HsmState};
pub use context::EncryptionContext;
pub use credential::PasswordVersion;
pub use escrow::EscrowKey;
pub use hsm_key::{CryptoUser, HsmKeyMark, HsmKeyName, HsmLabel};
pub use id::{
    AccountId, AliasName, ClusterId, HsmId, Invalid, KeyId, KeyRef, KeyStoreId, KeyStoreName, Region, Username, Zone,
};
pub use key::{CkaId, KeySpec, KeyVersion, Probe};
pub use key_state::{KeyChange, KeyState, ShownState};
pub use place::{HostName, HsmPlace, Ports, SubnetId};
pub use request::CertificateRequest;
pub use seal::Sealer;
pub use secret::{Password, Plaintext, SealingKey};
pub use store::{ConnectionErrorCode, ConnectionState, Realm};
