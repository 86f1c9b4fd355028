//! The library that makes HSMs fail: each of its rules does what it says, on real SoftHSM2; and the rig that starts a daemon on it.

mod program;

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use cryptoki::error::RvError;
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::ObjectHandle;
use cryptoki::session::{Session, SessionState};
use cryptoki::types::AuthPin;
use faulty_pkcs11::Function::*;
use faulty_pkcs11::ckr::*;
use faulty_pkcs11::{On, Outcome, Rule};

use crate::rig::{Rig, wait};
use program::*;

const MIB: usize = 1 << 20;

/// Which of so many calls failed, counted from 1.
fn failed(session: &Session, calls: usize) -> Vec<usize> {
    let refused = |_: &usize| match random(session) {
        Ok(()) => false,
        Err(answer) => {
            assert_eq!(answer, RvError::DeviceError);
            true
        }
    };
    (1..=calls).filter(refused).collect()
}

#[test]
fn a_call_fails_always_or_the_nth_time_or_by_chance_and_not_when_the_rule_has_gone() {
    alone(|program| {
        let session = program.open();
        let fail = || Rule::fail(C_GenerateRandom, CKR_DEVICE_ERROR);
        program.faults.set([fail()]);
        assert_eq!(failed(&session, 3), [1, 2, 3]);
        for (rule, expected) in [(fail().nth(2), &[2][..]), (fail().every(2), &[2, 4]), (fail().first(2), &[1, 2])] {
            program.faults.set([rule]);
            assert_eq!(failed(&session, 5), expected);
        }
        let mut chosen = Vec::new();
        for seed in [7, 8, 7] {
            program.faults.clear();
            assert_eq!(failed(&session, 1), [0; 0]);
            program.faults.set([fail().chance(0.5, seed)]);
            chosen.push(failed(&session, 100));
        }
        assert!((30..=70).contains(&chosen[0].len()), "half of them, nearly: {chosen:?}");
        assert_ne!(chosen[0], chosen[1]);
        assert_eq!(chosen[0], chosen[2]);
    });
}

#[test]
fn a_rule_goes_on_counting_when_others_come_and_stands_while_its_marker_does() {
    alone(|program| {
        let session = program.open();
        program.faults.set([Rule::fail(C_GenerateRandom, CKR_DEVICE_ERROR).nth(3)]);
        assert_eq!(failed(&session, 2), [0; 0]);
        program.faults.add(Rule::delay(C_GenerateRandom, Duration::from_micros(1)));
        assert_eq!(failed(&session, 2), [1]);

        program.faults.set([Rule::fail(On::all().except(C_CloseSession), CKR_DEVICE_ERROR).during("away")]);
        assert_eq!(failed(&session, 1), [0; 0]);
        program.faults.mark("away");
        assert_eq!(failed(&session, 2), [1, 2]);
        assert_eq!(ckr(program.library.get_token_info(program.slot)).unwrap_err(), RvError::DeviceError);
        program.faults.unmark("away");
        assert_eq!(failed(&session, 1), [0; 0]);
    });
}

#[test]
fn a_call_fails_before_it_is_done_or_after() {
    alone(|program| {
        let session = program.logged_in();
        let fail = || Rule::fail(C_GenerateKey, CKR_DEVICE_ERROR);
        program.faults.set([fail()]);
        assert_eq!(try_to_make_key(&session, "before").unwrap_err(), RvError::DeviceError);
        program.faults.set([fail().after()]);
        assert_eq!(try_to_make_key(&session, "after").unwrap_err(), RvError::DeviceError);
        program.faults.clear();
        assert_eq!((find(&session, "before").len(), find(&session, "after").len()), (0, 1));
    });
}

#[test]
fn a_call_is_late_or_blocks_as_long_as_its_marker_is_there_and_others_go_on() {
    alone(|program| {
        let (slow, other) = (program.open(), program.open());
        program.faults.set([Rule::delay_up_to(
            C_GenerateRandom,
            Duration::from_millis(100),
            Duration::from_millis(50),
        )]);
        let begun = Instant::now();
        random(&slow).unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(100));

        program.faults.mark("hang");
        program.faults.set([Rule::block(C_GenerateRandom).nth(1).during("hang"), Rule::journal(C_GenerateRandom)]);
        let blocked = std::thread::spawn(move || random(&slow));
        wait(|| program.faults.journal().iter().any(|entry| entry.outcome == Outcome::Blocked).then_some(()));
        random(&other).unwrap();
        assert!(!blocked.is_finished());
        program.faults.unmark("hang");
        blocked.join().unwrap().unwrap();
        assert_eq!(program.faults.count(C_GenerateRandom), 2);
    });
}

