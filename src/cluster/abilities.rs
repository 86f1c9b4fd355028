//! What the HSMs of a Connection can do with keys beside AES-256, which every one of them has shown with its canary.
//!
//! Each node's worker tries it once for its token, after the node was proved and beside its work: a library that dies of the
//! question costs a restart, and is not asked a third time. What a node can do is remembered as long as its token is the same,
//! in serial number and firmware.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::link::v1::{self, request::Verb, response::Outcome};
use crate::model::{EncryptionAlgorithm, HsmId, KeyKind, KeySpec, KeyUsage, SignatureScheme, SigningAlgorithm};

use super::Failure;
use super::connection::Connection;
use super::failover::Effect;
use super::member::Member;

/// How long one try may take.
const STEP: Duration = Duration::from_secs(60);
/// Whoever is about to make a key waits this long for a node that has not said what it can.
const TELLING: Duration = Duration::from_secs(10);
/// The pause before a node that did not say is asked again; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A worker that ended over the question so often is not asked again.
const DEATHS: u32 = 2;

/// What an HSM lacks for something that was asked of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    pub hsm: HsmId,
    /// A mechanism, or what a function returned: for people.
    pub missing: String,
}

/// Something that an HSM must be able to do, by AWS's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needed {
    Spec(KeySpec),
    Signing(SigningAlgorithm),
    Encryption(EncryptionAlgorithm),
}

/// What is known of one node.
#[derive(Debug, Default)]
pub(super) struct Abilities(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Of which token: its serial number and firmware.
    token: Option<(String, String)>,
    /// How often its worker was asked and has not answered.
    unanswered: u32,
    /// By name, what is missing for it; nothing, if it can. `None` until it was told.
    told: Option<Arc<[(String, String)]>>,
}

impl Needed {
    /// AWS's.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Spec(spec) => spec.as_str(),
            Self::Signing(algorithm) => algorithm.as_str(),
            Self::Encryption(algorithm) => algorithm.as_str(),
        }
    }

    /// Whether every node that has the key can: its canary has shown it or, of a curve's one algorithm, the key itself.
    const fn is_shown_otherwise(self) -> bool {
        match self {
            Self::Spec(spec) => matches!(spec, KeySpec::SymmetricDefault),
            Self::Encryption(algorithm) => matches!(algorithm, EncryptionAlgorithm::SymmetricDefault),
            Self::Signing(algorithm) => matches!(algorithm.of_digest(), Some((SignatureScheme::Ecdsa, _))),
        }
    }
}

impl Abilities {
    /// What the node lacks for it, or `None` if nothing. `Err` until it has told.
    fn lacks(&self, needed: Needed) -> Result<Option<String>, ()> {
        if needed.is_shown_otherwise() {
            return Ok(None);
        }
        let told = self.lock().told.clone().ok_or(())?;
        let entry = told.iter().find(|(of, _)| of == needed.name());
        let missing = entry.map_or_else(|| "an answer to whether it can".to_owned(), |(_, missing)| missing.clone());
        Ok((!missing.is_empty()).then_some(missing))
    }

    /// Whether the token is to be asked. It counts as unanswered until it has told.
    fn ask(&self, token: (String, String)) -> bool {
        let mut known = self.lock();
        if known.token.as_ref() != Some(&token) {
            *known = Known { token: Some(token), ..Known::default() };
        }
        if known.told.is_some() {
            return false;
        }
        if known.unanswered >= DEATHS {
            known.told = Some(Arc::from([]));
            return false;
        }
        known.unanswered += 1;
        true
    }

    /// The question was not what kept the answer away.
    fn acquit(&self) {
        let mut known = self.lock();
        known.unanswered = known.unanswered.saturating_sub(1);
    }

