//! What can befall one HSM. Pure: thrown with dice, and told in words; what is done about it is in `doing`.

use std::fmt;

use faulty_pkcs11::Function::*;
use faulty_pkcs11::ckr::*;
use faulty_pkcs11::{Function, On, Rule};

use crate::rig::Dice;

/// Something that befalls one HSM.
#[derive(Debug, Clone, PartialEq)]
pub enum Trouble {
    /// Its library goes wrong.
    Library(Sickness),
    /// Something happens to its device in a moment.
    Event(Event),
    /// Its worker is killed.
    Killed,
    /// Its worker is stopped, and goes on later if it was not killed for it.
    Stopped,
    /// Its token is gone, and comes back as it was.
    TokenAway,
    /// Everything in its token is gone for good.
    TokenEmptied,
    /// One key is gone from its token for good: which one, of those that are acknowledged by then.
    KeyDeleted(usize),
    /// Somebody changes the user's password there, and its worker is killed.
    PasswordChanged,
    /// An operator takes it out of use.
    Drained,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Rebooted,
    LoginLost,
    SessionsExpired,
}

/// How a library goes wrong.
#[derive(Debug, Clone, PartialEq)]
pub struct Sickness {
    pub rules: Vec<Rule>,
    pub meets: Meets,
    pub cure: Cure,
}

/// Which worker meets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meets {
    /// Whichever there is.
    Anyone,
    /// The present one is killed, since it is about how a worker begins.
    ANewOne,
}

/// What brings the HSM back, once its library works again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cure {
    ItsDaemon,
    AnOperator,
}

impl Trouble {
    pub fn throw(dice: &mut Dice) -> Self {
        match dice.below(25) {
            0..=11 => Self::Library(Sickness::throw(dice)),
            12..=14 => Self::Event(dice.pick(&[Event::Rebooted, Event::LoginLost, Event::SessionsExpired])),
            15..=16 => Self::Killed,
            17..=18 => Self::Stopped,
            19 => Self::TokenAway,
            20..=21 => Self::TokenEmptied,
            22 => Self::KeyDeleted(dice.below(1_000)),
            23 => Self::PasswordChanged,
            _ => Self::Drained,
        }
    }

    /// As what can happen while nobody is there to see it.
    pub fn throw_behind_the_scenes(dice: &mut Dice) -> Self {
        match dice.below(4) {
            0 => Self::TokenAway,
            1 => Self::TokenEmptied,
            2 => Self::KeyDeleted(dice.below(1_000)),
            _ => Self::Event(Event::Rebooted),
        }
    }

    /// Whether it lasts until it is ended. The rest is over at once, if not its consequences.
    pub fn lasts(&self) -> bool {
        match self {
            Self::Library(_) | Self::Stopped | Self::TokenAway | Self::PasswordChanged | Self::Drained => true,
            Self::Event(_) | Self::Killed | Self::TokenEmptied | Self::KeyDeleted(_) => false,
        }
    }

    /// Whether keys are lost by it in this HSM.
    pub fn destroys(&self) -> bool {
        match self {
            Self::TokenEmptied | Self::KeyDeleted(_) => true,
            Self::Library(_) | Self::Event(_) | Self::Killed | Self::Stopped => false,
            Self::TokenAway | Self::PasswordChanged | Self::Drained => false,
        }
    }

    /// Whether it takes an operator to end it.
    pub fn wants_an_operator(&self) -> bool {
        match self {
            Self::Library(sickness) => sickness.cure != Cure::ItsDaemon,
            Self::PasswordChanged | Self::Drained => true,
            Self::Event(_) | Self::Killed | Self::Stopped => false,
            Self::TokenAway | Self::TokenEmptied | Self::KeyDeleted(_) => false,
        }
    }

    /// Whether the HSM refuses the password while it lasts.
    pub fn refuses_the_password(&self) -> bool {
        *self == Self::PasswordChanged
    }

    /// Whether it needs a while to show.
    pub fn is_slow_to_show(&self) -> bool {
        match self {
            Self::Library(sickness) => sickness.rules.iter().any(|rule| rule.to_string().starts_with("block")),
            Self::Stopped => true,
            Self::Event(_) | Self::Killed | Self::TokenAway | Self::TokenEmptied => false,
            Self::KeyDeleted(_) | Self::PasswordChanged | Self::Drained => false,
        }
    }
}

impl Sickness {
    fn throw(dice: &mut Dice) -> Self {
        match dice.below(15) {
            0..=4 => Self::of([errors(dice)]),
            5 => {
                let (by, jitter) = (dice.millis(10, 300), dice.millis(1, 100));
                Self::of([Rule::delay_up_to(On::all(), by, jitter)])
            }
            6..=7 => Self::of([hang(dice)]),
            8..=9 => Self::of([death(dice)]),
            10 => Self::of([lost_answer(dice)]),
            11 => match dice.below(3) {
                0 => Self::of([Rule::idle(dice.millis(300, 900))]),
                1 => Self::of([Rule::slot_offset(1 + dice.below(100) as u64)]),
                _ => Self::of([Rule::max_sessions(2, CKR_SESSION_COUNT)]).for_a_new_worker(),
            },
            12 => Self::of([Rule::find_wrong()]).for_a_new_worker(),
            13 => {
                let ckr = dice.pick(&[CKR_DEVICE_ERROR, CKR_FUNCTION_FAILED, CKR_TOKEN_NOT_PRESENT]);
                Self::of([Rule::fail(C_Login, ckr)]).for_a_new_worker()
            }
            _ => {
                let rule = if dice.one_in(2) {
                    Rule::fail(C_Login, CKR_USER_ALREADY_LOGGED_IN)
                } else {
                    Rule::serial("0badcafe0badcafe")
                };
                Self { cure: Cure::AnOperator, ..Self::of([rule]).for_a_new_worker() }
            }
        }
    }