#[test]
fn a_process_dies_in_a_call_once_or_always() {
    let home = directory();
    token_of_the_tool(home.path());
    let faults = faults_in(home.path());
    let ask = || tool(home.path(), &["--generate-random", "8"]).status;
    faults.set([Rule::crash(C_GenerateRandom).once()]);
    assert_eq!(ask().signal(), Some(11));
    assert!(ask().success(), "once means once, in all processes together");
    faults.set([Rule::crash(C_GenerateRandom).once()]);
    assert_eq!(ask().signal(), Some(11), "setting it arms it again");
    faults.set([Rule::abort(C_Initialize)]);
    assert_eq!((ask().signal(), ask().signal()), (Some(6), Some(6)));
    let died: Vec<_> = faults.journal().into_iter().filter(|it| it.outcome == Outcome::Aborted).collect();
    assert!(died.len() == 2 && died[0].pid != died[1].pid, "{died:?}");
}

#[test]
fn a_process_grows_by_what_is_leaked() {
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    };
    alone(move |program| {
        let session = program.open();
        program.faults.set([Rule::leak(C_GenerateRandom, 4 * MIB)]);
        let before = resident();
        (0..8).for_each(|_| random(&session).unwrap());
        let grown = resident() - before;
        assert!((31 * MIB..40 * MIB).contains(&grown), "{grown}");
    });
}

#[test]
fn slots_are_renumbered_and_sessions_stay() {
    alone(|program| {
        let session = program.open();
        program.faults.set([Rule::slot_offset(1000)]);
        assert_eq!(ckr(program.library.get_token_info(program.slot)).unwrap_err(), RvError::SlotIdInvalid);
        assert_eq!(ckr(program.library.open_rw_session(program.slot)).unwrap_err(), RvError::SlotIdInvalid);
        let slot = program.library.get_slots_with_initialized_token().unwrap()[0];
        assert_eq!(slot.id(), program.slot.id() + 1000);
        assert_eq!(program.library.get_token_info(slot).unwrap().label(), "program");
        assert_eq!(session.get_session_info().unwrap().slot_id(), slot);
        program.library.open_rw_session(slot).unwrap();
        program.faults.clear();
        program.open();
    });
}

#[test]
fn sessions_expire_all_at_once_and_the_login_with_them() {
    alone(|program| {
        let (one, other) = (program.logged_in(), program.open());
        let key = make_key(&one, "k");
        program.faults.expire_sessions();
        assert_eq!(random(&one).unwrap_err(), RvError::SessionHandleInvalid);
        assert_eq!(random(&other).unwrap_err(), RvError::SessionHandleInvalid);
        let next = program.open();
        assert_ne!(next.handle(), one.handle());
        assert_eq!(next.get_session_info().unwrap().session_state(), SessionState::RwPublic);
        assert_eq!(log_in(&next, "wrong-pin").unwrap_err(), RvError::PinIncorrect);
        log_in(&next, PIN).unwrap();
        assert_eq!(encrypt(&next, key).unwrap_err(), RvError::ObjectHandleInvalid);
        encrypt(&next, find(&next, "k")[0]).unwrap();
        program.faults.expire_sessions();
        assert_eq!(random(&next).unwrap_err(), RvError::SessionHandleInvalid);
    });
}

#[test]
fn a_session_expires_when_it_is_not_used_and_the_login_with_the_last() {
    alone(|program| {
        let limit = Duration::from_millis(300);
        let (idle, busy) = (program.logged_in(), program.open());
        program.faults.set([Rule::idle(limit)]);
        let begun = Instant::now();
        while begun.elapsed() < limit * 2 {
            random(&busy).unwrap();
        }
        assert_eq!(random(&idle).unwrap_err(), RvError::SessionHandleInvalid);
        assert_eq!(busy.get_session_info().unwrap().session_state(), SessionState::RwUser);
        std::thread::sleep(limit);
        assert_eq!(random(&busy).unwrap_err(), RvError::SessionHandleInvalid);
        assert_eq!(program.open().get_session_info().unwrap().session_state(), SessionState::RwPublic);
    });
}