    fn tell(&self, told: v1::Abilities) {
        self.lock().told = Some(told.abilities.into_iter().map(|it| (it.of, it.missing)).collect());
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Finds out what a proved node can do, unless it is known, and then does nothing more.
pub(super) async fn learn(connection: &Connection, member: &Member) {
    let mut pause = FIRST_PAUSE;
    loop {
        let facts = member.node.status().borrow().token.clone();
        let Some(facts) = facts else { return std::future::pending().await };
        if !member.abilities.ask((facts.serial, facts.firmware_version)) {
            break;
        }
        match test(connection, member).await {
            Ok(told) => {
                let lacking = told.abilities.iter().filter(|it| !it.missing.is_empty());
                for v1::abilities::Ability { of, missing } in lacking {
                    tracing::debug!(hsm = %member.node.hsm(), of, missing, "the HSM cannot do this");
                }
                member.abilities.tell(told);
                break;
            }
            // The worker may have died of it.
            Err(Failure::OutcomeUnknown | Failure::Poisonous) => {}
            Err(failure) => {
                tracing::debug!(hsm = %member.node.hsm(), %failure, "what the HSM can do is not known yet");
                member.abilities.acquit();
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    connection.changed();
    std::future::pending().await
}

async fn test(connection: &Connection, member: &Member) -> Result<v1::Abilities, Failure> {
    let kek = connection.kek().await?;
    let verb = Verb::TestAbilities(v1::TestAbilities { kek_cka_id: kek.kek_id.to_vec() });
    match connection.ask(member, verb, Effect::Once, Instant::now() + STEP).await? {
        Outcome::Abilities(told) => Ok(told),
        _ => Err(Failure::OutOfTurn),
    }
}

impl Connection {
    /// Waits until each node that serves has said whether it can do it, but not for long: one that hangs holds up no other.
    pub async fn told(&self, needed: Needed, deadline: Instant) {
        let all_told = || self.members().iter().all(|it| !it.is_proved() || it.abilities.lacks(needed).is_ok());
        let until = deadline.min(Instant::now() + TELLING);
        let _ = tokio::time::timeout_at(until, self.until(|| all_told() || self.is_closed())).await;
    }

    /// What the first node that cannot do it lacks, of those that serve and have said.
    pub fn lack(&self, needed: Needed) -> Option<Lack> {
        let members = self.members();
        let mut serving = members.iter().filter(|member| member.is_proved());
        serving.find_map(|member| {
            let missing = member.abilities.lacks(needed).ok().flatten()?;
            Some(Lack { hsm: member.node.hsm().clone(), missing })
        })
    }

    /// Whether a node that serves has said that it can do it.
    pub fn any_can(&self, needed: Needed) -> bool {
        self.members().iter().any(|member| member.is_proved() && member.abilities.lacks(needed) == Ok(None))
    }

    /// The key specs that every node that serves can do, as far as they have said.
    pub fn key_specs(&self) -> Vec<KeySpec> {
        let members = self.members();
        let serving: Vec<_> = members.iter().filter(|member| member.is_proved()).collect();
        let can = |spec| serving.iter().all(|member| member.abilities.lacks(Needed::Spec(spec)) == Ok(None));
        if serving.is_empty() { Vec::new() } else { KeySpec::ALL.into_iter().filter(|spec| can(*spec)).collect() }
    }
}

/// What no cluster that copies keys wrapped can do, and why.
pub fn withheld(kind: KeyKind) -> Option<&'static str> {
    match kind.usage() {
        // With it, whoever has the user's password could derive the key's value, one way or another.
        KeyUsage::KeyAgreement => Some("CKA_DERIVE, which the key-encryption key gives no key that it unwraps"),
        KeyUsage::EncryptDecrypt
        | KeyUsage::SignVerify
        | KeyUsage::GenerateVerifyMac
        | KeyUsage::EncapsulateDecapsulate => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(serial: &str) -> (String, String) {
        (serial.to_owned(), "2.6".to_owned())
    }

    fn ability(of: &str, missing: &str) -> v1::abilities::Ability {
        v1::abilities::Ability { of: of.to_owned(), missing: missing.to_owned() }
    }

    #[test]
    fn what_was_told_holds_for_the_token_that_told_it() {
        let abilities = Abilities::default();
        let p256 = Needed::Spec(KeySpec::EccNistP256);
        assert_eq!(abilities.lacks(p256), Err(()));
        assert_eq!(abilities.lacks(Needed::Spec(KeySpec::SymmetricDefault)), Ok(None));
        assert!(abilities.ask(token("a")));
        abilities.tell(v1::Abilities { abilities: vec![ability("ECC_NIST_P256", ""), ability("RSA_2048", "it")] });
        assert_eq!(abilities.lacks(p256), Ok(None));
        assert_eq!(abilities.lacks(Needed::Spec(KeySpec::Rsa2048)), Ok(Some("it".to_owned())));
        assert!(abilities.lacks(Needed::Spec(KeySpec::MlKem512)).unwrap().is_some(), "of which nothing was said");
        assert!(!abilities.ask(token("a")));
        assert!(abilities.ask(token("b")));
        assert_eq!(abilities.lacks(p256), Err(()));
    }

    #[test]
    fn a_token_whose_worker_died_twice_over_the_question_is_taken_to_lack_everything_else() {
        let abilities = Abilities::default();
        assert!(abilities.ask(token("a")));
        abilities.acquit();
        assert!(abilities.ask(token("a")) && abilities.ask(token("a")));
        assert!(!abilities.ask(token("a")));
        assert!(abilities.lacks(Needed::Spec(KeySpec::Hmac256)).unwrap().is_some());
        assert_eq!(abilities.lacks(Needed::Spec(KeySpec::SymmetricDefault)), Ok(None));
    }
}
