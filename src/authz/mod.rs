//! Who is calling, and may they: every request is decided here, and a [`Permit`] is the proof.
//!
//! The core takes a `Permit<A>` for each action `A`, and only [`Policy::decide`] makes one, so a
//! handler that forgets to ask does not compile. Nothing here does I/O or knows a transport's types.
//!
//! One rule stands until policies come: the loopback of `keyway dev`, the Unix socket's peer
//! with the daemon's own uid, and client certificates named in `authz.admins` may do everything;
//! nobody else may do anything.

pub mod action;
mod caller;
mod settings;

use std::collections::BTreeSet;
use std::marker::PhantomData;

pub use action::Action;
pub use caller::{Caller, CallerSource};
pub use settings::Settings;

/// Proof that a caller may do `A`. Cannot be made outside this room.
#[derive(Debug)]
pub struct Permit<A: Action> {
    caller: Caller,
    _action: PhantomData<A>,
}

impl<A: Action> Permit<A> {
    pub fn caller(&self) -> &Caller {
        &self.caller
    }
}

/// The caller may not do this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{caller} may not {action}")]
pub struct Denied {
    pub caller: String,
    pub action: &'static str,
}

/// Whether `keyway dev` is running: only there does plaintext on loopback count as somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loopback {
    Trusted,
    Nobody,
}

/// The rule in force.
#[derive(Debug)]
pub struct Policy {
    admins: BTreeSet<String>,
    own_uid: u32,
    loopback: Loopback,
}

impl Policy {
    pub fn new(settings: &Settings, own_uid: u32, loopback: Loopback) -> Self {
        Self { admins: settings.admins.iter().cloned().collect(), own_uid, loopback }
    }

    /// # Errors
    /// [`Denied`], which tells nothing about what exists.
    pub fn decide<A: Action>(&self, caller: &Caller) -> Result<Permit<A>, Denied> {
        let allowed = match caller.source() {
            CallerSource::Loopback => self.loopback == Loopback::Trusted,
            CallerSource::UnixSocket { uid } => *uid == self.own_uid,
            CallerSource::Certificate => self.admins.contains(caller.name()),
        };
        if allowed {
            Ok(Permit { caller: caller.clone(), _action: PhantomData })
        } else {
            Err(Denied { caller: caller.name().to_owned(), action: A::NAME })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::action::Encrypt;
    use super::*;

    fn policy(loopback: Loopback) -> Policy {
        Policy::new(&Settings { admins: vec!["ops".to_owned()] }, 1000, loopback)
    }

    #[test]
    fn a_certificate_named_among_the_admins_may_and_another_may_not() {
        let policy = policy(Loopback::Nobody);
        assert!(policy.decide::<Encrypt>(&Caller::certificate("ops".into())).is_ok());
        let denied = policy.decide::<Encrypt>(&Caller::certificate("mallory".into())).unwrap_err();
        assert_eq!(denied.to_string(), "mallory may not Encrypt");
    }

    #[test]
    fn the_unix_socket_serves_the_daemons_own_user_alone() {
        let policy = policy(Loopback::Nobody);
        assert!(policy.decide::<Encrypt>(&Caller::unix_socket(1000)).is_ok());
        assert!(policy.decide::<Encrypt>(&Caller::unix_socket(0)).is_err());
    }

    #[test]
    fn loopback_is_somebody_only_in_dev() {
        assert!(policy(Loopback::Trusted).decide::<Encrypt>(&Caller::loopback()).is_ok());
        assert!(policy(Loopback::Nobody).decide::<Encrypt>(&Caller::loopback()).is_err());
    }
}