    fn of<const N: usize>(rules: [Rule; N]) -> Self {
        Self { rules: rules.into(), meets: Meets::Anyone, cure: Cure::ItsDaemon }
    }

    fn for_a_new_worker(self) -> Self {
        Self { meets: Meets::ANewOne, ..self }
    }
}

/// Calls fail, all of them or a part.
fn errors(dice: &mut Dice) -> Rule {
    const SICK: [u64; 12] = [
        CKR_DEVICE_ERROR,
        CKR_DEVICE_MEMORY,
        CKR_HOST_MEMORY,
        CKR_DEVICE_REMOVED,
        CKR_TOKEN_NOT_PRESENT,
        CKR_SESSION_HANDLE_INVALID,
        CKR_SESSION_CLOSED,
        CKR_USER_NOT_LOGGED_IN,
        CKR_OBJECT_HANDLE_INVALID,
        CKR_CRYPTOKI_NOT_INITIALIZED,
        CKR_OPERATION_ACTIVE,
        0x8000_0001,
    ];
    // Of a decryption these say that its ciphertext is bad, if only now and then: that is believed.
    const SICK_BUT_NOT_OF_DECRYPTIONS: [u64; 2] = [CKR_GENERAL_ERROR, CKR_FUNCTION_FAILED];
    let rule = match dice.below(4) {
        0 => Rule::fail([C_EncryptInit, C_Encrypt, C_DecryptInit, C_Decrypt], dice.pick(&SICK)),
        1 => {
            let ckr = dice.pick(&[&SICK[..], &SICK_BUT_NOT_OF_DECRYPTIONS].concat());
            Rule::fail([C_EncryptInit, C_DecryptInit, C_GenerateRandom, C_FindObjectsInit], ckr)
        }
        2 => Rule::fail(On::all().except(C_Login).except(C_Decrypt), dice.pick(&SICK[..5])),
        _ => Rule::fail([C_WrapKey, C_UnwrapKey, C_GenerateKey, C_GetTokenInfo], dice.pick(&SICK)),
    };
    match dice.below(3) {
        0 => rule,
        1 => rule.chance(0.5, dice.throw() % 1_000),
        _ => rule.chance(0.1, dice.throw() % 1_000),
    }
}

/// Calls do not come back: in each worker one of them, or all.
fn hang(dice: &mut Dice) -> Rule {
    let function = dice.pick(&[C_Encrypt, C_Decrypt, C_GenerateRandom, C_GenerateKey, C_UnwrapKey, C_Login]);
    match dice.below(4) {
        0 => Rule::block(On::all()),
        1 => Rule::block(C_Initialize),
        2 => Rule::block(function),
        _ => Rule::block(function).nth(1 + dice.below(4) as u64),
    }
}

/// Workers die, before or after something is done.
fn death(dice: &mut Dice) -> Rule {
    let functions: [Function; 7] =
        [C_Encrypt, C_Decrypt, C_GenerateKey, C_UnwrapKey, C_Login, C_DestroyObject, C_OpenSession];
    let (function, nth) = (dice.pick(&functions), 1 + dice.below(8) as u64);
    let rule = if dice.one_in(2) { Rule::crash(function) } else { Rule::abort(function) };
    let rule = if dice.one_in(2) { rule.after() } else { rule };
    rule.nth(nth)
}

/// Something is done, and the answer says that it was not.
fn lost_answer(dice: &mut Dice) -> Rule {
    let function = dice.pick(&[C_GenerateKey, C_UnwrapKey, C_DestroyObject]);
    let ckr = dice.pick(&[CKR_DEVICE_ERROR, CKR_GENERAL_ERROR, CKR_DEVICE_REMOVED]);
    Rule::fail(function, ckr).after().every(1 + dice.below(2) as u64)
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Library(Sickness { rules, meets, .. }) => {
                let rules: Vec<_> = rules.iter().map(|rule| format!("`{rule}`")).collect();
                match meets {
                    Meets::Anyone => write!(f, "{}", rules.join(", ")),
                    Meets::ANewOne => write!(f, "its worker killed, the next meets {}", rules.join(", ")),
                }
            }
            Self::Event(Event::Rebooted) => f.write_str("reboot, and its handles are dealt out anew"),
            Self::Event(Event::LoginLost) => f.write_str("its login is lost"),
            Self::Event(Event::SessionsExpired) => f.write_str("its sessions expire"),
            Self::Killed => f.write_str("its worker is killed"),
            Self::Stopped => f.write_str("its worker is stopped"),
            Self::TokenAway => f.write_str("its token is moved away"),
            Self::TokenEmptied => f.write_str("its token is emptied"),
            Self::KeyDeleted(number) => write!(f, "a key is deleted from it (number {number})"),
            Self::PasswordChanged => f.write_str("its password is changed, and its worker killed"),
            Self::Drained => f.write_str("drained by an operator"),
        }
    }
}
