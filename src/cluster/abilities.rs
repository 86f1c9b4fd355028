//! What the HSMs of a Connection can do with keys beside AES-256, which every one of them has shown with its canary.
//!
//! A worker of each HSM tries it once for its token, after the node was proved and beside its work: a library that dies of the
//! question costs a restart, and is not asked a third time. What an HSM can do is remembered for all Connections, as long as
//! the daemon runs and the token is the same.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::link::Pace;
use crate::link::v1::{self, Request, request::Verb, response::Outcome};
use crate::model::{
    CkaId, ClusterId, EncryptionAlgorithm, HsmId, KeyKind, KeySpec, KeyUsage, SignatureScheme, SigningAlgorithm,
};
use crate::node::{CallError, Node};

use super::connection::Connection;
use super::member::Member;

/// One try may take as long as an RSA pair, and this for all else.
const STEP: Duration = Duration::from_secs(60);
/// While nobody waits for it, a node that came into service is asked after this: others have more urgent work for it.
const SETTLING: Duration = Duration::from_secs(1);
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

/// What is known of every HSM that was in service since the daemon began, whoever was logged in. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Learnt(Arc<Mutex<BTreeMap<Hsm, Arc<Abilities>>>>);

/// HSMs of two clusters may go by one name.
type Hsm = (ClusterId, HsmId);

/// What is known of one HSM.
#[derive(Debug, Default)]
pub(super) struct Abilities {
    known: Mutex<Known>,
    /// Whether somebody has waited for it.
    wanted: watch::Sender<bool>,
    /// Held while it is asked: one Connection asks for all.
    asking: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, Default)]
struct Known {
    token: Option<Token>,
    /// How often a worker has died of the question.
    deaths: u32,
    /// By name, what is missing for it; nothing, if it can. `None` until it was told.
    told: Option<Arc<[(String, String)]>>,
}

/// What the answer holds for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    /// Empty where each user has a token of his own: they are alike.
    serial: String,
    model: String,
    firmware: String,
}

/// Why a node has not told what it can do.
#[derive(Debug, thiserror::Error)]
enum Untold {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("the worker answered out of turn")]
    OutOfTurn,
}

impl Learnt {
    pub(super) fn of(&self, node: &Node) -> Arc<Abilities> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those of HSMs that are gone, before another comes.
        all.retain(|_, abilities| Arc::strong_count(abilities) > 1 || abilities.lock().told.is_some());
        all.entry((node.spec.cluster.clone(), node.hsm().clone())).or_default().clone()
    }
}

impl Token {
    fn of(node: &Node) -> Option<Self> {
        let facts = node.status().borrow().token.clone()?;
        let serial = if node.spec.location.manages_users() { String::new() } else { facts.serial };
        Some(Self { serial, model: facts.model, firmware: facts.firmware_version })
    }
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

    /// Whether the token is to be asked.
    fn is_to_be_asked(&self, token: &Token) -> bool {
        let mut known = self.lock();
        if known.token.as_ref() != Some(token) {
            *known = Known { token: Some(token.clone()), ..Known::default() };
        }
        if known.told.is_none() && known.deaths >= DEATHS {
            known.told = Some(Arc::from([]));
        }
        known.told.is_none()
    }

    /// Takes the answer down, if it is still this token's. Only a worker's death speaks against the question: whatever else
    /// kept the answer away may be gone when it is asked again.
    fn note(&self, token: &Token, answer: &Result<v1::Abilities, Untold>) {
        let mut known = self.lock();
        if known.token.as_ref() != Some(token) {
            return;
        }
        match answer {
            Ok(told) => {
                known.told = Some(told.abilities.iter().map(|it| (it.of.clone(), it.missing.clone())).collect());
            }
            Err(Untold::Call(CallError::Died)) => known.deaths += 1,
            Err(_) => {}
        }
    }