#[test]
fn a_lost_login_is_had_again_by_logging_in_with_the_right_pin() {
    alone(|program| {
        let session = program.logged_in();
        let key = make_key(&session, "k");
        program.faults.lose_login();
        assert_eq!(encrypt(&session, key).unwrap_err(), RvError::UserNotLoggedIn);
        assert_eq!(find(&session, "k"), []);
        assert_eq!(session.get_session_info().unwrap().session_state(), SessionState::RwPublic);
        random(&session).unwrap();
        log_in(&session, PIN).unwrap();
        encrypt(&session, key).unwrap();
        assert_eq!(log_in(&session, PIN).unwrap_err(), RvError::UserAlreadyLoggedIn);

        program.faults.lose_login();
        assert_eq!(log_in(&session, "wrong-pin").unwrap_err(), RvError::PinIncorrect);
        assert_eq!(try_to_make_key(&session, "other").unwrap_err(), RvError::UserNotLoggedIn);
        log_in(&session, PIN).unwrap();
        assert_eq!(find(&session, "k").len(), 1);
    });
}

#[test]
fn sessions_are_limited_and_the_answer_is_as_told() {
    alone(|program| {
        for (told, answer) in [(CKR_SESSION_COUNT, RvError::SessionCount), (CKR_ARGUMENTS_BAD, RvError::ArgumentsBad)] {
            program.faults.set([Rule::max_sessions(2, told)]);
            let (one, _other) = (program.open(), program.open());
            assert_eq!(ckr(program.library.open_rw_session(program.slot)).unwrap_err(), answer);
            one.close().unwrap();
            program.open();
        }
    });
}

/// Whether OpenSC's tool could log in, and what it said.
fn try_pin(home: &std::path::Path, pin: &str) -> (bool, String) {
    let Output { status, stderr, .. } = tool(home, &["--login", "--pin", pin, "--list-objects"]);
    (status.success(), String::from_utf8_lossy(&stderr).into_owned())
}

#[test]
fn too_many_wrong_pins_lock_the_user_whichever_process_gave_them() {
    let home = directory();
    let (home, faults) = (home.path(), faults_in(home.path()));
    token_of_the_tool(home);
    faults.set([Rule::pin_lock(3)]);
    for _ in 0..2 {
        assert!(try_pin(home, "wrong-pin").1.contains("CKR_PIN_INCORRECT"));
    }
    assert!(try_pin(home, PIN).0, "the right one begins the count anew");
    for _ in 0..3 {
        assert!(try_pin(home, "wrong-pin").1.contains("CKR_PIN_INCORRECT"));
    }
    assert!(try_pin(home, PIN).1.contains("CKR_PIN_LOCKED"));
    let told = tool(home, &["--list-token-slots"]).stdout;
    assert!(String::from_utf8_lossy(&told).contains("user PIN locked"), "the token tells");
    faults.unlock_pins();
    assert!(try_pin(home, PIN).0);
    faults.set([Rule::fail(C_Login, CKR_USER_ALREADY_LOGGED_IN)]);
    assert_eq!(faults.count(C_Login), 9, "{:?}", faults.journal());
}

#[test]
fn a_pin_cannot_be_changed_and_what_the_journal_tells_of_it() {
    alone(|program| {
        let session = program.logged_in();
        program.faults.set([Rule::fail(C_SetPIN, CKR_FUNCTION_NOT_SUPPORTED)]);
        let (old, new) = (AuthPin::new(PIN.into()), AuthPin::new("another-pin".into()));
        assert_eq!(ckr(session.set_pin(&old, &new)).unwrap_err(), RvError::FunctionNotSupported);
        program.faults.clear();
        session.set_pin(&old, &new).unwrap();
        let told = program.faults.journal().into_iter().filter(|entry| entry.function == C_SetPIN);
        let answers: Vec<_> = told.map(|entry| entry.outcome).collect();
        assert_eq!(answers, [CKR_FUNCTION_NOT_SUPPORTED, CKR_OK].map(Outcome::Answered));
    });
}

#[test]
fn a_handle_names_another_key_after_the_handles_were_dealt_out_anew() {
    alone(|program| {
        let session = program.logged_in();
        let keys = ["k1", "k2", "k3"].map(|label| make_key(&session, label));
        let named = |session: &Session| keys.map(|key: ObjectHandle| label(session, key).unwrap());
        assert_eq!(named(&session), ["k1", "k2", "k3"]);
        program.faults.reassign_handles();
        assert_eq!(named(&session), ["k3", "k1", "k2"]);
        assert_eq!(find(&session, "k1"), [keys[1]], "who looks again finds the right one");

        program.faults.reboot();
        assert_eq!(random(&session).unwrap_err(), RvError::SessionHandleInvalid);
        let session = program.logged_in();
        assert_eq!(named(&session), ["k2", "k3", "k1"], "also for who does not look first");
        encrypt(&session, keys[0]).unwrap();
    });
}

