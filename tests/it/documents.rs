//! What the documents promise of the program, held against the program.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use keyway::model::ConnectionErrorCode;

const ERRORS: &str = include_str!("../../docs/errors.md");

#[test]
fn every_reason_that_an_error_gives_is_explained() {
    let (explained, reasons) = (explained(), reasons());
    assert!(reasons.len() > 30, "reasons are no longer written as they were: {reasons:?}");
    for reason in reasons {
        assert!(explained.contains(reason.as_str()), "docs/errors.md has no `## {reason}`");
    }
}

#[test]
fn every_reason_that_a_connection_fails_for_is_explained() {
    for code in ConnectionErrorCode::ALL {
        assert!(explained().contains(code.as_str()), "docs/errors.md has no `## {code}`");
    }
}

#[test]
fn nothing_is_explained_that_does_not_happen() {
    let mut known = reasons();
    known.extend(ConnectionErrorCode::ALL.map(|code| code.as_str().to_owned()));
    for name in explained() {
        assert!(known.contains(name), "docs/errors.md explains {name}, which the daemon never says");
    }
}

#[test]
fn every_link_between_the_documents_leads_somewhere() {
    for document in documents() {
        let text = std::fs::read_to_string(&document).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            if file.starts_with("https:") {
                continue;
            }
            let target = if file.is_empty() { document.clone() } else { document.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: {link} leads nowhere", document.display());
            if !heading.is_empty() {
                let headings = headings(&std::fs::read_to_string(&target).unwrap());
                assert!(headings.contains(heading), "{}: {link} has no such heading", document.display());
            }
        }
    }
}

/// The documents at the root and under `docs`.
fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = [root.to_owned(), root.join("docs"), root.join("docs/decisions")];
    let files = folders.iter().flat_map(|folder| folder.read_dir().unwrap()).map(|entry| entry.unwrap().path());
    let documents: Vec<_> = files.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect();
    assert!(documents.len() > 10, "{documents:?}");
    documents
}

/// Headings as links name them: lower case, hyphens for spaces, no other signs.
fn headings(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches(['#', ' ']));
    let linked = |heading: &str| {
        let kept = heading.chars().filter(|sign| sign.is_alphanumeric() || matches!(sign, ' ' | '-' | '_'));
        kept.map(|sign| if sign == ' ' { '-' } else { sign.to_ascii_lowercase() }).collect()
    };
    headings.map(linked).collect()
}

/// The headings that are written like a reason.
fn explained() -> BTreeSet<&'static str> {
    ERRORS.lines().filter_map(|line| line.strip_prefix("## ")).filter(|heading| is_reason(heading)).collect()
}

/// Every string in the gRPC face, and among the prerequisites, that is written like a reason.
fn reasons() -> BTreeSet<String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let face = source.join("door/grpc").read_dir().unwrap().map(|file| file.unwrap().path());
    let mut reasons = BTreeSet::new();
    for file in face.chain([source.join("keystore/prerequisites/unmet.rs")]) {
        let code = std::fs::read_to_string(file).unwrap();
        for line in code.lines() {
            let parts: Vec<&str> = line.split('"').collect();
            for literal in parts.windows(3).step_by(2) {
                let names_a_variable = literal[0].ends_with("env!(");
                if is_reason(literal[1]) && !names_a_variable {
                    reasons.insert(literal[1].to_owned());
                }
            }
        }
    }
    reasons
}

fn is_reason(text: &str) -> bool {
    // What ends with an underscore is the beginning of a name.
    text.len() > 2 && !text.ends_with('_') && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
}
