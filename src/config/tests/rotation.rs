use super::*;
use crate::cluster::{Program, Rotation, Strategy};

const PROFILE: &str = "profile = \"softhsm2\"";

fn rotation_of(site: &Site, more: &str) -> Rotation {
    let config = site.load(&with(PROFILE, &format!("{PROFILE}\n{more}")), &[]).unwrap();
    config.clusters[&"cluster-2abcdefghij".parse().unwrap()].rotation.clone()
}

#[test]
fn a_softhsm2_token_has_its_pin_set_at_each_connect_unless_told_otherwise() {
    let site = Site::new();
    let default = Rotation { strategy: Strategy::SetPin, interval: Duration::ZERO, escrow: None };
    assert_eq!(rotation_of(&site, ""), default);
    assert_eq!(rotation_of(&site, "password_rotation = \"none\""), Rotation::NEVER);
    let daily = rotation_of(&site, "rotation_interval = \"24h\"");
    assert_eq!(daily, Rotation { interval: Duration::from_secs(86_400), ..default });
}

#[test]
fn a_program_is_found_beside_the_file_and_has_a_minute_unless_told_otherwise() {
    let site = Site::new();
    site.put("change", "");
    let command = "password_rotation = \"command\"\nrotation_command = [\"change\", \"{user}\", \"x y\"]";
    let arguments = vec!["{user}".to_owned(), "x y".to_owned()];
    let program = Program { path: site.path("change"), arguments, timeout: Duration::from_secs(60) };
    assert_eq!(rotation_of(&site, command).strategy, Strategy::Command(program.clone()));
    let hurried = Program { timeout: Duration::from_secs(5), ..program };
    let strategy = rotation_of(&site, &format!("{command}\nrotation_timeout = \"5s\"")).strategy;
    assert_eq!(strategy, Strategy::Command(hurried));
}

#[test]
fn an_escrow_key_is_an_rsa_public_key() {
    let site = Site::new();
    let private = rcgen::KeyPair::generate().unwrap();
    site.put("escrow.pem", &private.public_key_pem());
    let line = "password_escrow = \"escrow.pem\"";
    let problems = site.problems(&with(PROFILE, &format!("{PROFILE}\n{line}")), &[]);
    assert_eq!(
        problems,
        [
            "keyway.toml: clusters.cluster-2abcdefghij.password_escrow: an escrow key is an RSA key of 2048 to 8192 bits: see escrow.pem"
        ]
    );
}

#[test]
fn what_is_wrong_with_a_rotation_is_reported() {
    let site = Site::new();
    site.put("change", "");
    let rows = [
        ("password_rotation = \"daily\"", "password_rotation: must be `set-pin`, `command` or `none`, not \"daily\""),
        (
            "password_rotation = \"command\"",
            "rotation_command: is missing: give a program and its arguments, [\"/path\", …]",
        ),
        (
            "password_rotation = \"command\"\nrotation_command = []",
            "rotation_command: must begin with the program's path",
        ),
        (
            "password_rotation = \"command\"\nrotation_command = [\"nowhere\"]",
            "rotation_command: there is no file nowhere",
        ),
        (
            "rotation_command = [\"change\"]",
            "rotation_command: goes with password_rotation = \"command\" alone: remove it",
        ),
        ("rotation_timeout = \"5s\"", "rotation_timeout: goes with password_rotation = \"command\" alone: remove it"),
        (
            "rotation_interval = \"1d\"",
            "rotation_interval: must be a duration such as \"10s\", from 0s to 600000m, not \"1d\"",
        ),
    ];
    for (lines, complaint) in rows {
        let problems = site.problems(&with(PROFILE, &format!("{PROFILE}\n{lines}")), &[]);
        assert_eq!(problems, [format!("keyway.toml: clusters.cluster-2abcdefghij.{complaint}")]);
    }
}