#[test]
fn a_search_finds_another_key_than_the_one_asked_for() {
    alone(|program| {
        let session = program.logged_in();
        for key in ["canary", "keyway:1", "keyway:2"] {
            make_key(&session, key);
        }
        program.faults.set([Rule::find_wrong().first(1)]);
        let found = find(&session, "keyway:1");
        assert_eq!(found.len(), 1);
        assert_eq!(label(&session, found[0]).unwrap(), "keyway:2");
        assert_eq!(label(&session, find(&session, "keyway:1")[0]).unwrap(), "keyway:1");
        program.faults.set([Rule::find_wrong()]);
        assert_eq!(find(&session, "keyway:3"), [], "what is not there is not found in another's guise");
    });
}

#[test]
fn the_module_makes_the_ivs_of_gcm_itself() {
    alone(|program| {
        let session = program.logged_in();
        let key = make_key(&session, "k");
        program.faults.set([Rule::gcm_iv()]);
        let seal = |iv: &mut [u8; 12]| {
            let parameters = GcmParams::new(iv, b"aad", 128.into()).unwrap();
            ckr(session.encrypt(&Mechanism::AesGcm(parameters), key, b"attack at dawn"))
        };
        assert_eq!(seal(&mut [7; 12]).unwrap_err(), RvError::MechanismParamInvalid);
        let (mut one, mut other) = ([0; 12], [0; 12]);
        let sealed = seal(&mut one).unwrap();
        seal(&mut other).unwrap();
        assert!(one != other && one != [0; 12] && other != [0; 12]);
        let parameters = GcmParams::new(&mut one, b"aad", 128.into()).unwrap();
        assert_eq!(session.decrypt(&Mechanism::AesGcm(parameters), key, &sealed).unwrap(), b"attack at dawn");
    });
}

#[test]
fn a_token_tells_another_serial_number_or_nothing() {
    alone(|program| {
        let serial = || ckr(program.library.get_token_info(program.slot)).map(|info| info.serial_number().to_owned());
        let own = serial().unwrap();
        program.faults.set([Rule::serial("not-the-same")]);
        assert_eq!(serial().unwrap(), "not-the-same");
        program.faults.set([Rule::fail(C_GetTokenInfo, CKR_TOKEN_NOT_PRESENT)]);
        assert_eq!(serial().unwrap_err(), RvError::TokenNotPresent);
        program.faults.clear();
        assert_eq!(serial().unwrap(), own);
    });
}

#[test]
fn every_call_fails_when_the_control_file_cannot_be_read() {
    let home = directory();
    let ask = || tool(home.path(), &["--list-slots"]);
    assert!(ask().status.success());
    std::fs::write(home.path().join("faults"), "gcm_iv\nfail C_Encript CKR_DEVICE_ERROR\n").unwrap();
    let answer = ask();
    let said = String::from_utf8_lossy(&answer.stderr);
    assert!(!answer.status.success() && said.contains("line 2: C_Encript is no function"), "{said}");
    std::fs::write(home.path().join("faults"), "# nothing\n").unwrap();
    assert!(ask().status.success());
}

#[test]
fn dev_refuses_a_library_that_is_not_there() {
    let home = tempfile::tempdir().unwrap();
    let mut dev = Command::new(env!("CARGO_BIN_EXE_keyway"));
    dev.args(["dev", "--grpc-addr", "off", "--http-addr", "off", "--softhsm2", "no/such.so", "--data-dir"])
        .arg(home.path().join("dev"));
    let output = dev.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("no/such.so is not a file"), "{said}");
    assert!(!home.path().join("dev").exists(), "nothing is left behind");
}

#[tokio::test]
async fn the_main_job_works_on_the_faulty_library_and_with_one_hsm_that_never_encrypts() {
    let (rig, mut clients, store) = Rig::new().faulty().connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    let ciphertext = clients.encrypt(&key, b"attack at dawn").await;
    assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"attack at dawn");
    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        assert_eq!(rig.objects(hsm).len(), 3, "{hsm} holds the KEK, the canary and the key");
        assert!(rig.faults(hsm).count(C_Login) > 0, "{hsm}");
    }

    let sick = rig.faults("hsm-1");
    sick.set([Rule::fail(C_Encrypt, CKR_DEVICE_ERROR), Rule::journal(C_Encrypt)]);
    for number in 0..100u8 {
        let ciphertext = clients.encrypt(&key, &[number]).await;
        assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), [number]);
    }
    let refused = sick.journal().into_iter().filter(|it| it.outcome == Outcome::Answered(CKR_DEVICE_ERROR)).count();
    assert!(refused > 0, "hsm-1 was never asked");
}