    /// Resolves when somebody waits for it, or the node has settled.
    async fn is_time(&self) {
        let _ = tokio::time::timeout(SETTLING, self.wanted.subscribe().wait_for(|wanted| *wanted)).await;
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Finds out what a proved node can do, unless it is known, and then does nothing more.
pub(super) async fn learn(connection: &Connection, member: &Member) {
    let abilities = &member.abilities;
    let mut pause = FIRST_PAUSE;
    let Some(token) = Token::of(&member.node) else { return std::future::pending().await };
    if abilities.is_to_be_asked(&token) {
        abilities.is_time().await;
    }
    while abilities.is_to_be_asked(&token) {
        let asking = abilities.asking.clone().lock_owned().await;
        if !abilities.is_to_be_asked(&token) {
            break;
        }
        if let Ok(kek) = connection.kek().await {
            // In a task of its own: how it ends is noted also when the login that it was asked through is gone.
            let (node, abilities, token) = (member.node.clone(), abilities.clone(), token.clone());
            let trial = tokio::spawn(async move {
                let answer = test(&node, kek.kek_id.to_vec()).await;
                abilities.note(&token, &answer);
                drop(asking);
                answer.is_ok()
            });
            if trial.await.unwrap_or(false) {
                break;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    connection.changed();
    std::future::pending().await
}

async fn test(node: &Node, kek_cka_id: Vec<u8>) -> Result<v1::Abilities, Untold> {
    let hsm = node.hsm();
    let began = Instant::now();
    let mut request =
        Request { verb: Some(Verb::TestAbilities(v1::TestAbilities { kek_cka_id })), ..Request::default() };
    let answer = node.call(&mut request, began + node.spec.patience.with(Pace::Primes) + STEP).await;
    let took = began.elapsed();
    match answer {
        Ok(Outcome::Abilities(told)) => {
            tracing::debug!(%hsm, ?took, "the HSM was tried for what it can do");
            for v1::abilities::Ability { of, missing } in told.abilities.iter().filter(|it| !it.missing.is_empty()) {
                tracing::debug!(%hsm, of, missing, "the HSM cannot do this");
            }
            Ok(told)
        }
        Ok(_) => Err(Untold::OutOfTurn),
        Err(error) => {
            tracing::debug!(%hsm, ?took, %error, "what the HSM can do is not known yet");
            Err(error.into())
        }
    }
}

impl Member {
    /// What it lacks for it, as far as it has said.
    pub(super) fn lack(&self, needed: Needed) -> Option<Lack> {
        let missing = self.abilities.lacks(needed).ok().flatten()?;
        Some(Lack { hsm: self.node.hsm().clone(), missing })
    }
}

impl Connection {
    /// Waits until each node that serves has said whether it can do it, but not for long: one that hangs holds up no other.
    pub async fn told(&self, needed: Needed, deadline: Instant) {
        for member in self.members().iter() {
            if member.abilities.lacks(needed).is_err() {
                member.abilities.wanted.send_replace(true);
            }
        }
        let all_told = || self.members().iter().all(|it| !it.is_proved() || it.abilities.lacks(needed).is_ok());
        let until = deadline.min(Instant::now() + TELLING);
        let _ = tokio::time::timeout_at(until, self.until(|| all_told() || self.is_closed())).await;
    }

    /// What the first node that cannot do it lacks, of those that serve and have said.
    pub fn lack(&self, needed: Needed) -> Option<Lack> {
        let members = self.members();
        let mut serving = members.iter().filter(|member| member.is_proved());
        serving.find_map(|member| member.lack(needed))
    }

    /// The same, when every node that serves and has the key has said that it cannot do it.
    pub fn lack_of_holders(&self, key: &CkaId, needed: Needed) -> Option<Lack> {
        let members = self.members();
        let holders = members.iter().filter(|member| member.is_proved() && member.has(key));
        first_if_all(holders.map(|member| member.lack(needed)))
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

fn first_if_all<T>(mut some: impl Iterator<Item = Option<T>>) -> Option<T> {
    let first = some.next()??;
    some.all(|other| other.is_some()).then_some(first)
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

    fn token(serial: &str) -> Token {
        Token { serial: serial.to_owned(), model: "model".to_owned(), firmware: "2.6".to_owned() }
    }

    fn told(abilities: &[(&str, &str)]) -> Result<v1::Abilities, Untold> {
        let ability =
            |(of, missing): &(&str, &str)| v1::abilities::Ability { of: (*of).into(), missing: (*missing).into() };
        Ok(v1::Abilities { abilities: abilities.iter().map(ability).collect() })
    }

    #[test]
    fn what_was_told_holds_for_the_token_that_told_it() {
        let abilities = Abilities::default();
        let p256 = Needed::Spec(KeySpec::EccNistP256);
        assert_eq!(abilities.lacks(p256), Err(()));
        assert_eq!(abilities.lacks(Needed::Spec(KeySpec::SymmetricDefault)), Ok(None));
        assert!(abilities.is_to_be_asked(&token("a")));
        abilities.note(&token("a"), &told(&[("ECC_NIST_P256", ""), ("RSA_2048", "it")]));
        assert_eq!(abilities.lacks(p256), Ok(None));
        assert_eq!(abilities.lacks(Needed::Spec(KeySpec::Rsa2048)), Ok(Some("it".to_owned())));
        assert!(abilities.lacks(Needed::Spec(KeySpec::MlKem512)).unwrap().is_some(), "of which nothing was said");
        assert!(!abilities.is_to_be_asked(&token("a")));
        assert!(abilities.is_to_be_asked(&token("b")));
        abilities.note(&token("a"), &told(&[("ECC_NIST_P256", "")]));
        assert_eq!(abilities.lacks(p256), Err(()), "the answer of a token that is gone");
    }

    #[test]
    fn a_token_whose_worker_died_twice_over_the_question_is_taken_to_lack_everything_else() {
        let abilities = Abilities::default();
        let died = || Err(Untold::Call(CallError::Died));
        for _ in 0..DEATHS {
            assert!(abilities.is_to_be_asked(&token("a")));
            abilities.note(&token("a"), &died());
        }
        assert!(!abilities.is_to_be_asked(&token("a")));
        assert!(abilities.lacks(Needed::Spec(KeySpec::Hmac256)).unwrap().is_some());
        assert_eq!(abilities.lacks(Needed::Spec(KeySpec::SymmetricDefault)), Ok(None));
    }

    #[test]
    fn one_that_lacks_nothing_or_has_not_said_is_enough() {
        assert_eq!(first_if_all([Some(1), Some(2)].into_iter()), Some(1));
        assert_eq!(first_if_all([Some(1), None].into_iter()), None);
        assert_eq!(first_if_all([None, Some(2)].into_iter()), None);
        assert_eq!(first_if_all(std::iter::empty::<Option<u8>>()), None);
    }

    #[test]
    fn an_answer_that_is_late_or_lost_or_a_fault_is_asked_for_again() {
        let abilities = Abilities::default();
        let fault = || CallError::Fault(v1::Fault::default());
        for error in [CallError::LateAfter, CallError::Cut, CallError::NotServing, fault(), fault(), fault()] {
            abilities.is_to_be_asked(&token("a"));
            abilities.note(&token("a"), &Err(error.into()));
        }
        abilities.note(&token("a"), &Err(Untold::OutOfTurn));
        assert!(abilities.is_to_be_asked(&token("a")));
    }
}
