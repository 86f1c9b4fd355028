//! Quick and slow work: what may wait behind what, and how long it may run before it counts as stuck.

use std::time::Duration;

use crate::model::Material;

use super::v1::GenerateKey;
use super::v1::request::Verb;

/// How long a verb keeps its session, roughly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pace {
    /// Uses a key, or asks something: others may wait behind it in a batch.
    Quick,
    /// Makes, copies, searches or destroys objects, or changes a PIN. Some HSMs take tens of seconds to make a key.
    Slow,
    /// Makes an RSA pair: looks for primes, as long as chance has it.
    Primes,
}

/// An RSA pair may take so many times as long as other slow work.
const PRIMES_TAKE: u32 = 4;

/// How long one call of the library may take before its worker counts as stuck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    pub quick: Duration,
    pub slow: Duration,
}

impl Pace {
    pub fn of(verb: &Verb) -> Self {
        match verb {
            Verb::GenerateKey(ask) if makes_primes(ask) => Self::Primes,
            Verb::TestAbilities(_) => Self::Primes,
            Verb::GenerateKey(_)
            | Verb::WrapKey(_)
            | Verb::UnwrapKey(_)
            | Verb::ProveKey(_)
            | Verb::DestroyKey(_)
            | Verb::ListObjects(_)
            | Verb::FindKeys(_)
            | Verb::MakeProbe(_)
            | Verb::DestroyProvenKey(_)
            | Verb::SweepUnfinished(_)
            | Verb::SetPin(_) => Self::Slow,
            Verb::Ping(_)
            | Verb::CheckToken(_)
            | Verb::Encrypt(_)
            | Verb::Decrypt(_)
            | Verb::GenerateDataKey(_)
            | Verb::GenerateRandom(_)
            | Verb::Sign(_)
            | Verb::DecryptOaep(_)
            // Refused by a pool, which is quick.
            | Verb::Open(_)
            | Verb::LogIn(_)
            | Verb::MakeKek(_)
            | Verb::OfferJoin(_)
            | Verb::SealKek(_)
            | Verb::AcceptKek(_)
            | Verb::GiveUser(_)
            | Verb::Summon(_) => Self::Quick,
        }
    }
}

impl Patience {
    pub fn with(self, pace: Pace) -> Duration {
        match pace {
            Pace::Quick => self.quick,
            Pace::Slow => self.slow,
            Pace::Primes => self.slow.saturating_mul(PRIMES_TAKE),
        }
    }

    /// Of quick and slow work; a pair that is still being made when its daemon is gone is nobody's.
    pub fn longest(self) -> Duration {
        self.quick.max(self.slow)
    }
}

fn makes_primes(ask: &GenerateKey) -> bool {
    ask.kind().kind().is_some_and(|kind| matches!(kind.spec().material(), Material::Rsa(_)))
}

#[cfg(test)]
mod tests {
    use super::super::v1::KeyKind;
    use super::*;

    #[test]
    fn an_rsa_pair_may_take_longer_than_other_keys() {
        let of = |kind: KeyKind| Pace::of(&Verb::GenerateKey(GenerateKey { kind: kind.into(), ..Default::default() }));
        assert_eq!((of(KeyKind::Rsa2048Signing), of(KeyKind::P256Signing)), (Pace::Primes, Pace::Slow));
        assert_eq!(Pace::of(&Verb::TestAbilities(Default::default())), Pace::Primes, "an RSA pair is part of it");
        let patience = Patience { quick: Duration::from_secs(5), slow: Duration::from_secs(30) };
        assert_eq!(patience.with(Pace::Primes), Duration::from_secs(120));
        assert_eq!(patience.longest(), Duration::from_secs(30));
    }
}
